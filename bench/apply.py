"""apply: events from encoded bytes into an index that holds a million entries already.

Ours are KV batches as agents send them (an envelope, packed names), opened, put in order and
applied as in a router; the peer's are its JSON events. Every block is new when it is stored, and
chains are removed from their ends, as engines evict.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Generic, Literal, NamedTuple, TypeVar

import numpy as np

from bench import peer
from bench.machine import one_core
from bench.match import names_at_random
from bench.measure import OURS, PEER, in_turns
from bench.options import Options
from bench.ours import OurIndex
from bench.peer import PeerIndex
from bench.rows import Bar, Row, row
from proto.hashing import Words

Verb = Literal["stored", "removed"]
E = TypeVar("E")

BARS = (Bar("* an event", "ratio", "at least", 2.0),)
VERBS: tuple[Verb, ...] = ("stored", "removed")
WORKERS = 64
ENTRIES = 1_000_000
CHAIN_BLOCKS = 256
EVENT_BLOCKS = (1, 16, 64)
EVENTS = 4_096


class Side(NamedTuple, Generic[E]):
    """An index, and how it is told of chains: `events(verb, chains, blocks an event)`.

    Who has an answer to `ask` knows of everything applied before.
    """

    apply: Callable[[E], None]
    events: Callable[[Verb, Sequence[Words], int], list[E]]
    ask: Callable[[], object]


def run(options: Options) -> Iterator[Row]:
    """A row for stored and one for removed, for each size of event."""
    rng = np.random.default_rng(0)
    ours, theirs = OurIndex(WORKERS), PeerIndex() if peer.installed() else None
    for worker in range(WORKERS):
        held = names_at_random((ENTRIES // 20 if options.quick else ENTRIES) // WORKERS, rng)
        ours.hold(worker, held)
        if theirs is not None:
            theirs.hold(worker, held)
    ours.rest()
    for event_blocks in EVENT_BLOCKS:
        blocks = (EVENTS // 16 if options.quick else EVENTS) * event_blocks
        chains = [names_at_random(CHAIN_BLOCKS, rng) for _ in range(blocks // CHAIN_BLOCKS)]
        for verb in VERBS:
            ask = partial(ours.match, ours.question(chains[-1]))
            our_side = Side(ours.apply, partial(_our_events, ours), ask)
            sides = {OURS: partial(_blocks_per_s, our_side, verb, chains, event_blocks)}
            if theirs is not None:
                ask_peer = partial(theirs.match, theirs.question(chains[-1]))
                peer_side = Side(partial(_peer_apply, theirs), _peer_events, ask_peer)
                sides[PEER] = partial(_blocks_per_s, peer_side, verb, chains, event_blocks)
            case = f"{verb}, {event_blocks} block{'s' * (event_blocks > 1)} an event"
            figures = in_turns(sides, options.rounds)
            yield row(case, "blocks/s", figures[OURS], figures.get(PEER))
            with one_core():
                figures = in_turns(sides, options.rounds)
            yield row(f"{case}, one core", "blocks/s", figures[OURS], figures.get(PEER))


def _blocks_per_s(side: Side[E], timed: Verb, chains: Sequence[Words], event_blocks: int) -> float:
    """Store everything and remove it again; how fast one of the two was."""
    taken_s = dict.fromkeys(VERBS, 0.0)
    for verb in VERBS:
        events = side.events(verb, chains, event_blocks)
        began_s = time.perf_counter()
        for event in events:
            side.apply(event)
        side.ask()
        taken_s[verb] = time.perf_counter() - began_s
    return sum(map(len, chains)) / taken_s[timed]


def _our_events(
    index: OurIndex, verb: Verb, chains: Sequence[Words], event_blocks: int
) -> list[bytes]:
    events: list[bytes] = []
    for worker, names in _by_worker(chains):
        voice = index.voices[worker]
        say = voice.stored if verb == "stored" else voice.removed
        events += [say(piece) for piece in _pieces(verb, names, event_blocks)]
    return events


def _peer_events(verb: Verb, chains: Sequence[Words], event_blocks: int) -> list[tuple[int, bytes]]:
    events: list[tuple[int, bytes]] = []
    for worker, names in _by_worker(chains):
        parent: int | None = None
        for number, piece in enumerate(_pieces(verb, names, event_blocks)):
            hashes: list[int] = piece.tolist()
            if verb == "stored":
                events.append((worker, peer.stored(hashes, parent, number)))
                parent = hashes[-1]
            else:
                events.append((worker, peer.removed(hashes, number)))
    return events


def _peer_apply(index: PeerIndex, event: tuple[int, bytes]) -> None:
    index.apply(*event)


def _by_worker(chains: Sequence[Words]) -> Iterator[tuple[int, Words]]:
    return ((number % WORKERS, names) for number, names in enumerate(chains))


def _pieces(verb: Verb, names: Words, event_blocks: int) -> Iterator[Words]:
    order = names if verb == "stored" else names[::-1]
    return (order[at : at + event_blocks] for at in range(0, len(order), event_blocks))
