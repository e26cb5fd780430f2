"""Filters: who cannot take a request at all. The first that says so gives the reason.

There are three kinds. A worker's *standing* is the same for every request: it is asked for once,
when the worker's record or report changes. *Constraints* (`proto.constraints`) are the same for
many requests: what comes of them is kept until a worker changes. A *demand* is asked for at the
decision, and only if the request makes that demand at all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from proto.load import LoadReport
from proto.route import RouteLeg, RouteRequest
from proto.workers import Role, WorkerRecord, WorkerState

Standing = Callable[[WorkerRecord, LoadReport | None], str]
"""Why a worker can take no request, "" if it can. The load report is the worker's last one, None
if there is none that still counts."""


class Demand(NamedTuple):
    """Something that a request may ask of its worker."""

    made: Callable[[RouteRequest, Collection[int]], bool]
    """Whether the request asks for it, given the block sizes of the workers there are."""
    refuses: Callable[[RouteRequest, WorkerRecord], str]
    """Why the worker cannot take this request, "" if it can."""


Filter = Callable[[RouteRequest, WorkerRecord], str]
"""A demand that users add: why the worker cannot take this request, "" if it can. It is asked for
every request and worker, so it must be quick."""


def state(record: WorkerRecord, report: LoadReport | None) -> str:
    """The registry's word: only ready workers are chosen."""
    del report
    return "" if record.state is WorkerState.READY else record.state.value


def health(record: WorkerRecord, report: LoadReport | None) -> str:
    """The agent's word, which comes sooner than the registry's."""
    del record
    if report is None or (report.healthy and not report.draining):
        return ""
    return WorkerState.DRAINING.value if report.healthy else WorkerState.UNHEALTHY.value


def part(leg: RouteLeg, record: WorkerRecord) -> str:
    """A worker that only prefills gives no answers; only such a one prefills for others."""
    if leg is RouteLeg.PREFILL:
        return "" if record.role is Role.PREFILL else "not_for_prefill"
    return "prefill_only" if record.role is Role.PREFILL else ""


def just_failed(request: RouteRequest, record: WorkerRecord) -> str:
    """The caller has just failed on it."""
    return "just_failed" if record.worker in request.exclude else ""


def block_size(request: RouteRequest, record: WorkerRecord) -> str:
    """The prompt was named for other block sizes than this worker's: what it holds of it cannot
    be known. A prompt without any names may go anywhere."""
    return "" if record.block_tokens in request.blocks else "block_size"


STANDINGS: tuple[Standing, ...] = (state, health)
DEMANDS: tuple[Demand, ...] = (
    Demand(lambda request, _: bool(request.exclude), just_failed),
    Demand(
        lambda request, sizes: bool(request.blocks) and not request.blocks.keys() >= set(sizes),
        block_size,
    ),
)


def standing(record: WorkerRecord, report: LoadReport | None) -> str:
    """The first standing reason against the worker, "" if there is none."""
    for each in STANDINGS:
        if reason := each(record, report):
            return reason
    return ""


def demands(request: RouteRequest, block_sizes: Collection[int]) -> Sequence[Demand]:
    """The demands that this request makes of workers with these block sizes."""
    return [demand for demand in DEMANDS if demand.made(request, block_sizes)]
