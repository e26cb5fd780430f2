"""What is wrong with NATS and etcd, as far as a client can tell."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from controlplane.doctor.findings import Finding, find
from controlplane.doctor.greetings import Contact, NatsGreeting, distrust, greet_nats, knock
from controlplane.runtime.settings import BusSettings, StoreSettings, host_of, port_of
from proto.subjects import Keys
from proto.wire.errors import BusError, StoreError
from proto.wire.ports import Bus, Store

ASK_S = 2.0
PROBE_TTL_S = 10
FULL = 0.9
NATS_PORT, ETCD_PORT = 4222, 2379
REFUSED = (
    "authentication failed",
    "user name is empty",
    "authentication is not enabled",
    "invalid user",
    "invalid auth token",
)


class _Limits(msgspec.Struct, frozen=True):
    max_storage: int = -1


class _Account(msgspec.Struct, frozen=True):
    """JetStream's answer about our account."""

    storage: int = 0
    limits: _Limits = _Limits()


async def greet_buses(settings: BusSettings) -> list[Finding]:
    """Each NATS server alone: the client would find one that works and keep silent."""
    found = []
    for server in settings.servers:
        greeting = await greet_nats(host_of(server), port_of(server) or NATS_PORT)
        tls = server.startswith("tls:") or settings.ca is not None or settings.cert is not None
        found += await _bus_findings(server_name(server), greeting, tls, settings)
    return found


async def _bus_findings(
    server: str, greeting: NatsGreeting, tls: bool, settings: BusSettings
) -> list[Finding]:
    if greeting.contact is Contact.NOBODY:
        return [find("nats-unreachable", f"nothing listens at {server}")]
    if greeting.info is None:
        return [find("nats-not-nats", f"{server} does not greet as a NATS server does")]
    found = []
    if greeting.info.tls_required and not tls:
        found.append(find("nats-tls", f"{server} wants TLS, and no nats.ca is set"))
    if tls and not greeting.info.tls_required:
        found.append(find("nats-tls", f"{server} has no TLS, and the settings ask for it"))
    if not greeting.info.jetstream:
        found.append(find("jetstream-off", f"{server} has no JetStream"))
    return found


def no_bus(settings: BusSettings, error: BusError) -> Finding:
    """Why the client was not let in, where each server was reached."""
    text = str(error)
    if "authorization" in text.lower() or "authentication" in text.lower():
        who = f"user {settings.user}" if settings.user else "nobody by name"
        return find("nats-credentials", f"NATS refused us as {who}")
    if "permissions" in text.lower():
        return find("nats-rights", f"NATS lets user {settings.user} not listen: {text}")
    if "certificate" in text.lower() or "ssl" in text.lower() or "tls" in text.lower():
        return find("nats-tls", text)
    return find("nats-unreachable", text)


async def ask_bus(bus: Bus) -> list[Finding]:
    """How full JetStream is."""
    try:
        answer = await bus.request("$JS.API.INFO", b"", timeout_s=ASK_S)
        account = msgspec.json.decode(answer.data, type=_Account)
    except (BusError, msgspec.DecodeError):
        return []  # no JetStream, which its greeting said; or we may not ask
    most = account.limits.max_storage
    if most > 0 and account.storage > FULL * most:
        return [find("jetstream-full", f"JetStream holds {account.storage:,} of {most:,} bytes")]
    return []


async def greet_stores(settings: StoreSettings) -> list[Finding]:
    """Each etcd endpoint alone."""
    found = []
    tls = settings.ca is not None or settings.cert is not None
    for endpoint in settings.endpoints:
        host, port = host_of(endpoint), port_of(endpoint) or ETCD_PORT
        contact = await knock(host, port)
        if contact is Contact.NOBODY:
            found.append(find("etcd-unreachable", f"nothing listens at {endpoint}"))
        elif contact is Contact.TLS and not tls:
            found.append(find("etcd-tls", f"{endpoint} wants TLS, and no etcd.ca is set"))
        elif contact is Contact.PLAIN and tls:
            found.append(find("etcd-tls", f"{endpoint} has no TLS, and the settings ask for it"))
        elif tls and (why := await distrust(host, port, settings.ca)):
            found.append(find("etcd-tls", f"the certificate of {endpoint} is not trusted: {why}"))
    return found


async def ask_store(store: Store, keys: Keys, user: str | None) -> list[Finding]:
    """Whether we may read and write; what is written is gone at once."""
    try:
        await store.get(keys.doctor)
        lease = await store.grant(PROBE_TTL_S)
        await store.put(keys.doctor, b"", lease=lease)
        await store.revoke(lease)
    except StoreError as error:
        return [_refusal(str(error), user)]
    return []


def _refusal(text: str, user: str | None) -> Finding:
    who = f"user {user}" if user else "nobody by name"
    if any(word in text for word in REFUSED):
        return find("etcd-credentials", f"etcd refused us as {who}: {text}")
    if "permission denied" in text:
        return find("etcd-rights", f"etcd lets {who} not read and write the cluster's keys")
    if "space exceeded" in text or "NOSPACE" in text:
        return find("etcd-full", f"etcd takes no writes: {text}")
    return find("etcd-unreachable", f"etcd does not answer: {text}")


async def answers(bus: Bus, service: str) -> bool:
    """Whether any replica of a service does."""
    try:
        await bus.request(f"$SRV.PING.{service}", b"", timeout_s=ASK_S)
    except BusError:
        return False
    return True


def server_name(server: str) -> str:
    """An address without user and password."""
    return f"{host_of(server)}:{port_of(server) or NATS_PORT}"


def other_clusters(keys_found: Sequence[str], ours: str) -> list[str]:
    """Names of clusters that etcd knows, from keys below `Keys.every_cluster`."""
    names = {key.split("/")[2] for key in keys_found if key.count("/") > 2}
    return sorted(names - {ours})
