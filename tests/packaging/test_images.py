"""Dockerfiles and lock files: what is installed is pinned, complete and the same as tested here."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.packaging.chart import ROOT

LOCKS = {
    "dispatcher": [ROOT / "dispatcher" / "requirements.lock"],
    "trainer": [ROOT / "trainer_image" / "torch.lock", ROOT / "trainer_image" / "requirements.lock"],
}
SBOM_LOCK = ROOT / "trainer_image" / "sbom.lock"
DOCKERFILES = [ROOT / "dispatcher" / "Dockerfile", ROOT / "trainer_image" / "Dockerfile"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOT_BY_HASH = {"torch"}

both_images = pytest.mark.parametrize("image", LOCKS)
both_dockerfiles = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)


def _pins(path: Path) -> dict[str, str]:
    pairs = re.findall(r"^([A-Za-z0-9._-]+)==([^\s\\;]+)", path.read_text(), flags=re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pairs}


def _locked(image: str) -> dict[str, str]:
    return {name: version for path in LOCKS[image] for name, version in _pins(path).items()}


def _needs(name: str, extras: set[str]) -> list[Requirement]:
    """The requirements of an installed package that hold on this platform."""
    found = [Requirement(text) for text in metadata.requires(name) or []]
    here = {str(name): str(value) for name, value in default_environment().items()}
    environments = [{**here, "extra": extra} for extra in extras or {""}]
    return [
        item
        for item in found
        if item.marker is None or any(item.marker.evaluate(environment) for environment in environments)
    ]


def _stages(path: Path) -> dict[str, str]:
    """A Dockerfile's stages by name, each from its FROM on; the one that becomes the image is named ""."""
    stages = re.split(r"^(?=FROM )", path.read_text(), flags=re.MULTILINE)[1:]
    return {re.match(r"FROM \S+(?: AS (\w+))?\n", stage)[1] or "": stage for stage in stages}  # type: ignore[index]


def _copied(stage: str) -> list[str]:
    """What a stage takes from the repository."""
    lines = re.findall(r"^COPY ((?!--from)[^\n]+) \S+$", stage, flags=re.MULTILINE)
    return [source for line in lines for source in line.split()]


@pytest.mark.parametrize(
    "path", [*LOCKS["dispatcher"], *LOCKS["trainer"], SBOM_LOCK], ids=lambda path: "-".join(path.parts[-2:])
)
def test_every_package_is_pinned_with_hashes(path: Path) -> None:
    entries = re.split(r"^(?=[A-Za-z0-9])", path.read_text(), flags=re.MULTILINE)[1:]
    assert entries
    for entry in entries:
        assert re.match(r"[^\s=]+==\S+ .*--hash=sha256:", entry, flags=re.DOTALL), entry.splitlines()[0]


@both_images
def test_an_image_has_the_versions_that_were_tested(image: str) -> None:
    tested = _pins(ROOT / "requirements.lock")
    others = {name: (version, tested[name]) for name, version in _locked(image).items()
              if name in tested and version != tested[name]}  # fmt: skip
    assert others == {}


@pytest.mark.parametrize(
    ("locks", "extras"),
    [
        (LOCKS["dispatcher"], ["dispatcher"]),
        (LOCKS["trainer"], ["trainer"]),
        ([ROOT / "requirements.lock"], ["dispatcher", "trainer", "dev"]),
    ],
    ids=["dispatcher", "trainer", "virtual environment"],
)
def test_no_package_that_is_needed_is_missing(locks: list[Path], extras: list[str]) -> None:
    """All three install with --no-deps: what a lock lacks is found missing at run time only."""
    locked = {name: version for path in locks for name, version in _pins(path).items()}
    wanted = [text for extra in extras for text in PROJECT["optional-dependencies"][extra]]
    waiting = [Requirement(text) for text in PROJECT["dependencies"] + wanted]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in NOT_BY_HASH or (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        assert name in locked, f"{name} is in no lock"
        assert requirement.specifier.contains(locked[name], prereleases=True), requirement
        if name not in {"setuptools"}:  # torch's only, and not installed here
            waiting += _needs(name, requirement.extras)


def test_what_torch_needs_is_pinned() -> None:
    torch = _pins(ROOT / "trainer_image" / "torch.lock") | _pins(ROOT / "trainer_image" / "cuda.lock")
    for requirement in _needs("torch", set()):
        assert canonicalize_name(requirement.name) in torch


def test_the_dockerfile_installs_the_torch_that_was_tested() -> None:
    text = (ROOT / "trainer_image" / "Dockerfile").read_text()
    tested = _pins(ROOT / "requirements.lock")["torch"].partition("+")[0]
    assert f"ARG TORCH=torch=={tested}\n" in text
    assert f"torch {tested}" in (ROOT / "trainer_image" / "cuda.lock").read_text()


@both_dockerfiles
def test_an_image_runs_as_a_number_and_gets_signals(path: Path) -> None:
    """runAsNonRoot refuses a user by name; a shell in between would swallow SIGTERM."""
    text = path.read_text()
    users = re.findall(r"^USER (.+)$", text, flags=re.MULTILINE)
    assert users == ["10001:0"]
    assert re.search(r'^ENTRYPOINT \["python", "-m", "\w+"\]$', text, flags=re.MULTILINE)
    assert re.findall(r"^ARG BASE=(.+)$", text, flags=re.MULTILINE) == ["python:3.11-slim-bookworm"]


@both_dockerfiles
def test_a_change_of_code_reinstalls_no_package(path: Path) -> None:
    stages = _stages(path)
    for stage in stages.values():
        if "pip install" in stage:
            before = stage.rpartition("pip install")[0]
            assert all(source.endswith(".lock") for source in _copied(before)), stage
    assert "pip install" not in stages[""]
    assert stages[""].index("ARG REVISION") > stages[""].index("COPY --from=code")


@both_dockerfiles
def test_an_image_says_what_is_in_it(path: Path) -> None:
    """Read from what was installed: a list made of the lock would be wrong for another build of torch."""
    stages = _stages(path)
    assert stages["sbom"].startswith("FROM packages ")
    written = re.findall(r"--output-file (/sbom/\S+\.cdx\.json) ", stages["sbom"])
    assert len(written) == 1
    assert "COPY --from=sbom /sbom /usr/share/sbom" in stages[""]
    assert "/tool" not in stages[""]  # what made it stays behind
    labels = set(re.findall(r"org\.opencontainers\.image\.([a-z.]+)=\"", stages[""]))
    assert labels == {"title", "description", "licenses", "base.name", "version", "revision", "created"}


@both_dockerfiles
def test_what_a_dockerfile_copies_reaches_the_builder(path: Path) -> None:
    """A path that .dockerignore keeps back fails in the middle of a build."""
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"]
    sources = [source for stage in _stages(path).values() for source in _copied(stage)]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(source.startswith(f"{rule}/") or Path(source).match(rule) for rule in allowed), source


def test_nothing_imports_the_half_of_the_client_that_the_image_lacks() -> None:
    code = (
        "import sys, dispatcher.service, dispatcher.commands, dispatcher.backends.kubernetes_access\n"
        "import dispatcher.backends.kubernetes, dispatcher.backends.lease\n"
        "print([name for name in sys.modules if name.startswith('kubernetes.aio')])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_the_dispatcher_never_imports_torch_or_the_trainer() -> None:
    code = (
        "import sys, dispatcher.__main__, dispatcher.backends.kubernetes\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('torch', 'trainer', 'boto3')])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
