"""Make k8s/ from the chart: plain manifests with kustomization, for people without Helm.

python helm/render_k8s.py            write k8s/
python helm/render_k8s.py --check    exit with 1 where k8s/ is not what the chart makes
"""

import re
import sys
from pathlib import Path

import helm_python
import yaml

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "helm" / "lora-trainer"
OUTPUT = ROOT / "k8s"
NAMESPACE = "lora-trainer"
VALUES = {
    "amqp": {"existingSecret": "lora-trainer-amqp"},
    "backend": {"url": "http://backend:8000", "existingSecret": "lora-trainer-backend"},
}

HEADER = "# Made from helm/lora-trainer by `make k8s`: change the chart, or patch it in kustomization.yaml.\n"
NAMESPACE_FILE = f"""{HEADER}apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels:
    pod-security.kubernetes.io/enforce: restricted
"""
KUSTOMIZATION_HEAD = f"""# kubectl apply -k k8s
# Change three things below before: the broker's URL, the backend's URL, the registry of both images.
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: {NAMESPACE}
resources:
"""
KUSTOMIZATION_TAIL = """generatorOptions:
  disableNameSuffixHash: true
secretGenerator:
  - name: lora-trainer-amqp
    literals:
      - amqp-url=amqp://guest:guest@rabbitmq:5672/%2F
# Where the backend wants a token, or signed statuses:
#  - name: lora-trainer-backend
#    literals: [backend-token=..., webhook-secret=whsec_...]
patches:
  - patch: |-
      apiVersion: apps/v1
      kind: Deployment
      metadata:
        name: lora-trainer
      spec:
        template:
          spec:
            containers:
              - name: dispatcher
                env:
                  - name: BACKEND_URL
                    value: http://backend:8000
                  # The trainer's image for messages; `images` below is for the dispatcher and reruns.
                  - name: TRAINER_IMAGE
                    value: lora-trainer:0.1.0
images:
  - name: lora-trainer-dispatcher
    newName: lora-trainer-dispatcher
    newTag: 0.1.0
  - name: lora-trainer
    newName: lora-trainer
    newTag: 0.1.0
"""


def render() -> dict[str, str]:
    """Return k8s/'s files by name. Hooks are left out, and what only Helm reads."""
    with helm_python.Chart.load(CHART) as chart:
        templates = chart.render(VALUES, name="lora-trainer", namespace=NAMESPACE)
    files = {"namespace.yaml": NAMESPACE_FILE}
    for path, text in sorted(templates.items()):
        manifests = [part.strip("\n") for part in re.split(r"^---$", text, flags=re.MULTILINE)]
        kept = [_without_helm(part) for part in manifests if _belongs(path, part)]
        if kept:
            files[Path(path).name] = HEADER + "\n---\n".join(kept) + "\n"
    listed = "".join(f"  - {name}\n" for name in files)
    files["kustomization.yaml"] = KUSTOMIZATION_HEAD + listed + KUSTOMIZATION_TAIL
    return files


def _belongs(path: str, manifest: str) -> bool:
    content = yaml.safe_load(manifest) if path.endswith(".yaml") else None
    return content is not None and "helm.sh/hook" not in (content["metadata"].get("annotations") or {})


def _without_helm(manifest: str) -> str:
    manifest = re.sub(r"\n  annotations:\n    helm.sh/resource-policy: keep", "", manifest)
    return re.sub(r"\n +(helm.sh/chart|app.kubernetes.io/managed-by): .*", "", manifest)


def main(arguments: list[str]) -> int:
    files = render()
    found = {path.name: path.read_text() for path in OUTPUT.glob("*.yaml")}
    if arguments == ["--check"]:
        stale = sorted(name for name in files | found if files.get(name) != found.get(name))
        if stale:
            print(f"k8s/ is not what the chart makes: {', '.join(stale)}; run `make k8s`", file=sys.stderr)  # noqa: T201
        return int(bool(stale))
    for name in found.keys() - files.keys():
        (OUTPUT / name).unlink()
    for name, text in files.items():
        (OUTPUT / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
