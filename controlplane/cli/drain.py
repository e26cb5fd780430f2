"""`tokenplane drain WORKER`: let it finish what it has, and send it nothing new."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import anyio
import msgspec
from pydantic import AfterValidator, Field
from pydantic_settings import CliPositionalArg

from controlplane.cli.run import run_interactive
from controlplane.client.cluster import Cluster
from controlplane.local.running import located
from controlplane.runtime.service import CannotServe
from controlplane.runtime.settings import CommonSettings
from proto.ids import check_name

PROG = "tokenplane drain"
POLL_S = 0.5


class StillBusy(CannotServe):
    """The worker has not finished in time."""


class Drain(CommonSettings):
    """Let a worker finish its requests while routers send it no new ones. It stays registered,
    and draining, until its agent stops or `--undo` lets it serve again."""

    worker: CliPositionalArg[Annotated[str, AfterValidator(lambda n: check_name(n, "worker"))]] = (
        Field(description="its name, as `tokenplane workers` shows it")
    )
    undo: bool = Field(False, description="let it serve again")
    wait_s: float = Field(
        0.0, ge=0, description="wait so long until it has finished; fails if it has not"
    )
    as_json: bool = Field(False, alias="json", description="JSON instead of a sentence")


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    return run_interactive(PROG, Drain, drain, argv)


async def drain(settings: Drain) -> None:
    """Say it to the agent, and wait if asked to. Raises `NotThere`, `StillBusy`."""
    async with Cluster.connected(located(settings)) as cluster:
        reply = await cluster.drain(settings.worker, undo=settings.undo)
        with anyio.move_on_after(settings.wait_s):
            while reply.draining and (reply.left or reply.evacuating):
                await anyio.sleep(POLL_S)
                reply = await cluster.drain(settings.worker)
    if settings.as_json:
        print(json.dumps(msgspec.to_builtins(reply)))
    elif reply.draining:
        moving = ", what it caches is being moved" if reply.evacuating else ""
        print(f"{settings.worker} is draining, {reply.left} requests left{moving}")
    else:
        print(f"{settings.worker} serves again")
    if settings.wait_s and reply.draining and reply.left:
        raise StillBusy(f"{settings.worker} still has {reply.left} requests")
