"""The document of the bus has every subject, and its types are those that are sent."""

from __future__ import annotations

import inspect
import json
import re

import msgspec
import pytest

from handbook.asyncapi import WORDS, address, channels, page
from proto.subjects import Subjects


def test_every_subject_is_in_the_document() -> None:
    subjects = Subjects(WORDS["cluster"])
    known = {address(channel.subject) for channel in channels(subjects)}
    for name, member in inspect.getmembers(Subjects):
        if name.startswith(("_", "every")) or name.endswith(("_stream", "_bucket")):
            continue
        if isinstance(member, property):
            subject = member.fget(subjects)  # type: ignore[misc]
        else:
            wanted = list(inspect.signature(member).parameters)[1:]
            subject = getattr(subjects, name)(*(WORDS[each] for each in wanted))
        assert name == "everything" or address(subject) in known, name


@pytest.fixture(scope="module")
def document() -> dict[str, dict[str, dict[str, object]]]:
    loaded: dict[str, dict[str, dict[str, object]]] = json.loads(page())
    return loaded


def test_every_reference_leads_somewhere(document: dict[str, dict[str, dict[str, object]]]) -> None:
    references = set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document)))
    assert len(references) > 40
    for reference in references:
        here: object = document
        for part in reference.split("/"):
            assert isinstance(here, dict) and part in here, reference
            here = here[part]


def test_schemas_are_those_of_the_types() -> None:
    for channel in channels(Subjects("c")):
        for kind in (*channel.says, *channel.answers):
            assert issubclass(kind, msgspec.Struct) or hasattr(kind, "model_json_schema")
