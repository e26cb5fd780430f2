"""Policies and filters that are not ours: whatever they do, a router goes on deciding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.router.filters import Filter
from controlplane.router.policies.base import (
    Candidates,
    Floats,
    Overlap,
    Policy,
    Prompt,
    State,
    Weighed,
)
from proto.route import RouteRequest
from proto.workers import WorkerRecord


class PolicyFailed(Exception):
    """A user's policy has raised, or what it gave back cannot be used; says which."""


def guarded_policy(weigh: Policy) -> Policy:
    """The policy, but it cannot write to what it is shown, and what it gives back can be used or
    `PolicyFailed` is raised."""

    def weigh_safely(prompt: Prompt, candidates: Candidates, state: State) -> Weighed:
        try:
            found = weigh(prompt, _read_only(candidates), state)
            weighed = found if isinstance(found, Weighed) else Weighed(found)
            costs = _column(weighed.costs)
            values = {str(name): _column(each) for name, each in weighed.values.items()}
        except Exception as error:
            raise PolicyFailed(f"{type(error).__name__}: {error}") from error
        rows = len(candidates)
        for column in (costs, *values.values()):
            if column.shape != (rows,):
                raise PolicyFailed(f"{column.shape} numbers for {rows} candidates")
        if np.isnan(costs).any() or np.isneginf(costs).any() or not np.isfinite(costs).any():
            raise PolicyFailed("costs must be numbers, and at least one of them finite")
        return Weighed(costs, values)

    return weigh_safely


def guarded_filter(name: str, refuses: Filter, fault: Callable[[str, str], None]) -> Filter:
    """The filter, but where it fails it refuses, and `fault` is told its name and why: what it
    would have kept from happening must not happen because of a bug."""

    def refuses_safely(request: RouteRequest, record: WorkerRecord) -> str:
        try:
            reason = refuses(request, record)
        except Exception as error:  # noqa: BLE001 - somebody else's code may raise anything
            fault(name, f"{type(error).__name__}: {error}")
            return f"{name}_failed"
        if not isinstance(reason, str):
            fault(name, f"gave {reason!r} in place of a reason, or of an empty text for none")
            return f"{name}_failed"
        return reason

    return refuses_safely


def _read_only(candidates: Candidates) -> Candidates:
    """The same numbers; they are the router's own, which all later decisions look at."""
    columns = {
        each.name: _shown(column)
        for each in fields(candidates)
        if isinstance(column := getattr(candidates, each.name), np.ndarray)
    }
    return replace(
        candidates,
        workers=tuple(candidates.workers),
        overlap=Overlap(*map(_shown, candidates.overlap)),
        **columns,
    )


def _shown(column: NDArray[Any]) -> NDArray[Any]:
    view = column.view()
    view.flags.writeable = False
    return view


def _column(numbers: object) -> Floats:
    return np.asarray(numbers, dtype=np.float64)
