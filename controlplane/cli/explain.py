"""`tokenplane explain REQUEST_ID`: why a request went where it went.

Asks every router of the cluster; whoever made the decision remembers it for a while.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

import anyio
import msgspec
from pydantic import Field
from pydantic_settings import CliPositionalArg
from rich.console import Console
from rich.table import Table

from controlplane.cli.run import run_interactive
from controlplane.local.running import located
from controlplane.runtime.carriers import open_bus
from controlplane.runtime.service import CannotServe
from controlplane.runtime.settings import CommonSettings
from proto.codec import Producer, Reader, Unreadable
from proto.decisions import Decision, Explained, ExplainRequest
from proto.ids import Incarnation, RequestId, ServiceId
from proto.route import Term
from proto.subjects import Subjects
from proto.wire.ports import Bus

PROG = "tokenplane explain"
CANDIDATES_SHOWN = 20


class NotRemembered(CannotServe):
    """No router knows of the request."""


class Explain(CommonSettings):
    """Show what routers weighed for a request: every candidate, its terms, and who was chosen."""

    request: CliPositionalArg[str] = Field(description="its id: the x-request-id of the answer")
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


async def ask_routers(
    bus: Bus, subjects: Subjects, request: RequestId, wait_s: float
) -> list[Decision]:
    """What all routers together remember of a request, first attempt first."""
    producer = Producer(ServiceId(f"explain-{secrets.token_hex(4)}"), Incarnation(1), lambda: 0.0)
    reader = Reader[Explained](Explained)
    found: list[Decision] = []
    async with bus.subscribe(subjects.explained(request)) as answers:
        await bus.publish(subjects.explain, producer.seal(ExplainRequest(request)))
        with anyio.move_on_after(wait_s):
            async for answer in answers:
                try:
                    found += reader.open(answer.data).body.decisions
                except Unreadable as error:
                    print(f"{PROG}: skipping an answer: {error}", file=sys.stderr)
    return sorted(found, key=lambda decision: (decision.attempt, decision.time_s))


def _show(decisions: Sequence[Decision]) -> None:
    console = Console()
    for decision in decisions:
        made = datetime.fromtimestamp(decision.time_s, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        console.print(
            f"attempt {decision.attempt} at {made} UTC by {decision.router}, policy "
            f"[bold]{decision.policy}[/]: {decision.prompt_tokens:,} prompt tokens of "
            f"{decision.model} to [bold green]{decision.worker}[/]"
        )
        console.print(_table(decision))


def _table(decision: Decision) -> Table:
    weighed = [term for term in decision.terms if not term.excluded]
    values = list(weighed[0].values) if weighed else []
    grid = Table()
    grid.add_column("worker")
    for name in ("cost", "overlap blocks", "queued tokens", "decode blocks", "requests", *values):
        grid.add_column(name, justify="right")
    for term in weighed[:CANDIDATES_SHOWN]:
        style = "bold green" if term.worker == decision.worker else ""
        grid.add_row(term.worker, *_cells(term, values), style=style)
    if len(weighed) > CANDIDATES_SHOWN:
        grid.add_row(f"and {len(weighed) - CANDIDATES_SHOWN} dearer ones")
    for term in decision.terms:
        if term.excluded:
            grid.add_row(term.worker, f"[yellow]{term.excluded}[/]")
    return grid


def _cells(term: Term, values: Sequence[str]) -> list[str]:
    counts = (term.overlap_blocks, term.queued_prefill_tokens, term.decode_blocks, term.requests)
    return [
        f"{term.cost:,.4g}",
        *(f"{count:,}" for count in counts),
        *(f"{term.values[name]:,.4g}" for name in values),
    ]
