"""Traces in the format published with Mooncake (FAST '25): one JSON object a line.

    {"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [id, ...]}

`hash_ids` names the 512-token blocks of the prompt, the last one perhaps partial: two prompts
that begin with the same ids begin with the same tokens. Lines are in order of time, ties are
common, and their order is kept. A line that does not hold to this is dropped, and counted.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, BinaryIO, cast

import msgspec

TRACE_BLOCK_TOKENS = 512
LINE_BYTES_MAX = 16 << 20
DROPPED_KEPT = 100
"""So many dropped lines are remembered with their reasons; all are counted."""


class TraceUnreadable(Exception):
    """The file cannot be read as a trace at all; names the file and what to do."""


class TraceRequest(msgspec.Struct, frozen=True):
    """One request of a trace; `arrival_s` counts from the trace's own zero."""

    arrival_s: float
    input_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...]


class Dropped(msgspec.Struct, frozen=True):
    """A line (counted from 1) that is not replayed, and why."""

    line: int
    reason: str


@dataclass
class Trace:
    """What a replay is made of, and what was left out of it."""

    name: str
    requests: list[TraceRequest] = field(default_factory=list)
    malformed: int = 0
    too_long: int = 0
    outputs_cut: int = 0
    dropped: list[Dropped] = field(default_factory=list)


def load_trace(
    path: Path, *, limit: int | None = None, context_tokens: int, rate_scale: float = 1.0
) -> Trace:
    """The first `limit` usable requests of a file, arriving `rate_scale` times as fast.

    A prompt that leaves no room in the context for one token of output is dropped, not cut: a
    shortened prompt would be another request. An output that does not fit is cut to what does.
    Raises `TraceUnreadable`.
    """
    trace = Trace(path.name)
    for line, item in read(path):
        if limit is not None and len(trace.requests) >= limit:
            break
        if isinstance(item, Dropped):
            trace.malformed += 1
            _remember(trace, item)
        elif item.input_tokens >= context_tokens:
            trace.too_long += 1
            reason = f"input_length {item.input_tokens} fills the context of {context_tokens}"
            _remember(trace, Dropped(line, reason))
        else:
            trace.outputs_cut += item.input_tokens + item.output_tokens > context_tokens
            trace.requests.append(_fitted(item, context_tokens, rate_scale))
    return trace


def read(path: Path) -> Iterator[tuple[int, TraceRequest | Dropped]]:
    """Every line of a `.jsonl` or `.jsonl.gz` with its number; blank lines are passed over.

    Raises `TraceUnreadable`, also half-way through a damaged archive.
    """
    try:
        with _open(path) as file:
            yield from _parse(_lines(file))
    except (OSError, EOFError, zlib.error) as error:
        raise TraceUnreadable(f"cannot read the trace {path}: {error}") from error


class _Line(msgspec.Struct):
    timestamp: Annotated[float, msgspec.Meta(ge=0)]
    input_length: Annotated[int, msgspec.Meta(ge=1)]
    output_length: Annotated[int, msgspec.Meta(ge=1)]
    hash_ids: tuple[Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)], ...]


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines, none longer than the limit: what comes after it counts as a line of its own."""
    while line := file.readline(LINE_BYTES_MAX):
        yield line


def _parse(lines: Iterable[bytes]) -> Iterator[tuple[int, TraceRequest | Dropped]]:
    decoder = msgspec.json.Decoder(_Line)
    last_ms = 0.0
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            line = decoder.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            yield number, Dropped(number, str(error))
            continue
        if reason := _contradiction(line, last_ms):
            yield number, Dropped(number, reason)
            continue
        last_ms = line.timestamp
        yield (
            number,
            TraceRequest(
                line.timestamp / 1000, line.input_length, line.output_length, line.hash_ids
            ),
        )


def _contradiction(line: _Line, last_ms: float) -> str:
    """Why a well-formed line cannot be true; empty if it can."""
    blocks = -(-line.input_length // TRACE_BLOCK_TOKENS)
    if len(line.hash_ids) != blocks:
        return (
            f"input_length {line.input_length} makes {blocks} blocks of {TRACE_BLOCK_TOKENS}, "
            f"but there are {len(line.hash_ids)} hash_ids"
        )
    if line.timestamp < last_ms:
        return f"timestamp {line.timestamp:g} is before the last one, {last_ms:g}"
    return ""


def _remember(trace: Trace, dropped: Dropped) -> None:
    if len(trace.dropped) < DROPPED_KEPT:
        trace.dropped.append(dropped)


def _fitted(request: TraceRequest, context_tokens: int, rate_scale: float) -> TraceRequest:
    return msgspec.structs.replace(
        request,
        arrival_s=request.arrival_s / rate_scale,
        output_tokens=min(request.output_tokens, context_tokens - request.input_tokens),
    )
