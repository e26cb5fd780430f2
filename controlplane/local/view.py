"""The live terminal view of a local cluster: one screen, redrawn twice a second."""

from __future__ import annotations

from collections.abc import Mapping

import anyio
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from controlplane.console.board import Activity
from controlplane.local.cluster import LocalCluster
from controlplane.local.fleet import FleetActivity
from controlplane.registry.view import RegistryView
from proto.ids import WorkerId
from proto.workers import WorkerRecord, WorkerState

REDRAW_S = 0.5
BAR_CELLS = 12
STATE_STYLES = {
    WorkerState.READY: "green",
    WorkerState.STARTING: "yellow",
    WorkerState.DRAINING: "yellow",
    WorkerState.UNHEALTHY: "red",
}


async def show(
    cluster: LocalCluster, view: RegistryView, fleet: FleetActivity, console: Console
) -> None:
    """Draw until cancelled."""
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            live.update(screen(cluster, view, fleet, anyio.current_time()), refresh=True)
            await anyio.sleep(REDRAW_S)


def screen(cluster: LocalCluster, view: RegistryView, fleet: FleetActivity, now_s: float) -> Group:
    """The whole view at one moment."""
    return Group(
        _headline(cluster, view, fleet, now_s),
        workers_table(view.workers, fleet.workers),
        _processes(cluster),
        Text("Ctrl-C stops everything", style="dim"),
    )


def workers_table(
    records: Mapping[WorkerId, WorkerRecord], activity: Mapping[WorkerId, Activity]
) -> Table:
    """One row a worker, as the registry and its own load reports have it."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("worker", "state", "model"):
        table.add_column(name)
    for name in ("running", "waiting", "queued prefill"):
        table.add_column(name, justify="right")
    table.add_column("KV blocks")
    table.add_column("cached", justify="right")
    for worker in sorted(records):
        record = records[worker]
        latest = activity.get(worker, Activity()).latest
        state = Text(record.state.value, style=STATE_STYLES[record.state])
        if latest is None:
            table.add_row(worker, state, record.model, "-", "-", "-", "-", "-")
            continue
        hit_rate = activity[worker].hit_rate
        table.add_row(
            worker,
            state,
            record.model,
            str(latest.running),
            str(latest.waiting),
            f"{latest.queued_prefill_tokens:,}",
            _bar(latest.used_blocks, latest.total_blocks),
            "-" if hit_rate is None else f"{hit_rate:.0%}",
        )
    return table


def _headline(
    cluster: LocalCluster, view: RegistryView, fleet: FleetActivity, now_s: float
) -> Text:
    line = Text()
    line.append(f"{cluster.options.name}", style="bold")
    line.append(f"  {cluster.url}/v1  console {cluster.console_url}")
    line.append(f"  model {cluster.model!r}")
    line.append(f"  {fleet.requests_per_s(now_s):.1f} requests/s")
    line.append(f"  {fleet.completed:,} completed")
    if fleet.failed:
        line.append(f"  {fleet.failed:,} failed", style="red")
    if view.stale_since is not None:
        line.append(f"  topology is {now_s - view.stale_since:.0f} s old", style="yellow")
    return line


def _processes(cluster: LocalCluster) -> Text:
    line = Text("processes ", style="dim")
    for name, child in cluster.supervisor.children.items():
        line.append(name, style="green" if child.ready else "red")
        if child.restarts:
            line.append(f" (restarted {child.restarts}x)", style="yellow")
        line.append("  ")
    return line


def _bar(used: int, total: int) -> Text:
    share = used / total if total else 0.0
    filled = round(share * BAR_CELLS)
    style = "red" if share > 0.95 else "cyan"
    bar = Text("█" * filled, style=style)
    bar.append("░" * (BAR_CELLS - filled), style="dim")
    bar.append(f" {used:,}/{total:,}")
    return bar
