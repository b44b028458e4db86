"""Alerts and dashboard speak of metrics that exist, and every alert has its lines in the README."""

import json
import re

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
