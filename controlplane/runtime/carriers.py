"""The real carriers of a process: NATS, etcd, HTTP and ZeroMQ behind their ports."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass

from pydantic import SecretStr

from controlplane.runtime.settings import BusSettings, CommonSettings, StoreSettings
from controlplane.runtime.tls import client_context
from proto.subjects import Keys
from proto.wire.errors import StoreRefused, StoreUnavailable
from proto.wire.etcd.connection import EtcdSettings
from proto.wire.etcd.store import EtcdStore
from proto.wire.http import HttpClient, HttpServer
from proto.wire.nats import NatsBus, NatsSettings, NearBus
from proto.wire.ports import Bus, Frames, Http, HttpServing, Store
from proto.wire.zmq import ZmqFrames

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Carriers:
    """What a service may be given of the world."""

    bus: Bus
    store: Store
    http: Http
    frames: Frames
    server: HttpServing


@asynccontextmanager
async def open_carriers(settings: CommonSettings, client_name: str) -> AsyncIterator[Carriers]:
    """Connect to NATS and etcd as `client_name`, and close everything at the end.

    Raises `BusUnavailable`, `StoreUnavailable` or `StoreRefused` when a server cannot be used at
    the start; the text names it and says what to do. Once open, carriers wait for servers that
    go away and reconnect by themselves.
    """
    http, nats = settings.http, nats_settings(settings.nats, client_name)
    log.info(
        "connecting to NATS at %s and etcd at %s",
        nats.addresses,
        ", ".join(settings.etcd.endpoints),
    )
    connect = NearBus if settings.asks_itself else NatsBus
    with closing(ZmqFrames()) as frames:
        async with (
            HttpClient(client_context(http.ca, http.cert, http.key)) as client,
            EtcdStore(etcd_settings(settings.etcd)) as store,
            connect(nats) as bus,
        ):
            await _check(store, settings)
            yield Carriers(bus, store, client, frames, HttpServer())


@asynccontextmanager
async def open_bus(settings: CommonSettings, client_name: str) -> AsyncIterator[Bus]:
    """NATS alone, for commands that only ask. Raises `BusUnavailable`."""
    async with NatsBus(nats_settings(settings.nats, client_name)) as bus:
        yield bus


@asynccontextmanager
async def open_engines() -> AsyncIterator[tuple[Http, Frames]]:
    """What reaches engines, for commands that ask nobody else."""
    with closing(ZmqFrames()) as frames:
        async with HttpClient() as http:
            yield http, frames


async def _check(store: Store, settings: CommonSettings) -> None:
    """An etcd client connects when it is first used: use it now, so that a wrong address ends
    the start and not a request."""
    where = ", ".join(settings.etcd.endpoints)
    try:
        await store.get(Keys(settings.cluster).workers)
    except StoreUnavailable as error:
        raise StoreUnavailable(f"{error}; is etcd running, and is etcd.endpoints right?") from error
    except StoreRefused as error:
        raise StoreRefused(
            f"etcd at {where} refused us: {error}; check etcd.user and etcd.password, "
            f"and that the user may read and write /tp/{settings.cluster}/"
        ) from error


def nats_settings(settings: BusSettings, client_name: str) -> NatsSettings:
    return NatsSettings(
        servers=settings.servers,
        connect_s=settings.connect_s,
        replicas=settings.replicas,
        name=client_name,
        user=settings.user,
        password=_plain(settings.password),
        token=_plain(settings.token),
        credentials=settings.credentials,
        ca=settings.ca,
        cert=settings.cert,
        key=settings.key,
    )


def etcd_settings(settings: StoreSettings) -> EtcdSettings:
    return EtcdSettings(
        endpoints=settings.endpoints,
        call_s=settings.call_s,
        user=settings.user,
        password=_plain(settings.password),
        ca=settings.ca,
        cert=settings.cert,
        key=settings.key,
    )


def _plain(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None
