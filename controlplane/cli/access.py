"""`tokenplane access`: who may do what on NATS and etcd, put where these servers look for it."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from typing import Literal

import anyio
from pydantic import Field, SecretStr
from pydantic_settings import CliPositionalArg

from controlplane.access import etcd
from controlplane.access.nats import configuration, password_variable, users_of
from controlplane.runtime.carriers import etcd_settings
from controlplane.runtime.process import EXIT_BAD_SETTINGS, EXIT_FAILED, EXIT_OK
from controlplane.runtime.settings import CommandSettings, SettingsError, StoreSettings, load
from proto.ids import BadName, WorkerId, check_name
from proto.wire.errors import StoreError
from proto.wire.etcd.users import ROOT, put_in_place

PROG = "tokenplane access"
PASSWORD_BYTES = 24


class AccessSettings(CommandSettings):
    """Who may do what: `nats` prints the users of a NATS server, to be included in its
    configuration; `etcd` puts users and roles into etcd; `passwords` prints new ones for all, as
    environment variables, which the other two and the servers read."""

    what: CliPositionalArg[Literal["nats", "etcd", "passwords"]] = Field(
        description="nats, etcd or passwords"
    )
    cluster: str = Field("local", description="name of the cluster")
    workers: tuple[str, ...] = Field(
        (),
        description="workers that get a user each and speak for themselves alone; else agents "
        "share one",
    )
    own_routers: bool = Field(
        False, description="nats: gateways decide by themselves (gateway.own_router)"
    )
    as_json: bool = Field(False, alias="json", description="what it prints as JSON")
    etcd: StoreSettings = Field(StoreSettings(), description="How to reach etcd; its user is root")


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    try:
        settings = load(AccessSettings, argv, prog=PROG)
        workers = [WorkerId(check_name(name, "worker")) for name in settings.workers]
        if settings.what == "nats":
            text = configuration(settings.cluster, workers, own_routers=settings.own_routers)
            sys.stdout.write(_json(configuration=text) if settings.as_json else text)
        elif settings.what == "passwords":
            lines = new_passwords(workers)
            words = dict(line.split("=", 1) for line in lines.splitlines())
            sys.stdout.write(_json(**words) if settings.as_json else lines)
        else:
            users = anyio.run(_to_etcd, settings, workers)
            if settings.as_json:
                sys.stdout.write(_json(users=users))
            else:
                sys.stderr.write(f"etcd knows {', '.join(users)}, and asks who is there\n")
    except (SettingsError, BadName) as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_SETTINGS
    except StoreError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK


def new_passwords(workers: Sequence[WorkerId]) -> str:
    """Fresh random ones for every user, and the cluster secret, as lines NAME=WORD."""
    names = [*users_of(workers), "sys", "route", "etcd_root"]
    lines = [f"{password_variable(name)}={secrets.token_hex(PASSWORD_BYTES)}" for name in names]
    secret = f"TOKENPLANE_SECRET={secrets.token_hex(PASSWORD_BYTES)}"
    return "".join(f"{line}\n" for line in [secret, *lines])


def _json(**fields: object) -> str:
    return json.dumps(fields) + "\n"


async def _to_etcd(settings: AccessSettings, workers: Sequence[WorkerId]) -> list[str]:
    granted = etcd.users(settings.cluster, workers)
    passwords = _passwords([*granted, "etcd_root"])
    root = settings.etcd.model_copy(
        update={"user": ROOT, "password": SecretStr(passwords["etcd_root"])}
    )
    await put_in_place(etcd_settings(root), granted, passwords)
    return list(granted)


def _passwords(names: Sequence[str]) -> Mapping[str, str]:
    passwords = {name: os.environ.get(password_variable(name), "") for name in names}
    if missing := [password_variable(name) for name, word in passwords.items() if not word]:
        raise SettingsError(
            f"{PROG}: {', '.join(missing)} not set; `{PROG} passwords` makes new ones"
        )
    return passwords
