"""`tokenplane access`: who may do what on NATS and etcd, put where these servers look for it."""

from __future__ import annotations

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
from controlplane.runtime.settings import CommandSettings, SettingsError, StoreSettings, load
from proto.ids import BadName, WorkerId, check_name
from proto.wire.errors import StoreError
from proto.wire.etcd.users import ROOT, put_in_place

PROG = "tokenplane access"
EXIT_OK, EXIT_FAILED, EXIT_BAD_SETTINGS = 0, 1, 2
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
    etcd: StoreSettings = Field(StoreSettings(), description="How to reach etcd; its user is root")


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    try:
        settings = load(AccessSettings, argv, prog=PROG)
        workers = [WorkerId(check_name(name, "worker")) for name in settings.workers]
        if settings.what == "nats":
            sys.stdout.write(configuration(settings.cluster, workers))
        elif settings.what == "passwords":
            sys.stdout.write(new_passwords(workers))
        else:
            anyio.run(_to_etcd, settings, workers)
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


async def _to_etcd(settings: AccessSettings, workers: Sequence[WorkerId]) -> None:
    granted = etcd.users(settings.cluster, workers)
    passwords = _passwords([*granted, "etcd_root"])
    root = settings.etcd.model_copy(
        update={"user": ROOT, "password": SecretStr(passwords["etcd_root"])}
    )
    await put_in_place(etcd_settings(root), granted, passwords)
    sys.stderr.write(f"etcd knows {', '.join(granted)}, and asks who is there\n")


def _passwords(names: Sequence[str]) -> Mapping[str, str]:
    passwords = {name: os.environ.get(password_variable(name), "") for name in names}
    if missing := [password_variable(name) for name, word in passwords.items() if not word]:
        raise SettingsError(
            f"{PROG}: {', '.join(missing)} not set; `{PROG} passwords` makes new ones"
        )
    return passwords
