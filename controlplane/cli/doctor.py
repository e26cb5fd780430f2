"""`tokenplane doctor`: what is wrong with a cluster, or with the settings for one, and the fix."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import anyio
import msgspec
from pydantic import Field, SecretStr
from rich.console import Console
from rich.text import Text

from controlplane.doctor.findings import AILMENTS, Finding, Level
from controlplane.doctor.servers import greet_buses, greet_stores, no_bus
from controlplane.doctor.surroundings import (
    look_at_disk,
    look_at_ports,
    look_for_collector,
    read_settings,
)
from controlplane.doctor.visit import Interrupted, Visit
from controlplane.gateway.settings import GatewaySettings
from controlplane.local.layout import Layout
from controlplane.local.running import located
from controlplane.runtime.carriers import etcd_settings, nats_settings
from controlplane.runtime.settings import CommonSettings, SettingsError, load
from proto.wire.errors import BusError
from proto.wire.etcd.store import EtcdStore
from proto.wire.nats import NatsBus

PROG = "tokenplane doctor"
EXIT_OK, EXIT_FOUND, EXIT_BAD_SETTINGS = 0, 1, 2
COLOURS = {Level.ERROR: "bold red", Level.WARNING: "yellow"}


class Doctor(CommonSettings):
    """Find what is wrong with a cluster, and say what helps. Takes the settings that a process
    would be started with. Exit code 1: something does not work."""

    gateway: GatewaySettings = Field(GatewaySettings(), description="A gateway that is to start")
    listen_s: float = Field(3.0, gt=0, description="how long to listen for load reports")
    ports: bool = Field(False, description="also see whether the gateway's ports can be had here")
    as_json: bool = Field(False, alias="json", description="JSON instead of text")


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    logging.basicConfig(level=logging.CRITICAL)
    try:
        settings = _of_this_machine(load(Doctor, argv, prog=PROG))
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_BAD_SETTINGS
    findings = anyio.run(examine, settings)
    _show(findings, settings)
    return EXIT_FOUND if any(each.level is Level.ERROR for each in findings) else EXIT_OK


def _of_this_machine(settings: Doctor) -> Doctor:
    """With addresses and secret of the cluster that `tokenplane up` runs here, if that is meant."""
    found = located(settings)
    if found is settings or not settings.development_secret:
        return found
    secret = SecretStr(Layout.of(settings.cluster).secret.read_text().strip())
    return found.model_copy(update={"secret": secret})


async def examine(settings: Doctor) -> list[Finding]:
    """Everything that is found, the worst first."""
    found = list(read_settings(settings, settings.gateway))
    if settings.ports:
        found += look_at_ports(settings, settings.gateway)
    found += look_at_disk(Layout.of(settings.cluster).directory)
    found += await look_for_collector(settings.telemetry.otlp_endpoint)
    servers = [*await greet_buses(settings.nats), *await greet_stores(settings.etcd)]
    found += servers
    if not any(each.level is Level.ERROR for each in servers):
        found += await _visit(settings)
    return sorted(found, key=lambda each: (each.level, list(AILMENTS).index(each.code)))


async def _visit(settings: Doctor) -> list[Finding]:
    visit = Visit(settings, settings.listen_s)
    try:
        async with (
            EtcdStore(etcd_settings(settings.etcd)) as store,
            NatsBus(nats_settings(settings.nats, "doctor")) as bus,
        ):
            await visit.fleet(bus, store)
    except BusError as error:
        return [*visit.findings, no_bus(settings.nats, error)]
    except Interrupted as error:
        return [*visit.findings, no_bus(settings.nats, BusError(str(error)))]
    return visit.findings


def _show(findings: Sequence[Finding], settings: Doctor) -> None:
    if settings.as_json:
        sys.stdout.write(msgspec.json.encode({"findings": findings}).decode() + "\n")
        return
    console = Console(soft_wrap=True)
    for each in findings:
        console.print(
            Text.assemble(
                (f"{each.level} ", COLOURS[each.level]), (f"{each.code}: ", "bold"), each.what
            )
        )
        console.print(Text(f"    {each.fix}"))
    if not findings:
        console.print(f"nothing is wrong with cluster {settings.cluster}, as far as can be seen")
