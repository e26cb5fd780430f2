"""`tokenplane up`: NATS, etcd, engines, agents, router and gateway on this machine, supervised."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence

import anyio
import anyio.to_thread
from anyio.abc import TaskStatus
from pydantic import Field
from rich.console import Console

from controlplane.cli.run import run_interactive
from controlplane.local.cluster import LocalCluster, Stages, as_planned, run_cluster
from controlplane.local.fleet import FleetActivity
from controlplane.local.options import ClusterOptions
from controlplane.local.scaler import LocalActuator
from controlplane.local.view import show
from controlplane.planner.scalers.follow import ScalerService
from controlplane.registry.view import RegistryView
from controlplane.runtime.carriers import open_carriers
from controlplane.runtime.tracing import setup_tracing
from proto.subjects import Keys, Subjects
from proto.wire.http import HttpClient
from proto.wire.ports import Http


class Up(ClusterOptions):
    """Start a whole cluster on this machine; Ctrl-C stops all of it."""

    plain: bool = Field(False, description="print a few lines instead of the live view")
    as_json: bool = Field(
        False, alias="json", description="print where everything is as JSON, once it is ready"
    )


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    # Children are started beside an etcd client, whose gRPC would want a word in every fork.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    return run_interactive("tokenplane up", Up, up, argv)


async def up(options: Up, arrange: Callable[[Stages], Stages] = as_planned) -> None:
    """Run a cluster until SIGINT or SIGTERM; a second signal kills what is still stopping."""
    console = Console(stderr=options.as_json)
    hurry = anyio.Event()
    async with anyio.create_task_group() as tasks, HttpClient() as http:
        with anyio.CancelScope() as working:
            tasks.start_soon(_obey_signals, working, hurry)
            console.print("starting NATS, etcd, engines, agents and services ...")
            async with run_cluster(options, http, hurry=hurry, arrange=arrange) as cluster:
                if options.planner:
                    await tasks.start(_scale, cluster, http)
                cluster.say_complete()
                if options.as_json:
                    print(json.dumps(cluster.state()), flush=True)
                else:
                    console.print(_welcome(cluster), soft_wrap=True)
                if console.is_terminal and not (options.plain or options.as_json):
                    await _live_view(cluster, console)
                await anyio.sleep_forever()
        tasks.cancel_scope.cancel()
    console.print("stopped; nothing is left running")


async def _obey_signals(working: anyio.CancelScope, hurry: anyio.Event) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            if working.cancel_called:
                hurry.set()
            working.cancel()


async def _scale(cluster: LocalCluster, http: Http, *, task_status: TaskStatus[None]) -> None:
    """Start and stop engines as the planner wants, until cancelled."""
    settings = cluster.settings()
    flush_traces = setup_tracing("up", settings.telemetry)
    try:
        async with (
            open_carriers(settings, "scaler") as carriers,
            anyio.create_task_group() as tasks,
        ):
            actuator = LocalActuator(cluster, http, tasks)
            service = ScalerService(carriers.store, Keys(settings.cluster), actuator)
            await tasks.start(_run, service)
            task_status.started()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(flush_traces)


async def _run(service: ScalerService, *, task_status: TaskStatus[None]) -> None:
    await service.run(task_status=task_status)


async def _live_view(cluster: LocalCluster, console: Console) -> None:
    """The screen, fed by the cluster's own bus and registry."""
    settings = cluster.settings()
    async with (
        open_carriers(settings, "up") as carriers,
        anyio.create_task_group() as tasks,
    ):
        view = RegistryView(carriers.store, Keys(settings.cluster))
        fleet = FleetActivity(carriers.bus, Subjects(settings.cluster))
        await tasks.start(lambda *, task_status: view.run(task_status=task_status))
        tasks.start_soon(fleet.run)
        await show(cluster, view, fleet, console)


def _welcome(cluster: LocalCluster) -> str:
    url, model = cluster.url, cluster.model
    return (
        f"[bold green]ready[/]  {url}/v1  model [bold]{model}[/]\n"
        f"       {cluster.console_url}  the console\n\n"
        f"  curl {url}/v1/chat/completions -H 'content-type: application/json' \\\n"
        f'    -d \'{{"model": "{model}", "max_tokens": 40, "stream": true,\n'
        '         "messages": [{"role": "user", "content": "Hello"}]}\'\n\n'
        f"[dim]logs and data: {cluster.layout.directory}[/]"
    )
