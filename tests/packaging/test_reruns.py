"""The commands of the README for trainings by hand, run by kubectl against an API server."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dispatcher.deadline import DEADLINE_ANNOTATION
from dispatcher.job import SELECTOR, JobOptions, build_job, request_of, style_of
from job_contract.names import LABEL_INSTANCE
from job_contract.request import TrainingRequest
from tests.packaging.chart import CHART, LEAST, Manifest, find, job_template, render
from tests.parts.api_server import ApiServer

README = (CHART / "README.md").read_text()
MANIFESTS = render(LEAST)
REQUEST = TrainingRequest(style_id=42, image_paths=["/a.jpg"], task_id="t")


def _command(beginning: str) -> str:
    """Return the one command of the README's shell blocks that begins so, for the tests' namespace."""
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    [command] = [block for block in blocks if block.startswith(beginning)]
    return str(command).replace("-n lora ", "")


def _run(command: str, server: ApiServer, folder: Path) -> str:
    for program in ("kubectl", "jq"):
        if program in command and shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    environment = {**os.environ, "KUBECONFIG": str(server.kubeconfig(folder / "kubeconfig", admin=True))}
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_rerun_by_hand_trains_the_chosen_style_and_is_seen_by_the_dispatcher(
    api_server: ApiServer, tmp_path: Path
) -> None:
    (tmp_path / "cronjob.yaml").write_text(yaml.safe_dump(find(MANIFESTS, "CronJob", "lora-trainer-rerun")))
    _run(f"kubectl create --validate=false -f {tmp_path}/cronjob.yaml", api_server, tmp_path)
    _run(
        _command("kubectl create job").replace("create -f", "create --validate=false -f"),
        api_server,
        tmp_path,
    )
    job = api_server.get("jobs", "rerun-42")
    assert job is not None
    assert style_of(job) == 42
    assert request_of(job) is None
    wanted = f"{SELECTOR},{LABEL_INSTANCE}=lora-trainer".split(",")
    for labels in (job["metadata"]["labels"], job["spec"]["template"]["metadata"]["labels"]):
        assert set(wanted) <= {f"{name}={value}" for name, value in labels.items()}


def _own_deadline(_job: Manifest) -> None:
    """Nobody has changed it."""


def _moved_deadline(job: Manifest) -> None:
    """It waited for hours, or was given up: another Job is not to last as long, or to end at once."""
    job["metadata"]["annotations"] = {DEADLINE_ANNOTATION: str(job["spec"]["activeDeadlineSeconds"])}
    job["spec"]["activeDeadlineSeconds"] = 1


@pytest.mark.parametrize("change", [_own_deadline, _moved_deadline])
def test_an_earlier_job_can_be_run_again_with_its_request_and_its_own_deadline(
    api_server: ApiServer, tmp_path: Path, change: Callable[[Manifest], None]
) -> None:
    first = build_job(REQUEST, job_template(MANIFESTS), JobOptions())
    own = first["spec"]["activeDeadlineSeconds"]
    change(first)
    (tmp_path / "job.json").write_text(json.dumps(first))
    _run(f"kubectl create --validate=false -f {tmp_path}/job.json", api_server, tmp_path)
    command = _command("kubectl get job -n lora lora-42").replace(
        "lora-42-0123456789ab", first["metadata"]["name"]
    )
    _run(command.replace("create -f", "create --validate=false -f"), api_server, tmp_path)
    [again] = [job for job in api_server.all("jobs") if job["metadata"]["name"] != first["metadata"]["name"]]
    assert request_of(again) == REQUEST
    assert again["spec"]["activeDeadlineSeconds"] == own
    assert again["metadata"]["labels"] == first["metadata"]["labels"]
