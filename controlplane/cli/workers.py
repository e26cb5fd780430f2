"""`tokenplane workers`: who is there, in which state, and how busy."""

from __future__ import annotations

import json
from collections.abc import Sequence

import anyio
from pydantic import Field
from rich.console import Console

from controlplane.cli.run import run_interactive
from controlplane.client.cluster import Cluster
from controlplane.console.board import Activity
from controlplane.local.running import located
from controlplane.local.view import workers_table
from controlplane.runtime.settings import CommonSettings
from proto.ids import WorkerId

PROG = "tokenplane workers"


class Workers(CommonSettings):
    """Show the workers of a cluster, as the registry has them and as they report themselves."""

    model: str = Field("", description="only those of this model")
    wait_s: float = Field(0.6, ge=0, description="how long to listen for their load reports")
    as_json: bool = Field(False, alias="json", description="JSON instead of a table")


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    return run_interactive(PROG, Workers, workers, argv)


async def workers(settings: Workers) -> None:
    """Ask, listen, and print. Raises `CannotServe`, `BusUnavailable`, `StoreUnavailable`."""
    async with Cluster.connected(located(settings)) as cluster:
        fleet = await cluster.workers(settings.model)
        activity: dict[WorkerId, Activity] = {}
        async with cluster.loads() as loads:
            with anyio.move_on_after(settings.wait_s):
                while len(activity) < len(fleet):
                    report = await anext(loads)
                    activity.setdefault(report.worker, Activity()).add(report, anyio.current_time())
    if settings.as_json:
        print(json.dumps([record.model_dump(mode="json") for record in fleet]))
        return
    Console().print(workers_table({record.worker: record for record in fleet}, activity))
