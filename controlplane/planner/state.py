"""What a planner knows that another one goes on from: after a restart, or where it takes over.

Requests come again by themselves (the durable stream keeps what was not acknowledged); what took
long to learn, and what is under way, is stored.
"""

from __future__ import annotations

from collections import deque

import msgspec

from controlplane.capacity import Kept, WorkerClass
from controlplane.planner.core import Model, PlannerCore
from controlplane.planner.correction import Correction
from controlplane.planner.forecast import Bin
from controlplane.planner.phase import PhaseMemory
from controlplane.planner.transition import Transition
from proto.workers import Role

VERSION = 1


class KeptPhase(msgspec.Struct, frozen=True):
    """Of one phase."""

    role: Role
    wanted: dict[str, int]
    decided: bool
    transition: Transition | None
    start_s: float
    peaks: dict[str, float] = {}
    peaks_s: float = 0.0


class KeptModel(msgspec.Struct, frozen=True):
    """Of one model."""

    bins: list[Bin]
    season: list[float]
    began_s: float
    factor: float
    phases: list[KeptPhase]


class PlannerState(msgspec.Struct, frozen=True):
    """All of it, as the store keeps it."""

    version: int
    saved_s: float
    decisions: int
    models: dict[str, KeptModel]
    capacities: list[tuple[WorkerClass, Kept]]


class StateUnusable(ValueError):
    """What is stored is of another kind; says why."""


def state_of(core: PlannerCore, now_s: float) -> bytes:
    """What `restore` goes on from."""
    return msgspec.json.encode(
        PlannerState(
            version=VERSION,
            saved_s=now_s,
            decisions=core.decisions,
            models={name: _kept(model) for name, model in core.models.items()},
            capacities=list(core.capacities.kept().items()),
        )
    )


def restore(core: PlannerCore, data: bytes, now_s: float) -> None:
    """Go on from there. Raises `StateUnusable`, and then nothing has changed."""
    try:
        state = msgspec.json.decode(data, type=PlannerState)
    except msgspec.DecodeError as error:
        raise StateUnusable(str(error)) from error
    if state.version != VERSION:
        raise StateUnusable(f"version {state.version}, this build reads {VERSION}")
    core.decisions = max(core.decisions, state.decisions)
    core.capacities.restore(dict(state.capacities))
    for name, kept in state.models.items():
        model = core.model(name, now_s)
        model.history.bins = deque(kept.bins)
        model.history.season = list(kept.season)
        model.history.began_s = kept.began_s
        model.correction = Correction(now_s, kept.factor)
        model.phases = {phase.role: _memory(phase) for phase in kept.phases}


def _kept(model: Model) -> KeptModel:
    return KeptModel(
        bins=list(model.history.bins),
        season=model.history.season,
        began_s=model.history.began_s,
        factor=model.correction.factor,
        phases=[
            KeptPhase(
                role,
                memory.wanted,
                memory.decided,
                memory.transition,
                memory.start_s,
                memory.peaks,
                memory.peaks_s,
            )
            for role, memory in model.phases.items()
        ],
    )


def _memory(kept: KeptPhase) -> PhaseMemory:
    return PhaseMemory(
        wanted=dict(kept.wanted),
        decided=kept.decided,
        transition=kept.transition,
        start_s=kept.start_s,
        peaks=dict(kept.peaks),
        peaks_s=kept.peaks_s,
    )
