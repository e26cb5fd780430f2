"""What docker compose's observers are told: queries that parse, services that are there."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import promql_parser
import pytest
import yaml

TOP = Path(__file__).parents[3]
FOLDER = TOP / "deploy" / "observability"
SERVICES: dict[str, Any] = yaml.safe_load((TOP / "docker-compose.yml").read_text())["services"]
ONCE = {"access"}
VARIABLES = {"$__rate_interval": "1m", "$__interval": "1m", "$__range": "1h"}


def expressions() -> Iterator[str]:
    """Of every dashboard and alert, with Grafana's variables filled in."""
    for path in sorted((FOLDER / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                expression = target["expr"]
                for variable, value in VARIABLES.items():
                    expression = expression.replace(variable, value)
                yield expression
    rules = yaml.safe_load((FOLDER / "prometheus" / "alerts.yml").read_text())
    for group in rules["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_every_query_is_promql(expression: str) -> None:
    promql_parser.parse(expression)


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="no promtool here: apt-get install prometheus"
)
def test_prometheus_itself_takes_the_alerts() -> None:
    rules = FOLDER / "prometheus" / "alerts.yml"
    argv = ["promtool", "check", "rules", str(rules)]
    checked = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_process_is_scraped() -> None:
    built = {name for name, each in SERVICES.items() if "build" in each}
    assert scraped("tokenplane") == [(9000, built - ONCE)]


def test_what_engines_say_in_their_own_words_is_scraped_beside_it() -> None:
    """EN12."""
    assert scraped("engines") == [(8000, {"worker"})]


def scraped(name: str) -> list[tuple[int, set[str]]]:
    """Ports and services of a job."""
    found = yaml.safe_load((FOLDER / "prometheus" / "prometheus.yml").read_text())
    [job] = [each for each in found["scrape_configs"] if each["job_name"] == name]
    return [(each["port"], set(each["names"])) for each in job["dns_sd_configs"]]


def test_observers_reach_each_other_by_names_of_services() -> None:
    collector = yaml.safe_load((FOLDER / "collector.yaml").read_text())
    sources = yaml.safe_load(
        (FOLDER / "grafana" / "provisioning" / "datasources" / "tokenplane.yml").read_text()
    )
    urls = [each["url"] for each in sources["datasources"]]
    urls += [each["endpoint"] for each in collector["exporters"].values()]
    assert {urlsplit(url).hostname for url in urls} <= set(SERVICES)


def test_the_collectors_pipelines_are_of_parts_that_are_configured() -> None:
    collector = yaml.safe_load((FOLDER / "collector.yaml").read_text())
    for pipeline in collector["service"]["pipelines"].values():
        for kind, names in pipeline.items():
            assert set(names) <= set(collector[kind])


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_what_is_mounted_is_there(name: str) -> None:
    for volume in SERVICES[name].get("volumes", []):
        source = volume.split(":")[0]
        assert not source.startswith(".") or (TOP / source).exists()
