"""The carriers that keep the contract, each on the event loops it runs on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from proto.wire.memory.bus import MemoryHub
from proto.wire.nats import NatsBus, NearBus
from tests.contract.bus.carriers import (
    EVERY_CARRIER,
    Carrier,
    Connect,
    memory_connect,
    quick_settings,
)
from tests.support.nats_server import NatsServer, nats_server


@pytest.fixture(params=EVERY_CARRIER, ids=str)
def carrier(request: pytest.FixtureRequest) -> Carrier:
    assert isinstance(request.param, Carrier)
    return request.param


@pytest.fixture
def anyio_backend(carrier: Carrier) -> tuple[str, dict[str, bool]]:
    return carrier.backend


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path) as running:
        yield running


@pytest.fixture
def ack_wait_s() -> float:
    """Longer than any test: nothing comes again without being given back."""
    return 300.0


@pytest.fixture
def connect(carrier: Carrier, ack_wait_s: float, request: pytest.FixtureRequest) -> Connect:
    """`async with connect(name) as bus`: a client of one and the same server."""
    if carrier.kind == "memory":
        return memory_connect(MemoryHub(ack_wait_s=ack_wait_s))
    server: NatsServer = request.getfixturevalue("server")
    bus = NearBus if carrier.kind == "near" else NatsBus
    return lambda name: bus(quick_settings(server, name=name, ack_wait_s=ack_wait_s))
