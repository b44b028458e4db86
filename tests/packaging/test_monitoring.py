"""Alerts and dashboard speak of metrics that exist, and every alert has its lines in the README."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dispatcher.metrics import Metrics
from tests.packaging.chart import CHART, EVERYTHING, find, render

RULES = find(render(EVERYTHING), "PrometheusRule", "lora-trainer")["spec"]["groups"][0]["rules"]


def _exposed() -> set[str]:
    """The names of all series that the dispatcher serves."""
    metrics = Metrics()
    metrics.observe(lambda: {"running": 1}, lambda: 0.0, lambda: True)
    metrics.patches.labels("completed", "delivered").inc()
    metrics.messages.labels("accepted").inc()
    lines = metrics.expose().decode().splitlines()
    return {re.split(r"[{ ]", line)[0] for line in lines if not line.startswith("#")}


def _named(text: str) -> set[str]:
    return set(re.findall(r"\blora_trainer_[a-z_]+", text))


def test_every_metric_of_an_alert_exists() -> None:
    assert _named(str([rule["expr"] for rule in RULES])) <= _exposed()


def test_every_metric_of_the_dashboard_exists() -> None:
    dashboard = json.loads((CHART / "files" / "dashboard.json").read_text())
    named = _named(json.dumps(dashboard))
    assert len(named) >= 8
    assert named <= _exposed()


def test_no_two_panels_of_the_dashboard_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads((CHART / "files" / "dashboard.json").read_text())["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells


def test_the_dashboard_is_rendered_as_it_stands() -> None:
    """Grafana's own {{ }} must not be taken for Helm's."""
    rendered = find(render(EVERYTHING), "ConfigMap", "lora-trainer-dashboard")["data"]["lora-trainer.json"]
    assert json.loads(rendered) == json.loads((CHART / "files" / "dashboard.json").read_text())


def test_every_alert_has_a_runbook_in_the_readme() -> None:
    headings = re.findall(r"^#+ (.+)$", (CHART / "README.md").read_text(), flags=re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    for rule in RULES:
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert page == "helm/lora-trainer/README.md"
        assert anchor == rule["alert"].lower()
        assert anchor in anchors


UP = {'lora_trainer_broker_connected{namespace="ml"}': "1x200"}
BACKLOG = 'lora_trainer_jobs{namespace="ml",phase="waiting"}'


def _patches(status: str, result: str) -> str:
    return f'lora_trainer_patches_total{{namespace="ml",status="{status}",result="{result}"}}'


def _relayed(at_most: str) -> str:
    return f'lora_trainer_relay_seconds_bucket{{namespace="ml",le="{at_most}"}}'


ALERTS: list[tuple[str, str, dict[str, str], dict[int, bool]]] = [
    ("nothing is scraped", "LoraTrainerDown", {}, {4: False, 6: True}),
    ("all is well", "LoraTrainerDown", UP, {6: False}),
    (
        "another release's is scraped",
        "LoraTrainerDown",
        {'lora_trainer_broker_connected{namespace="other"}': "1x200"},
        {6: True},
    ),
    (
        "both replicas lose the broker",
        "LoraTrainerBrokerDisconnected",
        {
            'lora_trainer_broker_connected{namespace="ml",pod="a"}': "0x30",
            'lora_trainer_broker_connected{namespace="ml",pod="b"}': "1x10 0x20",
        },
        {10: False, 17: True},
    ),
    (
        "the API server is silent",
        "LoraTrainerWatchSilent",
        {'lora_trainer_watch_silence_seconds{namespace="ml"}': "0+60x30"},
        {8: False, 12: True},
    ),
    (
        "one request is refused",
        "LoraTrainerDeadLetters",
        {'lora_trainer_dead_letters_total{namespace="ml"}': "0x10 1x50"},
        {10: False, 12: True, 40: False},
    ),
    (
        "the backend is down from the start",
        "LoraTrainerStatusesNotDelivered",
        {_patches("processing", "tryagain"): "1+1x60"},
        {10: False, 20: True},
    ),
    (
        "the backend takes some",
        "LoraTrainerStatusesNotDelivered",
        {_patches("processing", "tryagain"): "1+1x60", _patches("progress", "delivered"): "1+1x60"},
        {20: False, 60: False},
    ),
    (
        "one status in ten takes minutes",
        "LoraTrainerRelaySlow",
        {
            _relayed("10"): "0+9x60",
            _relayed("60"): "0+9x60",
            _relayed("600"): "0+10x60",
            _relayed("+Inf"): "0+10x60",
        },
        {10: False, 20: True},
    ),
    (
        "nothing is relayed",
        "LoraTrainerRelaySlow",
        {_relayed("10"): "5x60", _relayed("60"): "5x60", _relayed("600"): "5x60", _relayed("+Inf"): "5x60"},
        {30: False},
    ),
    (
        "all trainings fail, and none has ever been completed",
        "LoraTrainerTrainingsFail",
        {_patches("failed", "delivered"): "1x10 5x50"},
        {10: False, 12: True},
    ),
    (
        "a few of many fail",
        "LoraTrainerTrainingsFail",
        {_patches("failed", "delivered"): "1x10 5x50", _patches("completed", "delivered"): "1+1x60"},
        {30: False},
    ),
    ("trainings wait", "LoraTrainerBacklog", {BACKLOG: "2x200"}, {110: False, 125: True}),
    ("trainings wait in turn", "LoraTrainerBacklog", {BACKLOG: "2x60 0x2 2x100"}, {125: False}),
]


@pytest.mark.parametrize(
    ("alert", "series", "fires"), [case[1:] for case in ALERTS], ids=[case[0] for case in ALERTS]
)
def test_an_alert_fires_when_it_should_and_then_only(
    alert: str, series: dict[str, str], fires: dict[int, bool], tmp_path: Path
) -> None:
    """By Prometheus itself, a sample a minute; an expression over a series that is missing never fires."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    [rule] = [rule for rule in RULES if rule["alert"] == alert]
    labels = rule["labels"] | ({"namespace": "ml"} if alert == "LoraTrainerDown" else {})
    firing = [{"exp_labels": labels, "exp_annotations": rule["annotations"]}]
    test = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "alert_rule_test": [
                    {"eval_time": f"{minute}m", "alertname": alert, "exp_alerts": firing if fired else []}
                    for minute, fired in fires.items()
                ],
            }
        ],
    }
    (tmp_path / "rules.yaml").write_text(json.dumps({"groups": [{"name": "lora-trainer", "rules": RULES}]}))
    (tmp_path / "test.yaml").write_text(json.dumps(test))
    result = subprocess.run(
        [promtool, "test", "rules", "test.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
