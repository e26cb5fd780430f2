"""`tokenplane certs FOLDER`: an authority for development, and certificates that it signs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg

from controlplane.access.certificates import Pair, authority, issue, read
from controlplane.access.nats import users_of
from controlplane.runtime.process import EXIT_BAD_SETTINGS, EXIT_FAILED, EXIT_OK
from controlplane.runtime.settings import CommandSettings, SettingsError, load
from proto.ids import BadName, WorkerId, check_name

PROG = "tokenplane certs"
AUTHORITY = "ca"
SERVERS = ("nats", "etcd", "gateway")
HERE = ("localhost", "127.0.0.1", "::1")


class Certs(CommandSettings):
    """Make certificates for development: `ca.pem`, one for each server and one for each user.
    The authority is made once; another run signs what it is asked for by the same."""

    folder: CliPositionalArg[Path] = Field(description="where they go")
    cluster: str = Field("local", description="name of the cluster; part of the authority's name")
    hosts: tuple[str, ...] = Field(
        (), description="names and addresses of servers, beside localhost and nats, etcd, gateway"
    )
    workers: tuple[str, ...] = Field(
        (), description="workers whose agents get one each; else agents share one"
    )
    days: int = Field(30, ge=1, le=825, description="how long they are good")
    as_json: bool = Field(False, alias="json", description="say what was made as JSON")


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    try:
        settings = load(Certs, argv, prog=PROG)
        users = users_of([WorkerId(check_name(name, "worker")) for name in settings.workers])
    except (SettingsError, BadName) as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_SETTINGS
    try:
        settings.folder.mkdir(parents=True, exist_ok=True)
        signer = _authority(settings)
        for server in SERVERS:
            hosts = [*HERE, server, *settings.hosts]
            issue(signer, server, hosts, settings.days).write(settings.folder, f"{server}-server")
        for user in users:
            issue(signer, user, (), settings.days).write(settings.folder, user)
    except (OSError, ValueError) as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return EXIT_FAILED
    if settings.as_json:
        made = {"authority": AUTHORITY, "servers": [*SERVERS], "users": [*users]}
        print(json.dumps({"folder": str(settings.folder), **made}))
    else:
        print(f"{settings.folder}: {AUTHORITY}.pem, {', '.join(SERVERS)} and {', '.join(users)}")
    return EXIT_OK


def _authority(settings: Certs) -> Pair:
    if (settings.folder / f"{AUTHORITY}.key").exists():
        return read(settings.folder, AUTHORITY)
    made = authority(settings.cluster, settings.days)
    made.write(settings.folder, AUTHORITY)
    return made
