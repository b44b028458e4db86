"""What is made from the chart is up to date, and works with kubectl."""

import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.packaging.chart import ROOT


@pytest.mark.parametrize("script", ["render_k8s.py", "values_table.py"])
def test_a_file_made_from_the_chart_is_not_stale(script: str) -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "helm" / script, "--check"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_kustomize_builds_what_a_cluster_takes() -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    built = subprocess.run([kubectl, "kustomize", ROOT / "k8s"], capture_output=True, text=True, check=True)
    manifests = [item for item in yaml.safe_load_all(built.stdout) if item]
    for manifest in manifests:
        kubernetes_validate.validate(manifest, "1.37", strict=True)
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "lora-trainer"
    [deployment] = [item for item in manifests if item["kind"] == "Deployment"]
    environment = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    secret = next(entry for entry in environment if entry["name"] == "AMQP_URL")["valueFrom"]["secretKeyRef"]
    made = {item["metadata"]["name"]: item["data"] for item in manifests if item["kind"] == "Secret"}
    assert secret["key"] in made[secret["name"]]
    assert "helm.sh" not in built.stdout


def test_the_demos_script_and_backend_are_well_formed() -> None:
    demo = ROOT / "helm" / "demo"
    subprocess.run(["sh", "-n", demo / "run.sh"], check=True)
    backend, pod, service = yaml.safe_load_all((demo / "backend.yaml").read_text())
    for manifest in (backend, pod, service):
        kubernetes_validate.validate(manifest, "1.37", strict=True)
    compile(backend["data"]["backend.py"], "backend.py", "exec")
    assert service["spec"]["selector"] == pod["metadata"]["labels"]


def test_the_demo_names_a_tool_that_is_missing_before_it_builds_anything(tmp_path: Path) -> None:
    dirname = shutil.which("dirname")
    assert dirname
    (tmp_path / "dirname").symlink_to(dirname)
    result = subprocess.run(
        ["/bin/sh", ROOT / "helm" / "demo" / "run.sh"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (
        1,
        "",
        "docker is missing: install it first\n",
    )
