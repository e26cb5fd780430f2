"""A dashboard's queries, asked of a Prometheus: what each panel shows, and which show nothing."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from handbook.pages import OBSERVABILITY, ROOT

DASHBOARDS = ("fleet", "control")
RATE_INTERVAL = "30s"
"""What Grafana makes of `$__rate_interval` for the scrape interval here."""
STEP_S = 2
LABEL = re.compile(r"\{\{\s*(\w+)\s*\}\}")


@dataclass(frozen=True)
class Asked:
    """A dashboard as Grafana's file has it, each panel with its `series`."""

    dashboard: Mapping[str, Any]
    silent: list[str]
    """Panels of which no query gives anything."""
    queries: int
    unanswered: list[str]
    """Queries that gave nothing, or no numbers."""


def ask(prometheus: str, name: str, from_s: float, to_s: float) -> Asked:
    """Ask every query of a dashboard for a range of time."""
    file = ROOT / OBSERVABILITY / "grafana" / "dashboards" / f"{name}.json"
    dashboard = json.loads(file.read_text())
    silent, unanswered, queries = [], [], 0
    for panel in dashboard["panels"]:
        panel["series"] = []
        for target in panel["targets"]:
            lines = _range(prometheus, target["expr"], from_s, to_s)
            queries += 1
            unanswered += [] if lines else [target["expr"]]
            panel["series"] += [_series(line, target["legendFormat"]) for line in lines]
        if not panel["series"]:
            silent.append(panel["title"])
    whole = {**dashboard, "from": 1000 * from_s, "to": 1000 * to_s}
    return Asked(whole, silent, queries, unanswered)


def firing_or_not(prometheus: str) -> dict[str, str]:
    """The state of each alert by its name; `err` where Prometheus cannot make sense of one."""
    groups = _get(f"{prometheus}/api/v1/rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    return {r["name"]: "err" if r["health"] == "err" else r["state"] for r in rules}


def _range(prometheus: str, expression: str, from_s: float, to_s: float) -> list[Any]:
    query = {
        "query": expression.replace("$__rate_interval", RATE_INTERVAL),
        "start": from_s,
        "end": to_s,
        "step": STEP_S,
    }
    found: list[Any] = _get(f"{prometheus}/api/v1/query_range?{urlencode(query)}")["result"]
    return [line for line in found if any(value != "NaN" for _, value in line["values"])]


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)["data"]


def _series(line: Any, legend: str) -> dict[str, object]:
    labels = line["metric"]
    points = [(1000 * at, float(value)) for at, value in line["values"]]
    return {
        "name": LABEL.sub(lambda found: labels.get(found[1], ""), legend),
        "times": [at for at, _ in points],
        "values": [value if value == value else None for _, value in points],
    }


def page(asked: Asked, built: Path) -> str:
    """A page that draws it."""
    data = json.dumps(asked.dashboard).replace("</", "<\\/")
    return (
        '<!doctype html><meta charset="utf-8">'
        f'<link rel="stylesheet" href="{(built / "panels.css").as_uri()}">'
        '<body style="margin:0;background:#111217"><div id="root"></div>'
        f"<script>window.DASHBOARD = {data}</script>"
        f'<script src="{(built / "panels.js").as_uri()}"></script>'
    )
