"""Every span and attribute that the code names is in the table, and every one of the table is
made somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch

from controlplane.runtime.spans import ATTRIBUTES, SPANS
from handbook.pages import ROOT

STARTED = re.compile(r'(?:start(?:_as_current)?_span\(|_open\(|\bstep\(spans,)\s*f?"([\w.{]+)')
NAMED = re.compile(r'"((?:tokenplane|gen_ai|error)\.[a-z_.]+)"')
NO_ATTRIBUTES = {
    "tokenplane.gateway", "tokenplane.router", "tokenplane.transfer", "tokenplane.agent",
    "tokenplane.planner", "tokenplane.scaler", "tokenplane.part", "tokenplane.role",
    "tokenplane.model", "tokenplane.hardware", "tokenplane.filters", "tokenplane.policies",
}  # fmt: skip
"""Names of tracers, of entry points and of labels."""


def sources() -> Iterator[str]:
    for folder in ("controlplane", "agents"):
        for file in (ROOT / folder).rglob("*.py"):
            if file.parent.name != "runtime":  # the table itself, and an example
                yield file.read_text()


def test_every_span_that_is_started_is_in_the_table() -> None:
    started = {name for text in sources() for name in STARTED.findall(text)}
    assert len(started) >= 6
    known = {span.name for span in SPANS}
    for name in started:
        whole = name.replace("{", "*")
        assert whole in known or any(fnmatch(name, each) for each in known), name


def test_every_span_of_the_table_is_started_somewhere() -> None:
    started = {name.split("{")[0] for text in sources() for name in STARTED.findall(text)}
    for span in SPANS:
        assert span.name.rstrip("*") in started, span.name


def test_every_attribute_is_in_the_table_and_every_one_of_the_table_is_set() -> None:
    used = {name for text in sources() for name in NAMED.findall(text)}
    of_spans = {name for span in SPANS for name in span.attributes}
    assert of_spans <= set(ATTRIBUTES)
    assert used - set(ATTRIBUTES) - NO_ATTRIBUTES == set(), "not in runtime/spans.py"
    assert set(ATTRIBUTES) - used == set(), "set nowhere"
