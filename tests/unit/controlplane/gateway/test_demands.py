"""What a client may demand of its worker, header by header."""

from __future__ import annotations

import pytest

from controlplane.gateway.demands import constraints_of
from controlplane.gateway.openai import ClientError
from controlplane.gateway.tenants import ANONYMOUS, Tenant
from proto.constraints import UNCONSTRAINED, Constraints
from proto.ids import WorkerId

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
