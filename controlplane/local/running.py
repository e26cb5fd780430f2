"""Where the cluster is that a command is about, when it runs on this machine."""

from __future__ import annotations

from typing import TypeVar

from controlplane.local.layout import Layout
from controlplane.runtime.settings import BusSettings, CommonSettings, StoreSettings

S = TypeVar("S", bound=CommonSettings)


def located(settings: S) -> S:
    """The settings, with the addresses of the cluster of that name that `tokenplane up` runs here;
    as they are if none runs, or if they name a NATS or an etcd themselves."""
    if settings.model_fields_set & {"nats", "etcd"}:
        return settings
    state = Layout.of(settings.cluster).read_state()
    if state is None:
        return settings
    addresses = {
        "nats": BusSettings(servers=(state["nats"],)),
        "etcd": StoreSettings(endpoints=(state["etcd"],)),
    }
    return settings.model_copy(update=addresses)
