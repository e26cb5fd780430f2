"""Filters: who cannot take a request at all. The first that says so gives the reason."""

from __future__ import annotations

from collections.abc import Callable

from proto.load import LoadReport
from proto.route import RouteRequest
from proto.workers import Role, WorkerRecord, WorkerState

Filter = Callable[[RouteRequest, WorkerRecord, LoadReport | None], str]
"""Why a worker of the right model cannot take the request, "" if it can. The load report is the
worker's last one, None if there is none that still counts."""


def state(request: RouteRequest, record: WorkerRecord, report: LoadReport | None) -> str:
    """The registry's word: only ready workers are chosen."""
    del request, report
    return "" if record.state is WorkerState.READY else record.state.value


def health(request: RouteRequest, record: WorkerRecord, report: LoadReport | None) -> str:
    """The agent's word, which comes sooner than the registry's."""
    del request, record
    if report is None or (report.healthy and not report.draining):
        return ""
    return WorkerState.DRAINING.value if report.healthy else WorkerState.UNHEALTHY.value


def role(request: RouteRequest, record: WorkerRecord, report: LoadReport | None) -> str:
    """A worker that only prefills gives no answers."""
    del request, report
    return "prefill_only" if record.role is Role.PREFILL else ""


def failed(request: RouteRequest, record: WorkerRecord, report: LoadReport | None) -> str:
    """The caller has just failed on it."""
    del report
    return "just_failed" if record.worker in request.exclude else ""


def block_size(request: RouteRequest, record: WorkerRecord, report: LoadReport | None) -> str:
    """The prompt was named for other block sizes than this worker's: what it holds of it cannot
    be known. A prompt without any names may go anywhere."""
    del report
    return "block_size" if request.blocks and record.block_tokens not in request.blocks else ""


FILTERS: tuple[Filter, ...] = (state, health, role, failed, block_size)


def refusal(request: RouteRequest, record: WorkerRecord, report: LoadReport | None) -> str:
    """The first filter's reason against the worker, "" if all let it through."""
    for each in FILTERS:
        if reason := each(request, record, report):
            return reason
    return ""
