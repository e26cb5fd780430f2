"""Which services a process is made of."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from controlplane.compose import GatewayProcess, build_gateway
from controlplane.gateway.settings import GatewaySettings
from controlplane.router.settings import RouterSettings
from controlplane.runtime.carriers import Carriers
from controlplane.runtime.process import Kit
from controlplane.runtime.readiness import Readiness
from proto.wire.http import HttpServer
from proto.wire.memory.bus import MemoryHub
from proto.wire.memory.frames import MemoryFrames
from proto.wire.memory.http import MemoryHttp
from proto.wire.memory.store import MemoryEtcd

# A router that is never run leaves a stream of its own unread.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

APART, TOGETHER = GatewaySettings(), GatewaySettings(own_router=True)
CHOSEN = RouterSettings(policy="round_robin")


def parts_of(settings: GatewayProcess) -> list[str]:
    hub, etcd = MemoryHub(), MemoryEtcd()
    bus, store = hub.connect("gateway"), etcd.connect()
    carriers = Carriers(bus, store, MemoryHttp(), MemoryFrames(), HttpServer())
    services = build_gateway(settings, Kit(carriers, CollectorRegistry(), Readiness()))
    return [service.name for service in services]


def test_a_router_of_its_own_is_ready_before_the_gateway_and_drained_after_it() -> None:
    settings = GatewayProcess(gateway=TOGETHER, router=CHOSEN)
    assert parts_of(settings) == ["registry-view", "live-settings", "router", "gateway"]
    assert settings.asks_itself


def test_without_one_there_is_no_router_and_messages_go_over_nats() -> None:
    settings = GatewayProcess(gateway=APART)
    assert parts_of(settings) == ["registry-view", "live-settings", "gateway"]
    assert not settings.asks_itself


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (GatewayProcess(gateway=APART, router=CHOSEN), True),
        (GatewayProcess(gateway=APART), False),
        (GatewayProcess(gateway=TOGETHER, router=CHOSEN), False),
    ],
)
def test_settings_of_a_router_that_is_not_there_are_told(
    settings: GatewayProcess, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    parts_of(settings)
    assert ("set gateway.own_router" in caplog.text) == told
