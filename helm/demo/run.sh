#!/bin/sh
# make kind-demo: from an empty machine with docker, kind, kubectl and helm to a PATCH of a finished training.
# It ends with the line that the backend printed; `kind delete cluster --name lora-demo` removes everything.
set -eu
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-.venv/bin/python}
# A build of torch for the CPU is ten times smaller; it needs PyTorch's own index in pip.conf.
TORCH=${TORCH:-torch==2.13.0}
CLUSTER=lora-demo
# kind cannot always load an image that has attestations beside it.
export BUILDX_NO_DEFAULT_ATTESTATIONS=1

step() { printf '\n== %s\n' "$1"; }

for tool in docker kind kubectl helm "$PYTHON"; do
  command -v "$tool" >/dev/null && continue
  echo "$tool is missing: install it first" >&2
  exit 1
done
docker info >/dev/null || { echo "docker does not answer: start it first" >&2; exit 1; }
built=$(mktemp -d)
trap 'rm -rf "$built"' EXIT

step "1/6 images"
secret=${PIP_CONF:+--secret id=pip,src=$PIP_CONF}
# shellcheck disable=SC2086 # no word at all where PIP_CONF is not set
docker build -q $secret -f dispatcher/Dockerfile -t lora-trainer-dispatcher:demo .
# shellcheck disable=SC2086
docker build -q $secret -f trainer_image/Dockerfile --build-arg TORCH="$TORCH" -t lora-trainer:demo-base .
"$PYTHON" trainer_image/tiny_base.py "$built/base"
"$PYTHON" trainer_image/sample_pictures.py "$built/pictures" 6
docker build -q -f helm/demo/Dockerfile -t lora-trainer:demo "$built"

step "2/6 cluster"
kind get clusters | grep -qx "$CLUSTER" || kind create cluster --name "$CLUSTER" --wait 120s
kubectl config use-context "kind-$CLUSTER"
kind load docker-image --name "$CLUSTER" lora-trainer-dispatcher:demo lora-trainer:demo

step "3/6 a GPU that is none"
kubectl patch node "$CLUSTER-control-plane" --subresource=status --type=json \
  -p '[{"op": "add", "path": "/status/capacity/nvidia.com~1gpu", "value": "1"}]'

step "4/6 chart"
kubectl create namespace lora --dry-run=client -o yaml | kubectl apply -f -
kubectl label --overwrite namespace lora pod-security.kubernetes.io/enforce=restricted
kubectl config set-context --current --namespace=lora
kubectl apply -f helm/demo/backend.yaml
kubectl wait --for=condition=Ready pod/backend --timeout=120s
# Not --wait: that would also wait for the claim of the models, which kind binds when a training mounts it.
helm upgrade --install lora-trainer helm/lora-trainer --values helm/demo/values.yaml
kubectl rollout status deploy/lora-trainer-rabbitmq --timeout=5m
kubectl rollout status deploy/lora-trainer --timeout=5m
helm test lora-trainer --logs

step "5/6 request"
pictures=$(cd "$built/pictures" && printf '/demo/pictures/%s ' *)
# shellcheck disable=SC2086 # a word for each picture
kubectl exec deploy/lora-trainer -- python -m dispatcher submit --wait --style-id 42 --epochs 3 \
  --images $pictures

step "6/6 what the backend heard"
for _ in $(seq 60); do
  kubectl logs backend | grep -q '"training_status": *"completed"' && break
  sleep 1
done
kubectl logs backend
kubectl logs backend | grep -q '"training_status": *"completed"'
