"""The defaults are part of what a style looks like, so they are pinned; and the request wins over them."""

from pathlib import Path

import pytest

from job_contract.request import TrainingRequest
from job_contract.settings import InvalidSettingsError
from trainer.plan import TrainingPlan, checkpoint_fingerprint, make_plan, training_fingerprint
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
        ("SAMPLE_PROMPTS", '"a cat"'),
        ("SAMPLE_PROMPTS", '{"a": 1}'),
        ("SAMPLE_PROMPTS", "7"),
        ("MODELS_DIR", "~nosuchuser/models"),
        ("MODELS_DIR", "/models/caf\udce9"),
        ("BASE_MODEL", "~nosuchuser/base"),
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
    signings = [
        "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date=2026{0}&X-Amz-Security-Token={0}&X-Amz-Signature={0}",
        "X-Goog-Credential=a&X-Goog-Date={0}&X-Goog-Signature={0}",
        "AWSAccessKeyId=a&Expires={0}&Signature={0}",
        "Policy={0}&Signature={0}&Key-Pair-Id=a",
        "sv=2026-02-06&st={0}&se={0}&sr=b&sp=r&skoid={0}&sig={0}",
    ]
    for signing in signings:
        signed = [f"https://h/a.jpg?{signing.format(number)}" for number in "12"]
        assert fingerprint(image_paths=signed[:1]) == fingerprint(image_paths=signed[1:])
    assert fingerprint(webhook_url="https://backend/status") == fingerprint()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://h/image?id=1", "https://h/image?id=2"),
        ("https://h/image?sr=1", "https://h/image?sr=2"),  # a name of Azure's, without Azure's signature
        ("https://h/image?token=1", "https://h/image?token=2"),
        ("https://h/a?versionId=1&X-Amz-Signature=s", "https://h/a?versionId=2&X-Amz-Signature=s"),
        ("https://h/a?id=1&sig=s&sr=b", "https://h/a?id=2&sig=s&sr=b"),
        ("s3://b/what?1.jpg", "s3://b/what?2.jpg"),
    ],
)
def test_fingerprint_tells_pictures_apart_that_only_their_query_does(one: str, other: str) -> None:
    """The weights of one would be handed out as those of the other."""
    assert fingerprint(image_paths=[one]) != fingerprint(image_paths=[other])


def test_fingerprint_counts_a_caption_beside_a_picture_if_it_is_read(tmp_path: Path) -> None:
    picture, caption = tmp_path / "a.jpg", tmp_path / "a.txt"
    picture.touch()
    without = fingerprint(image_paths=[str(picture)])
    captioned = fingerprint(image_paths=[str(picture)], captions=["a cat"])
    caption.write_text("a dog")
    one = fingerprint(image_paths=[str(picture)])
    caption.write_text("a dog that runs")
    assert len({without, one, fingerprint(image_paths=[str(picture)])}) == 3
    assert fingerprint(image_paths=[str(picture)], captions=["a cat"]) == captioned


def test_checkpoint_fits_whatever_the_pictures_are_called_but_not_another_base() -> None:
    """A signature that nobody knows, or a copied file, must not cost the training; another UNet must."""

    def resumable(base: str = "base", examples: str = "pixels", weights: int = 7, **fields: object) -> str:
        one = request(**fields)
        plan = make_plan(one, TrainerSettings())
        return checkpoint_fingerprint(one, plan, examples=examples, base=base, weights=weights)

    assert resumable(image_paths=["https://h/a?token=1"]) == resumable(image_paths=["/a.jpg"])
    different = [
        {"base": "other"},
        {"examples": "other"},
        {"weights": 8},
        {"num_epochs": 99},
        {"task_id": "b"},
    ]
    assert len({resumable(), *(resumable(**one) for one in different)}) == 6  # type: ignore[arg-type]


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
