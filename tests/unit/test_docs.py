"""What the documentation says of the tests is true: those it names are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from controlplane.client.config import GROUPS
from controlplane.runtime.live import live_names

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[\w/.]+)(?:::(test_\w+))?`")


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("**/*.md")), ids=lambda p: p.name)
def test_the_tests_that_a_page_names_exist(page: Path) -> None:
    for path, test in NAMED.findall(page.read_text()):
        assert (ROOT / path).exists(), path
        if test:
            assert f"def {test}(" in (ROOT / path).read_text(), f"{path}::{test}"


def test_the_faults_of_the_agents_page_are_named() -> None:
    assert len(NAMED.findall((ROOT / "docs/agents.md").read_text())) > 20


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("**/*.md")), ids=lambda p: p.name)
def test_no_page_was_left_half_merged(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert not [line for line in lines if line.startswith(("<<<<<<< ", ">>>>>>> "))]


def test_the_settings_page_lists_what_may_change_while_a_process_runs() -> None:
    page = (ROOT / "docs/settings.md").read_text()
    for group, base in GROUPS.items():
        names = ", ".join(f"`{name}`" for name in live_names(type(base)))
        assert f"| `{group}` | {names} |" in page
