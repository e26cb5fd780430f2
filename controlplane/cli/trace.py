"""`tokenplane trace ID`: every span of one request, as a tree.

Spans are read back from where the cluster sends them: the store that `tokenplane up` keeps in its
console, or a Jaeger (`--jaeger`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated
from urllib.parse import quote

import anyio
import msgspec
from pydantic import AfterValidator, Field
from pydantic_settings import CliPositionalArg
from rich.console import Console
from rich.table import Table
from rich.text import Text

from controlplane.cli.run import run_interactive
from controlplane.local.layout import Layout
from controlplane.runtime.service import CannotServe
from controlplane.runtime.settings import ClusterName, CommandSettings
from controlplane.runtime.traces import Span, from_jaeger, tree, walk
from proto.ids import check_name
from proto.wire.errors import HttpError
from proto.wire.http import HttpClient
from proto.wire.ports import Http

PROG = "tokenplane trace"
LOOKBACK = "48h"
BAR_CELLS = 30
SPANS = msgspec.json.Decoder(list[Span])
SHOWN = (
    "tokenplane.worker", "tokenplane.policy", "tokenplane.attempt", "tokenplane.overlap_blocks",
    "tokenplane.outcome", "tokenplane.rejected", "tokenplane.ticket", "error.type",
)  # fmt: skip
"""Attributes that fit on a line; `--json` has all."""


class NoTrace(CannotServe):
    """There are no spans to show."""


class TraceCommand(CommandSettings):
    """Show the spans of one request: what was done for it, by whom, and how long it took."""

    id: CliPositionalArg[Annotated[str, AfterValidator(lambda name: check_name(name, "id"))]] = (
        Field(description="of the request (x-request-id) or of the trace")
    )
    cluster: ClusterName = Field(
        "local", description="name of the cluster, where it runs on this machine"
    )
    store: str | None = Field(
        None, description="URL of a console that keeps spans; else that of the cluster"
    )
    jaeger: str | None = Field(
        None, description="URL of a Jaeger to ask instead, such as http://127.0.0.1:16686"
    )
    wait_s: float = Field(
        3.0, ge=0, description="how long to wait for spans: they are sent in batches, once a second"
    )
    as_json: bool = Field(False, alias="json", description="JSON instead of a tree")


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    return run_interactive(PROG, TraceCommand, trace, argv)


async def trace(settings: TraceCommand) -> None:
    """Fetch, and print. Raises `NoTrace`."""
    async with HttpClient() as http:
        spans = await _wait_for(http, settings)
    if not spans:
        raise NoTrace(
            f"no spans of {settings.id!r} are known: is it the x-request-id of an answer, and not"
            " of long ago? Only a share of the requests may be traced (telemetry.sample_ratio)"
        )
    if settings.as_json:
        print(msgspec.json.encode(spans).decode())
    else:
        Console().print(table(spans))


async def _wait_for(http: Http, settings: TraceCommand) -> list[Span]:
    """Until the root is there, or for as long as it takes spans to come."""
    spans: list[Span] = []
    with anyio.move_on_after(settings.wait_s):
        while not any(span.parent == "" for span in spans):
            spans = await _fetch(http, settings)
            await anyio.sleep(0.3)
    return spans


async def _fetch(http: Http, settings: TraceCommand) -> list[Span]:
    if settings.jaeger:
        return await _from_jaeger(http, settings.jaeger.rstrip("/"), settings.id)
    store = settings.store or _console_of(settings.cluster)
    body = await _get(http, f"{store.rstrip('/')}/api/trace/{quote(settings.id)}")
    return SPANS.decode(body)


async def _from_jaeger(http: Http, url: str, name: str) -> list[Span]:
    tags = quote(json.dumps({"tokenplane.request": name}))
    path = f"/api/traces?service=gateway&limit=1&lookback={LOOKBACK}&tags={tags}"
    spans = from_jaeger(_json(await _get(http, url + path)))
    if spans or len(name) != 32:
        return spans
    return from_jaeger(_json(await _get(http, f"{url}/api/traces/{name}", missing=b"{}")))


def _json(body: bytes) -> Mapping[str, object]:
    return msgspec.json.decode(body, type=dict[str, object])


async def _get(http: Http, url: str, missing: bytes | None = None) -> bytes:
    try:
        async with http.exchange("GET", url) as response:
            body = await response.read()
    except HttpError as error:
        raise NoTrace(f"cannot read spans: {error}") from error
    if response.status == 404 and missing is not None:
        return missing
    if response.status != 200:
        raise NoTrace(
            f"{url} answered {response.status}: does that one keep spans? A console does so with"
            " --console.spans_max; `tokenplane up --otlp` sends them elsewhere (--jaeger)"
        )
    return body


def _console_of(cluster: str) -> str:
    state = Layout.of(cluster).read_state()
    if state is None or "console" not in state:
        raise NoTrace(
            f"no cluster {cluster!r} runs on this machine; say where spans are kept, with --store"
            " (a console) or --jaeger"
        )
    return str(state["console"])


def table(spans: Sequence[Span]) -> Table:
    """A row a span: whose, when, how long, and the most telling of its attributes."""
    begin = min(span.start_ns for span in spans)
    whole = max(1, max(span.end_ns for span in spans) - begin)
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("span", "service"):
        grid.add_column(head, no_wrap=True)
    grid.add_column("ms", justify="right", no_wrap=True)
    grid.add_column("", no_wrap=True)
    grid.add_column("", overflow="fold")
    for depth, span in walk(tree(spans)):
        style = "red" if span.failed else ""
        name = Text(f"{'  ' * depth}{span.name}", style=f"bold {style}".strip())
        facts = "  ".join(
            f"{key.rpartition('.')[2]}={span.attributes[key]}"
            for key in SHOWN
            if key in span.attributes
        )
        grid.add_row(
            name, span.service, f"{span.ms:,.2f}", _bar(span, begin, whole), Text(facts, "dim")
        )
        for event in span.events:
            grid.add_row(Text(f"{'  ' * depth}  · {event}", style="dim"))
    return grid


def _bar(span: Span, begin_ns: int, whole_ns: int) -> Text:
    start = BAR_CELLS * (span.start_ns - begin_ns) // whole_ns
    cells = max(1, round(BAR_CELLS * (span.end_ns - span.start_ns) / whole_ns))
    start = min(start, BAR_CELLS - 1)
    cells = min(cells, BAR_CELLS - start)
    return Text(" " * start + "━" * cells + " " * (BAR_CELLS - start - cells), "cyan")
