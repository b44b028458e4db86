"""The defaults are part of what a style looks like, so they are pinned; and the request wins over them."""

import pytest

from job_contract.request import TrainingRequest
from job_contract.settings import InvalidSettingsError
from trainer.plan import TrainingPlan, make_plan, training_fingerprint
from trainer.settings import TrainerSettings


def request(**fields: object) -> TrainingRequest:
    return TrainingRequest.model_validate({"style_id": 1, "image_paths": ["https://h/a.jpg"], **fields})


def test_defaults_for_a_style_of_ten_pictures() -> None:
    assert make_plan(request(), TrainerSettings()) == TrainingPlan(
        base_model="stable-diffusion-v1-5/stable-diffusion-v1-5",
        base_model_revision=None,
        epochs=100,
        batch_size=1,
        learning_rate=1e-4,
        lr_schedule="cosine",
        warmup_fraction=0.05,
        weight_decay=1e-2,
        max_grad_norm=1.0,
        seed=42,
        lora_rank=4,
        lora_alpha=32.0,
        snr_gamma=5.0,
        noise_offset=0.0,
        caption_dropout=0.1,
        resolution=512,
        aspect_buckets=False,
        random_flip=True,
        mixed_precision="auto",
    )


def test_request_wins_over_the_settings() -> None:
    plan = make_plan(
        request(learning_rate=2e-4, batch_size=3, seed=0, num_epochs=7),
        TrainerSettings(learning_rate=1e-5, batch_size=2, seed=9),
    )
    assert (plan.learning_rate, plan.batch_size, plan.seed, plan.epochs) == (2e-4, 3, 0, 7)


def test_environment_of_torch_distributed_is_not_taken_for_the_lora_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert TrainerSettings.from_environment().lora_rank == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LORA_RANK", "0"),
        ("RESOLUTION", "500"),
        ("MIXED_PRECISION", "fp8"),
        ("S3_BUCKET", "s3://weights"),
        ("S3_PREFIX", "models"),
        ("S3_PREFIX", "/models/"),
        ("SAMPLE_PROMPTS", "a cat"),
        ("SAMPLE_PROMTS", "[]"),
    ],
)
def test_setting_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSettingsError, match=name):
        TrainerSettings.from_environment()


def fingerprint(**fields: object) -> str:
    one = request(**fields)
    return training_fingerprint(one, make_plan(one, TrainerSettings()))


def test_fingerprint_survives_a_new_signature_of_a_presigned_url() -> None:
    """A retry with fresh URLs must not train a second time."""
    signed = [fingerprint(image_paths=[f"https://h/a.jpg?X-Amz-Signature={number}"]) for number in "12"]
    assert signed[0] == signed[1] == fingerprint()
    assert fingerprint(webhook_url="https://backend/status") == fingerprint()


@pytest.mark.parametrize(
    "fields",
    [
        {"image_paths": ["https://h/b.jpg"]},
        {"num_epochs": 99},
        {"seed": 7},
        {"trigger_word": "blorp"},
        {"captions": ["a cat"]},
        {"task_id": "another"},
        {"style_id": 2},
    ],
)
def test_fingerprint_changes_with_everything_that_decides_the_weights(fields: dict[str, object]) -> None:
    assert fingerprint(**fields) != fingerprint()
