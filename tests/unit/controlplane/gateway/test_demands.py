"""What a client may demand of its worker, header by header."""

from __future__ import annotations

import msgspec
import pytest

from controlplane.gateway.demands import constraints_of, workload_of
from controlplane.gateway.openai import Api, ClientError, read
from controlplane.gateway.tenants import ANONYMOUS, Tenant
from proto.constraints import UNCONSTRAINED, Constraints
from proto.ids import WorkerId

MESSAGES = [{"role": "user", "content": "x"}]
TOPOLOGY, WORKERS = "x-tokenplane-topology", "x-tokenplane-workers"


def test_nothing_said_is_nothing_demanded() -> None:
    assert constraints_of({}, ANONYMOUS) is UNCONSTRAINED


def test_what_is_said_is_demanded() -> None:
    headers = {TOPOLOGY: " zone = eu-1,rack=7 ", WORKERS: "engine-0, engine-3"}
    assert constraints_of(headers, Tenant(pins=True, tolerations=("spot",))) == Constraints(
        only=(WorkerId("engine-0"), WorkerId("engine-3")),
        topology=(("rack", "7"), ("zone", "eu-1")),
        tolerations=("spot",),
    )


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({TOPOLOGY: "zone"}, "label=value"),
        ({TOPOLOGY: "=x"}, "label=value"),
        ({TOPOLOGY: "zone="}, "label=value"),
        ({TOPOLOGY: "zone=a,,rack=b"}, "label=value"),
        ({WORKERS: "a b"}, "worker 'a b'"),
        ({WORKERS: "a,"}, "worker ''"),
        ({WORKERS: ",".join(["w"] * 65)}, "at most 64"),
    ],
)
def test_what_cannot_be_understood_is_refused(headers: dict[str, str], says: str) -> None:
    with pytest.raises(ClientError, match=says) as refused:
        constraints_of(headers, ANONYMOUS)
    assert (refused.value.status, refused.value.code) == (400, "invalid_header")


def test_pins_are_for_those_who_may() -> None:
    with pytest.raises(ClientError, match="tenant acme") as refused:
        constraints_of({WORKERS: "engine-0"}, Tenant(name="acme"))
    assert (refused.value.status, refused.value.code) == (403, "pins_not_allowed")


@pytest.mark.parametrize(
    ("api", "body", "kind", "sampled"),
    [
        (Api.COMPLETIONS, {"prompt": "x"}, "completion", True),
        (Api.COMPLETIONS, {"prompt": "x", "guided_json": {}}, "structured", True),
        (Api.COMPLETIONS, {"prompt": "x", "structured_outputs": None}, "completion", True),
        (Api.CHAT, {"messages": MESSAGES, "temperature": 0.0}, "chat", False),
        (Api.CHAT, {"messages": MESSAGES, "tools": [{}]}, "tools", True),
        (
            Api.CHAT,
            {"messages": MESSAGES, "tools": [{}], "response_format": {"type": "json_object"}},
            "structured",
            True,
        ),
        (Api.CHAT, {"messages": MESSAGES, "response_format": {"type": "text"}}, "chat", True),
        (
            Api.RESPONSES,
            {"input": "x", "text": {"format": {"type": "json_schema"}}},
            "structured",
            True,
        ),
    ],
)
def test_what_work_it_is_shows_in_the_body(
    api: Api, body: dict[str, object], kind: str, sampled: bool
) -> None:
    """EN6."""
    ask = read(api, msgspec.json.encode({"model": "m", **body}))
    assert (ask.kind, ask.sampled) == (kind, sampled)
    assert workload_of({}, ask) == (kind,)


def test_a_client_may_say_more_of_its_work() -> None:
    ask = read(Api.COMPLETIONS, b'{"model": "m", "prompt": "x"}')
    headers = {"x-tokenplane-workload": "portable, batch, completion"}
    assert workload_of(headers, ask) == ("completion", "portable", "batch")
    with pytest.raises(ClientError, match="workload 'a b'"):
        workload_of({"x-tokenplane-workload": "a b"}, ask)
