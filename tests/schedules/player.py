"""Plays histories by seed and tells of those that go wrong."""

from __future__ import annotations

import os
import random
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import NamedTuple

from tests.fuzz import bus, frames, texts
from tests.schedules import engine, index, ledger, planner, tickets

Play = Callable[[random.Random, list[str] | None], None]
CORES: Mapping[str, Play] = {
    "engine": engine.play,
    "index": index.play,
    "ledger": ledger.play,
    "planner": planner.play,
    "tickets": tickets.play,
}
INPUTS: Mapping[str, Play] = {
    "bodies": texts.bodies,
    "bus": bus.play,
    "frames": frames.play,
    "records": texts.records,
    "settings": texts.settings,
    "traces": texts.traces,
}
GROUPS = {"cores": CORES, "inputs": INPUTS}
WORLDS = {**CORES, **INPUTS}
TURNS = 64
SELDOM = {"planner": 1, "settings": 4}
"""Worlds in which a history takes many times as long as in others, and their turns among those."""
PIECE = 500
"""Schedules that a process plays at a time."""


class Failure(NamedTuple):
    """A history that went wrong."""

    world: str
    seed: int
    text: str
    """Word by word, why, and how to see it again."""


def turns(group: str) -> Sequence[str]:
    """The worlds of a group, in turn."""
    return [world for world in sorted(GROUPS[group]) for _ in range(SELDOM.get(world, TURNS))]


def play(world: str, seed: int) -> Failure | None:
    """One history; what went wrong with it, if anything did."""
    went_wrong = _play(world, seed, None)
    return Failure(world, seed, told(world, seed)) if went_wrong else None


def told(world: str, seed: int) -> str:
    """One history, word by word."""
    trace: list[str] = []
    went_wrong = _play(world, seed, trace)
    again = f"again: python -m tests.schedules --world {world} --seed {seed}"
    return "\n".join((*trace, went_wrong, again)) + "\n"


def play_piece(worlds: Sequence[str], first: int, count: int) -> Failure | None:
    """So many histories, the worlds taking turns; the first that goes wrong."""
    for number in range(first, first + count):
        if failure := play(worlds[number % len(worlds)], number):
            return failure
    return None


def play_many(
    worlds: Sequence[str], first: int, count: int, progress: Callable[[int], None]
) -> Failure | None:
    """The same on every core."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        ends = first + count
        pieces = {
            pool.submit(play_piece, worlds, start, min(PIECE, ends - start)): min(
                PIECE, ends - start
            )
            for start in range(first, ends, PIECE)
        }
        played = 0
        for done in as_completed(pieces):
            if failure := done.result():
                pool.shutdown(cancel_futures=True)
                return failure
            played += pieces[done]
            progress(played)
    return None


def _play(world: str, seed: int, trace: list[str] | None) -> str:
    """Why it went wrong, "" if it did not."""
    try:
        WORLDS[world](random.Random(f"{world} {seed}"), trace)
    except Exception:  # noqa: BLE001 - whatever it is, it is told with the seed
        return traceback.format_exc()
    return ""
