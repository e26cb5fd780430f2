"""Which engine for which work, as declared rules: whom to take out, whom to take first, and why.

A request says what work it is (`RouteRequest.workload`: `structured`, `tools`, `portable`, ...). A
rule for such work may *exclude* engines or *need* a capability: then workers without are out of the
question. And it may *prefer* engines, in order: of the workers that are free, only those of the
best engine there is are weighed, so a preference never makes a request wait. Where rules disagree
on whom to prefer, the first one counts. Pure.

Routers go by them, and so does a gateway that must choose by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from proto.route import RouteRequest
from proto.workers import WorkerRecord


class EngineRule(BaseModel):
    """One rule; `reason` is what decisions are explained by."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workload: str = Field(min_length=1)
    prefer: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    need: tuple[str, ...] = ()
    reason: str = Field(min_length=1)

    @model_validator(mode="after")
    def _says_something(self) -> EngineRule:
        if not (self.prefer or self.exclude or self.need):
            raise ValueError("a rule must prefer or exclude an engine, or need a capability")
        if both := set(self.prefer) & set(self.exclude):
            raise ValueError(f"{', '.join(sorted(both))}: both preferred and excluded")
        return self


DEFAULT_RULES = (
    EngineRule(
        workload="structured",
        prefer=("sglang",),
        reason="structured output: SGLang keeps grammars and shared prefixes cheap",
    ),
    EngineRule(
        workload="portable",
        exclude=("trtllm",),
        reason="portability: TensorRT-LLM runs on NVIDIA's hardware only",
    ),
)


class Preference(NamedTuple):
    """Whom to weigh of some workers, and why."""

    kept: Sequence[bool]
    reason: str


class EngineRules:
    """The rules of a router, or of a gateway that finds none."""

    def __init__(self, rules: Sequence[EngineRule]) -> None:
        self._rules = rules

    def demanding(self, workload: Collection[str]) -> bool:
        """Whether some workers may be out of the question for such work."""
        return any(rule.exclude or rule.need for rule in self._of(workload))

    def preferring(self, workload: Collection[str]) -> bool:
        """Whether some engines come first for such work."""
        return any(rule.prefer for rule in self._of(workload))

    def refuses(self, request: RouteRequest, record: WorkerRecord) -> str:
        """Why the worker cannot do this work, "" if it can."""
        able = {*record.capabilities, record.hardware.precision}
        for rule in self._of(request.workload):
            if record.engine in rule.exclude:
                return f"engine {record.engine} ({rule.reason})"
            if missing := [need for need in rule.need if need not in able]:
                return f"no {missing[0]} ({rule.reason})"
        return ""

    def preference(self, workload: Collection[str], engines: Sequence[str]) -> Preference | None:
        """Whom to prefer among free workers with these engines; None: no matter."""
        for rule in self._of(workload):
            best = next((engine for engine in rule.prefer if engine in engines), None)
            if best is not None:
                reason = f"engine {best} preferred ({rule.reason})"
                return Preference([engine == best for engine in engines], reason)
        return None

    def _of(self, workload: Collection[str]) -> Sequence[EngineRule]:
        return [rule for rule in self._rules if rule.workload in workload] if workload else ()
