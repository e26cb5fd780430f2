"""The scheduler of the simulated engine: prompts that share blocks, too little memory, clients that
leave, and the events that a reader builds its picture from.

At any moment: no more blocks in use than there are, and what events tell is what is cached. Once
all is served: every request that was not given up has its whole answer, and no block is in use.
"""

from __future__ import annotations

import random

from tests.schedules.network import NONE, Network, demand
from workers.sim.cache import Removed, Stored
from workers.sim.engine import Engine
from workers.sim.request import ProgressKind, Request
from workers.sim.timing import Profile, StepCost

BLOCK_TOKENS = 4
COST = StepCost(
    decode_base_ms=3.1,
    decode_sequence_ms=0.2,
    decode_kv_token_ms=0.02,
    prefill_floor_ms=4.3,
    prefill_base_ms=0.9,
    prefill_token_ms=0.5,
    prefill_knee_token_ms=0.3,
    attention_pair_ms=0.003,
    prefill_knee_tokens=6,
)


def play(rng: random.Random, trace: list[str] | None = None) -> None:
    """One history. Raises `Violation`."""
    world = _World(Network(rng, NONE, trace))
    for number in range(rng.randrange(2, 14)):
        if number and rng.random() < 0.2:
            world.cancel(rng.randrange(number))
        else:
            world.submit(number)
        world.run(rng.randrange(120) * 0.00123457)
    while world.run_to_the_next():
        pass
    world.check_over()


class _World:
    """An engine, its clients, and a reader of its events."""

    def __init__(self, network: Network) -> None:
        rng = network.rng
        seqs = rng.randrange(1, 6)
        profile = Profile("test", 0, COST, rng.randrange(seqs, 21), seqs)
        self._network = network
        self._engine = Engine(
            profile,
            block_tokens=BLOCK_TOKENS,
            blocks=rng.randrange(14, 41),
            closed_form=rng.random() < 0.5,
        )
        self._asked: dict[int, Request] = {}
        self._whole: set[int] = set()
        self._cancelled: set[int] = set()
        self._live: set[int] = set()

    def submit(self, number: int) -> None:
        rng = self._network.rng
        prompt_tokens, output_tokens = rng.randrange(1, 25), rng.randrange(1, 31)
        path, hashes = 1, []
        for _ in range((prompt_tokens + output_tokens) // BLOCK_TOKENS):
            path = 3 * path + rng.randrange(2)
            hashes.append(path)
        request = Request(
            number,
            prompt_tokens,
            hashes[: prompt_tokens // BLOCK_TOKENS],
            output_tokens,
            hashes.__getitem__ if rng.random() < 0.5 else None,
        )
        self._network.say("asked:", number, prompt_tokens, output_tokens, hashes)
        self._asked[number] = request
        self._engine.submit(request, self._network.now_s)
        self._look()

    def cancel(self, number: int) -> None:
        self._network.say("given up:", number)
        self._cancelled.add(number)
        self._engine.cancel(number, self._network.now_s)
        self._look()

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self._network.run(seconds)
        for told in self._engine.advance(self._network.now_s):
            assert isinstance(told.id, int)
            self._network.say("told:", told.id, told.kind, told.output_tokens)
            demand(told.id not in self._whole, "more after the end of", told.id)
            if told.kind is ProgressKind.FINISHED:
                self._whole.add(told.id)
                asked = self._asked[told.id].output_tokens
                demand(told.output_tokens == asked, "cut short:", told.id, told.output_tokens)
        self._look()

    def run_to_the_next(self) -> bool:
        """Until something is due; False: nothing ever is."""
        next_s = self._engine.next_event_s()
        if next_s is None:
            return False
        self.run(max(0.0, next_s - self._network.now_s))
        return True

    def check_over(self) -> None:
        """Raises `Violation`."""
        load = self._engine.load()
        demand((load.running, load.waiting, load.used_blocks) == (0, 0, 0), "not over:", load)
        missing = self._asked.keys() - self._whole - self._cancelled
        demand(not missing, "never answered:", missing)

    def _look(self) -> None:
        for event in self._engine.take_cache_events():
            if isinstance(event, Stored):
                demand(self._live.isdisjoint(event.names), "stored twice:", event)
                self._live.update(event.names)
            elif isinstance(event, Removed):
                demand(self._live.issuperset(event.names), "removed, and was not there:", event)
                self._live.difference_update(event.names)
            else:
                self._live.clear()
        load = self._engine.load()
        demand(load.used_blocks <= load.total_blocks, "more blocks than there are:", load)
        demand(self._live == set(self._engine.cached_names()), "events tell of another cache")
