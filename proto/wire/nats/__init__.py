"""The bus on NATS: the only package that knows nats-py."""

from proto.wire.nats.bus import NatsBus
from proto.wire.nats.near import NearBus
from proto.wire.nats.settings import NatsSettings

__all__ = ["NatsBus", "NatsSettings", "NearBus"]
