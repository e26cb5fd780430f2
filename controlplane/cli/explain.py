"""`tokenplane explain REQUEST_ID`: why a request went where it went.

Asks every router of the cluster; whoever made the decision remembers it for a while.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import msgspec
from pydantic import AfterValidator, Field
from pydantic_settings import CliPositionalArg
from rich.console import Console
from rich.table import Table
from rich.text import Text

from controlplane.cli.run import run_interactive
from controlplane.local.running import located
from controlplane.runtime.asking import ask_routers
from controlplane.runtime.carriers import open_bus
from controlplane.runtime.service import CannotServe
from controlplane.runtime.settings import CommonSettings
from proto.decisions import Decision
from proto.ids import RequestId, check_name
from proto.route import Term
from proto.subjects import Subjects

PROG = "tokenplane explain"
SHOWN_MAX = 20
"""Workers of a kind: a decision fits on a screen."""
HEADS = {
    "overlap_blocks": "overlap blocks",
    "host_blocks": "in host memory",
    "disk_blocks": "on disk",
    "queued_prefill_tokens": "queued tokens",
    "decode_blocks": "decode blocks",
}


class NotRemembered(CannotServe):
    """No router knows of the request."""


def _request_id(name: str) -> str:
    return check_name(name, "request")


class Explain(CommonSettings):
    """Show what routers weighed for a request: every candidate, its terms, and who was chosen."""

    request: CliPositionalArg[Annotated[str, AfterValidator(_request_id)]] = Field(
        description="its id: the x-request-id of the answer"
    )
    wait_s: float = Field(1.0, gt=0, description="how long to wait for routers to answer")
    as_json: bool = Field(False, alias="json", description="JSON instead of tables")


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    return run_interactive(PROG, Explain, explain, argv)


async def explain(settings: Explain) -> None:
    """Ask, and print. Raises `NotRemembered`, `BusUnavailable`."""
    request = RequestId(settings.request)
    async with open_bus(located(settings), "explain") as bus:
        decisions = await ask_routers(bus, Subjects(settings.cluster), request, settings.wait_s)
    if not decisions:
        raise NotRemembered(
            f"no router of cluster {settings.cluster!r} remembers {request!r}: is it the "
            "x-request-id of an answer, and not one of long ago? A gateway that found no router "
            "has chosen by itself (its policy is `fallback`)"
        )
    if settings.as_json:
        print(msgspec.json.encode(decisions).decode())
    else:
        _show(decisions)


def _show(decisions: Sequence[Decision]) -> None:
    console = Console()
    for decision in decisions:
        console.print(headline(decision))
        if decision.terms:
            console.print(table(decision))


def headline(decision: Decision) -> Text:
    """One line: what was asked, and what came of it."""
    made = datetime.fromtimestamp(decision.time_s, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    line = Text(f"attempt {decision.attempt} at {made} UTC by {decision.router}: ")
    line.append(f"{decision.prompt_tokens:,} prompt tokens of {decision.model} ")
    if decision.workload:
        line.append(f"({', '.join(decision.workload)}) ")
    if decision.worker is None:
        return line.append("turned away, ").append(decision.reason, style="bold red")
    line.append("to ").append(decision.worker, style="bold green")
    line.append(", policy ").append(decision.policy, style="bold")
    return line.append(f"; {decision.engine_choice}" if decision.engine_choice else "")


def table(decision: Decision) -> Table:
    """Workers as the policy saw them, the cheapest first, and those that were excluded."""
    weighed = [term for term in decision.terms if not term.excluded]
    excluded = [term for term in decision.terms if term.excluded]
    columns = _columns(weighed)
    grid = Table(box=None, pad_edge=False, header_style="bold")
    grid.add_column("worker")
    for name in columns:
        grid.add_column(name, justify="right")
    for term, *cells in zip(weighed[:SHOWN_MAX], *columns.values(), strict=False):
        style = "bold green" if term.worker == decision.worker else ""
        grid.add_row(Text(term.worker), *cells, style=style)
    if len(weighed) > SHOWN_MAX:
        grid.add_row(Text(f"and {len(weighed) - SHOWN_MAX} dearer ones", style="dim"))
    for term in excluded[:SHOWN_MAX]:
        grid.add_row(Text(term.worker, style="dim"), Text(term.excluded, style="yellow"))
    if len(excluded) > SHOWN_MAX:
        grid.add_row(Text(f"and {len(excluded) - SHOWN_MAX} more excluded", style="dim"))
    if decision.left_out:
        grid.add_row(Text(f"and {decision.left_out} more that are not told of", style="dim"))
    return grid


def _columns(weighed: Sequence[Term]) -> dict[str, list[str]]:
    """What is told of each worker; of the slower tiers only if any of them holds something."""
    slower = ("host_blocks", "disk_blocks")
    tiers = [tier for tier in slower if any(getattr(term, tier) for term in weighed)]
    counts = ("overlap_blocks", *tiers, "queued_prefill_tokens", "decode_blocks", "requests")
    values = weighed[0].values if weighed else {}
    return (
        {"cost": [f"{term.cost:,.4g}" for term in weighed]}
        | {HEADS.get(name, name): [f"{getattr(t, name):,}" for t in weighed] for name in counts}
        | {name: [f"{term.values[name]:,.4g}" for term in weighed] for name in values}
    )
