"""What the documentation says of the tests is true: those it names are there."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from agents.settings import AgentProcess
from controlplane.client.config import GROUPS
from controlplane.compose import (
    ConsoleProcess,
    GatewayProcess,
    PlannerProcess,
    RouterProcess,
    TransferProcess,
)
from controlplane.runtime.live import live_names
from controlplane.runtime.settings import Group
from controlplane.runtime.spans import SPANS

ROOT = Path(__file__).parents[2]
PROCESSES = (
    AgentProcess, ConsoleProcess, GatewayProcess, PlannerProcess, RouterProcess, TransferProcess
)  # fmt: skip
GROUPS_OF_ALL = {
    group: field.annotation
    for process in PROCESSES
    for group, field in process.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Group)
}
SETTINGS = {f"{g}.{n}" for g, kind in GROUPS_OF_ALL.items() for n in kind.model_fields}
SETTING = re.compile(rf"(?:`|--)((?:{'|'.join(GROUPS_OF_ALL)})\.[a-z_]+)\b(?!\.)")
GATEWAY_REQUIREMENTS = (*(f"GW{n}" for n in range(1, 19)), *(f"CP{n}" for n in (4, 9, 10, 15, 16)))
NAMED = re.compile(r"`(tests/[\w/.]+)(?:::(test_\w+))?`")


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("**/*.md")), ids=lambda p: p.name)
def test_the_tests_that_a_page_names_exist(page: Path) -> None:
    for path, test in NAMED.findall(page.read_text()):
        assert (ROOT / path).exists(), path
        if test:
            assert f"def {test}(" in (ROOT / path).read_text(), f"{path}::{test}"


def test_the_faults_of_the_agents_page_are_named() -> None:
    assert len(NAMED.findall((ROOT / "docs/agents.md").read_text())) > 20


def test_every_claim_of_the_security_page_names_a_test() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    table = page.partition("| claim | test |")[2].partition("\n\n")[0]
    claims = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(claims) > 20
    assert [claim for claim in claims if not any(test for _, test in NAMED.findall(claim))] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("**/*.md")), ids=lambda p: p.name)
def test_no_page_was_left_half_merged(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert not [line for line in lines if line.startswith(("<<<<<<< ", ">>>>>>> "))]


def test_the_settings_page_lists_what_may_change_while_a_process_runs() -> None:
    page = (ROOT / "docs/settings.md").read_text()
    for group, base in GROUPS.items():
        names = ", ".join(f"`{name}`" for name in live_names(type(base)))
        assert f"| `{group}` | {names} |" in page


def test_every_setting_that_a_page_names_is_one() -> None:
    """Such as `router.policy`, or --router.policy. Spans are named alike, and modules, and what
    gateways ask a coordinator."""
    asked = ("transfer.begin", "transfer.report", "transfer.move", "transfer.evacuate")
    others = [*(span.name for span in SPANS), "*.py", *asked]
    unknown = {
        f"{page.name}: {name}"
        for page in (ROOT / "docs").glob("*.md")
        for name in SETTING.findall(page.read_text())
        if name not in SETTINGS and not any(fnmatchcase(name, other) for other in others)
    }
    assert unknown == set()


@pytest.mark.parametrize(
    ("page", "prefix", "count"),
    [
        ("planner", "AS", 21),
        ("engines", "EN", 13),
        ("speculation", "SD", 13),
        ("hardware", "HW", 11),
        ("router", "KR", 22),
    ],
)
def test_every_requirement_names_what_shows_it(page: str, prefix: str, count: int) -> None:
    rows = re.findall(
        rf"^\| ({prefix}\d+) \|.*\|(.*)\|$", (ROOT / f"docs/{page}.md").read_text(), re.MULTILINE
    )
    assert [name for name, _ in rows] == [f"{prefix}{number}" for number in range(1, count + 1)]
    assert all("`tests/" in shown for _, shown in rows)


def test_every_requirement_of_the_gateway_has_a_test_on_its_page() -> None:
    page = (ROOT / "docs/gateway.md").read_text()
    rows = dict(re.findall(r"^\| ((?:GW|CP)\d+) \| (.*)$", page, re.MULTILINE))
    assert tuple(rows) == GATEWAY_REQUIREMENTS
    assert all(NAMED.search(row) for row in rows.values())
