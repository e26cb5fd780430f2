"""What is measured of a decider: its pace under many callers, and where its decisions go."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import anyio
import numpy as np
import psutil

from bench.deciders import Decider, Decision, WrongAnswer
from bench.measure import percentile
from bench.prompts import Prompt
from bench.rig import cpu_s

TOKEN_S = 25e-6
"""What a worker of these trials takes to prefill a token: 8 billion weights on a recent GPU."""


class Pace(NamedTuple):
    """Of many callers that ask one after the other, each giving back what it got."""

    per_s: float
    p50_ms: float
    p99_ms: float
    on_holder: float
    """Share of decisions for the worker that holds the prompt's first half."""
    cpu_us: float
    """Processor time of the servers, a decision."""


class Place(NamedTuple):
    """Where prompts went, and how that served them."""

    on_holder: float
    first_ms: float
    """Mean time from a prompt's arrival to its first token."""


async def pace(
    decider: Decider,
    prompts: Sequence[Prompt],
    passes: int,
    callers: int,
    servers: Sequence[psutil.Process],
) -> Pace:
    """Ask for every prompt `passes` times. Raises `WrongAnswer`."""
    order = iter(list(range(len(prompts))) * passes)
    taken_s: list[float] = []
    holders = 0

    async def call(caller: int) -> None:
        nonlocal holders
        for number in order:
            began_s = time.perf_counter()
            decision = await decider.decide(number, caller)
            taken_s.append(time.perf_counter() - began_s)
            holders += _on_holder(decision, prompts[number])
            await decider.free(decision, caller)

    cpu_before_s, began_s = cpu_s(*servers), time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for caller in range(callers):
            tasks.start_soon(call, caller)
    wall_s, used_s = time.perf_counter() - began_s, cpu_s(*servers) - cpu_before_s
    decisions = len(taken_s)
    return Pace(
        per_s=decisions / wall_s,
        p50_ms=1e3 * percentile(taken_s, 0.5),
        p99_ms=1e3 * percentile(taken_s, 0.99),
        on_holder=holders / decisions,
        cpu_us=1e6 * used_s / decisions,
    )


async def place(
    decider: Decider,
    prompts: Sequence[Prompt],
    order: Sequence[int],
    workers: int,
    load: float,
    callers: int,
    rng: np.random.Generator,
) -> Place:
    """Prompts, in this order, that arrive by chance at workers that prefill one after the other.

    In real time, as what a decider knows of load is of the last seconds. `load` is the share of it
    that the fleet would be busy if every prompt went to its holder. A booking is given back when
    its prompt's prefill ends. Caches stay as they are. Raises `WrongAnswer`.
    """
    free_at_s, idle = [0.0] * workers, list(range(callers))
    limit = anyio.CapacityLimiter(callers)
    waited_s: list[float] = []
    holders = 0

    async def serve(number: int, arrived_s: float) -> None:
        nonlocal holders
        async with a_caller() as caller:
            decision = await decider.decide(number, caller)
        there = _on_holder(decision, prompts[number])
        start_s = max(anyio.current_time(), free_at_s[decision.worker])
        end_s = start_s + _prefill_s(prompts[number], there)
        free_at_s[decision.worker] = end_s
        await anyio.sleep_until(end_s)
        waited_s.append(end_s - arrived_s)
        holders += there
        async with a_caller() as caller:
            await decider.free(decision, caller)

    @asynccontextmanager
    async def a_caller() -> AsyncIterator[int]:
        async with limit:
            caller = idle.pop()
            try:
                yield caller
            finally:
                idle.append(caller)

    gap_s = sum(_prefill_s(prompts[number], True) for number in order) / len(order) / workers / load
    due_s = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for number in order:
            due_s += rng.exponential(gap_s)
            await anyio.sleep_until(due_s)
            tasks.start_soon(serve, number, due_s)
    return Place(holders / len(order), 1e3 * sum(waited_s) / len(order))


class Stay:
    """The decider that never leaves the holder of a prefix, for comparison."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self._prompts = prompts

    async def decide(self, prompt: int, caller: int) -> Decision:
        asked = self._prompts[prompt]
        return Decision(asked.holder, asked.cached_tokens, "")

    async def free(self, decision: Decision, caller: int) -> None:
        """Nothing is booked."""


def _prefill_s(prompt: Prompt, on_holder: bool) -> float:
    return TOKEN_S * (len(prompt.tokens) - prompt.cached_tokens * on_holder)


def _on_holder(decision: Decision, prompt: Prompt) -> bool:
    """Whether it is. Who decides for the holder must know what it holds."""
    if decision.worker != prompt.holder:
        return False
    if decision.cached_tokens < prompt.cached_tokens:
        raise WrongAnswer(f"{decision.cached_tokens} of {prompt.cached_tokens} tokens are known")
    return True
