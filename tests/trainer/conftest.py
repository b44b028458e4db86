"""Fixtures for whole trainings: a tiny base and ten pictures for the session, a models folder for each test.

Pictures are trained at 64 pixels a side, where a step of the tiny base takes some 20 ms.
"""

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from job_contract.outcome import TrainingFailure, TrainingResult, decode
from sample_pictures import draw_pictures
from tiny_base import build_tiny_base
from trainer.__main__ import main
from trainer.style_folder import StyleFolder


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """More threads than free cores wait for each other, and change the order of sums: the last bit."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_base(tmp_path_factory.mktemp("tiny_base"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return draw_pictures(tmp_path_factory.mktemp("pictures"), 4)


@dataclass(frozen=True)
class Outcome:
    """How a trainer ended."""

    code: int
    result: TrainingResult | None
    failure: TrainingFailure | None
    log: str


class Workshop:
    """Runs trainers on a models folder of its own, in this process or in one of their own."""

    def __init__(self, root: Path, base: Path, pictures: list[Path]) -> None:
        self.models = root / "models"
        self.pictures = pictures
        self.message = root / "termination-log"
        self.environment = {
            "BASE_MODEL": str(base),
            "MODELS_DIR": str(self.models),
            "TERMINATION_MESSAGE_PATH": str(self.message),
            "RESOLUTION": "64",
            "SAMPLE_PROMPTS": "[]",
        }

    def folder(self, style_id: int | str = 1) -> StyleFolder:
        return StyleFolder(self.models, style_id)

    def request(self, **fields: object) -> list[str]:
        """Write a request for style 1, and return the arguments that name it."""
        content = {"style_id": 1, "image_paths": [str(path) for path in self.pictures], "num_epochs": 2}
        path = self.models.parent / "request.json"
        path.write_text(json.dumps({**content, **fields}))
        return ["--request", str(path)]

    def outcome(self, code: int, log: str) -> Outcome:
        message = decode(self.message.read_text()) if self.message.exists() else None
        result = message if isinstance(message, TrainingResult) else None
        failure = message if isinstance(message, TrainingFailure) else None
        return Outcome(code, result, failure, log)

    def start(
        self, arguments: list[str], program: Sequence[str] = ("-m", "trainer"), **environment: str
    ) -> "subprocess.Popen[str]":
        """Start a trainer, or a program that does what it does, as a process of its own."""
        self.message.unlink(missing_ok=True)
        own = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.Popen(
            [sys.executable, *program, *arguments],
            env={**own, **self.environment, **environment},
            stderr=subprocess.PIPE,
            text=True,
        )


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the norm of two files' difference over that of the weights B, which begin at zero."""
    assert one.keys() == other.keys()
    difference = torch.cat([(one[name] - other[name]).flatten() for name in one])
    change = torch.cat([one[name].flatten() for name in one if name.endswith("up.weight")])
    assert change.any()
    return float(difference.norm() / change.norm())


def wait_for_line(process: "subprocess.Popen[str]", text: str | tuple[str, ...]) -> None:
    """Read the trainer's log up to a line with text, or with one of several texts."""
    texts = (text,) if isinstance(text, str) else text
    assert process.stderr
    for line in process.stderr:
        if any(one in line for one in texts):
            return
    process.communicate()
    raise AssertionError(f"the trainer ended without a line with {text!r}")


@pytest.fixture
def workshop(tmp_path: Path, tiny_base: Path, pictures: list[Path]) -> Workshop:
    return Workshop(tmp_path, tiny_base, pictures)


@pytest.fixture(scope="session")
def undisturbed_after(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, pictures: list[Path]
) -> Callable[[int], dict[str, Tensor]]:
    """The weights after so many epochs that nothing disturbed, trained in a process of its own."""

    @functools.cache
    def train(epochs: int) -> dict[str, Tensor]:
        workshop = Workshop(tmp_path_factory.mktemp("undisturbed"), tiny_base, pictures)
        process = workshop.start(workshop.request(num_epochs=epochs), CHECKPOINT_EVERY_EPOCHS="2")
        _, log = process.communicate(timeout=240)
        assert process.returncode == 0, log
        return load_file(workshop.folder().weights)

    return train


def in_the_hubs_cache(base: Path, cache: Path, commit: str) -> Path:
    """Move base into a hub's cache, as somebody/some-model's main branch; return its new place."""
    repository = cache / "models--somebody--some-model"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs/main").write_text(commit)
    (repository / "snapshots").mkdir(exist_ok=True)
    return base.rename(repository / "snapshots" / commit)


Train = Callable[..., Outcome]


@pytest.fixture
def train(workshop: Workshop, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Train:
    """Run a trainer in this process: train(arguments, SETTING="value")."""

    def run(arguments: list[str], **environment: str) -> Outcome:
        workshop.message.unlink(missing_ok=True)
        capfd.readouterr()
        with monkeypatch.context() as patch:
            for name, value in {**workshop.environment, **environment}.items():
                patch.setenv(name, value)
            code = main(arguments)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        return workshop.outcome(code, capfd.readouterr().err)

    return run
