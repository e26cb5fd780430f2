"""The catalogue has every metric, and dashboards and alerts have none that it has not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from handbook.alerts import alerts, rules
from handbook.catalogue import Catalogue, NoSuchMetric
from handbook.dashboards import Words, control, fleet
from handbook.pages import ROOT

NAMED = re.compile(r'"(tokenplane_[a-z_0-9]+)"')
SERIES = re.compile(r"\btokenplane_[a-z_0-9]+")


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue()


def test_every_metric_that_code_spells_is_in_the_catalogue(catalogue: Catalogue) -> None:
    known = {m.name.removesuffix("_total") for m in catalogue.metrics}
    spelled: dict[str, Path] = {}
    for folder in ("controlplane", "agents"):
        for file in (ROOT / folder).rglob("metrics.py"):
            spelled |= dict.fromkeys(NAMED.findall(file.read_text()), file)
    assert len(spelled) > 30
    missing = {name: file for name, file in spelled.items() if name not in known}
    assert missing == {}, "add its service to handbook/catalogue.py"


def test_names_are_ours_and_units_are_in_them(catalogue: Catalogue) -> None:
    for metric in catalogue.metrics:
        assert metric.name.startswith("tokenplane_")
        assert metric.meaning
        if metric.kind == "counter":
            assert metric.name.endswith("_total")


def test_dashboards_and_alerts_ask_only_for_what_there_is(catalogue: Catalogue) -> None:
    known = {series for m in catalogue.metrics for series in m.series}
    asked = set()
    for dashboard in (fleet(), control()):
        for panel in json.loads(dashboard)["panels"]:
            for target in panel["targets"]:
                asked |= set(SERIES.findall(target["expr"]))
    for rule in json.loads(rules())["groups"][0]["rules"]:
        asked |= set(SERIES.findall(rule["expr"]))
    assert len(asked) > 30
    assert asked - known == set()


def test_a_metric_or_label_that_is_not_there_is_refused(catalogue: Catalogue) -> None:
    words = Words(catalogue)
    with pytest.raises(NoSuchMetric, match="tokenplane_gateway_wishes_total"):
        words.rate("tokenplane_gateway_wishes_total")
    with pytest.raises(NoSuchMetric, match="colour"):
        words.rate("tokenplane_gateway_requests_total", "colour")


def test_every_alert_has_its_runbook() -> None:
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs/operations.md").read_text(), re.MULTILINE)
    assert headings == [alert.name for alert in alerts()]
