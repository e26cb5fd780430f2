"""What is wrong with the settings, and with the machine that they are for."""

from __future__ import annotations

import errno
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from controlplane.doctor.findings import Finding, find
from controlplane.doctor.greetings import Contact, knock
from controlplane.gateway.settings import GatewaySettings
from controlplane.runtime.settings import CommonSettings, host_of, is_loopback, port_of

FREE_BYTES = 1 << 30
HTTP_PORT, OTLP_PORT = 80, 4318


def read_settings(common: CommonSettings, gateway: GatewaySettings) -> Iterator[Finding]:
    """What the settings alone show."""
    if common.development_secret:
        yield find(
            "development-secret", "no cluster secret is set, and everybody knows the default"
        )
    if gateway.tenants is None and not is_loopback(gateway.host):
        where = f"{gateway.host}:{gateway.port}"
        yield find("gateway-open", f"whoever reaches {where} may ask: no keys are configured")


def look_at_ports(common: CommonSettings, gateway: GatewaySettings) -> Iterator[Finding]:
    """Ports that a gateway would listen on with these settings."""
    wanted = {"gateway.port": (gateway.host, gateway.port)}
    wanted |= {"admin.port": (common.admin.host, common.admin.port)}
    for setting, (host, port) in wanted.items():
        if port and (why := _taken(host, port)):
            yield find("port-taken", f"{setting} {host}:{port} cannot be had: {why}")


def look_at_disk(folder: Path) -> Iterator[Finding]:
    """Room where a local cluster keeps what NATS and etcd store."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(there).free
    if free < FREE_BYTES:
        yield find("disk-low", f"{free >> 20:,} MiB are free at {there}")


async def look_for_collector(endpoint: str | None) -> list[Finding]:
    """Whether anybody listens where traces go."""
    if not endpoint:
        return []
    contact = await knock(host_of(endpoint), port_of(endpoint) or OTLP_PORT)
    if contact is Contact.NOBODY:
        return [find("collector-unreachable", f"nothing listens at {endpoint}")]
    return []


def _taken(host: str, port: int) -> str:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return (error.strerror or str(error)).lower()
    return ""
