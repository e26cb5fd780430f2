"""decision: from token ids at the caller to a worker that is chosen and booked.

Ours: the caller names the blocks, asks a router's process over NATS, and frees the booking with a
progress message. It has token ids as 32-bit words, which stand in memory as they will be hashed,
beside the peer's bodies, which are made beforehand; or in a Python list, as a tokenizer gives them.
The peer: its standalone selection service over HTTP; a reservation is freed by a second request. 32
callers share one process, which both sides use in turns; prompts have 8,192 tokens, of which one
worker holds the first half. Our router hears load reports as it does from engines, and has learned
from them how fast its workers are.

Both sides leave the holder of a prefix on purpose when it has more to do than the prefix saves.
Whether that pays is seen where prompts arrive by chance, and workers prefill one after the other:
how long it is from a prompt's arrival to its first token, beside a decider that always stays. That
is some dozens or hundreds of decisions a second, and all sides make theirs at the same time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

import anyio
import numpy as np

from bench import agents, peer, peer_service
from bench.deciders import Decider, OurDecider
from bench.measure import turns
from bench.options import Options
from bench.ours import BLOCK_TOKENS, FIRST_LIFE, MODEL
from bench.peer_service import PeerDecider
from bench.prompts import Workload, some_hot, workload
from bench.rig import Rig, open_rig
from bench.rows import Bar, Row, row
from bench.trials import TOKEN_S, Pace, Place, Stay, pace, place
from proto.codec import Producer
from proto.hashing import BlockHasher, Scope
from proto.subjects import Keys, Subjects

BARS = (
    Bar("* workers, tokens | reserve, tokens", "ratio", "at least", 2.5),
    Bar("* workers, tokens | select, tokens", "ratio", "at least", 2.5),
    Bar("* workers, tokens | select, hashes", "ratio", "at least", 0.5),
    Bar("* workers, tokens | * tokens, p99", "ratio", "at most", 0.5),
)
WORKERS = (8, 64)
CALLERS = 32
EVEN, HOT = "even", "some hot"
SITUATIONS = ((EVEN, 0.5), (EVEN, 0.8), (HOT, 0.5))
"""Which prompts arrive, and how busy workers would be if each went to its holder. Where some are
hot, an eighth of the workers holds three eighths of the prompts."""
PROMPT_TOKENS = 8_192
CHAINS = 16
PROMPTS = 1_000
PASSES = 2
"""How often a turn asks for every prompt."""
LEARNT_S = 60.0

TOKENS, LISTED, HASHES = "tokens", "listed tokens", "hashes"
RESERVE_TOKENS, RESERVE_HASHES = "reserve, tokens", "reserve, hashes"
SELECT_TOKENS, SELECT_HASHES = "select, tokens", "select, hashes"
STAY = "always on the holder"


class Figures(NamedTuple):
    """The medians of all turns, by side."""

    pace: Mapping[str, Pace]
    place: Mapping[tuple[str, str, float], Place]


@dataclass(frozen=True)
class Stage:
    """Everything that runs, ready to be asked."""

    work: Workload
    deciders: Mapping[str, Decider]
    servers: Mapping[str, tuple[str, ...]]
    """The processes that answer a side, by name."""
    rig: Rig


def run(options: Options) -> Iterator[Row]:
    """Rows for each fleet size: pace beside each form of the peer, then where decisions go."""
    for workers in WORKERS[:1] if options.quick else WORKERS:
        backend = {"use_uvloop": True}
        figures = anyio.run(_fleet, workers, options, backend="asyncio", backend_options=backend)
        yield from _pace_rows(workers, figures.pace)
        yield from _place_rows(workers, figures.place)


async def _fleet(workers: int, options: Options) -> Figures:
    rng = np.random.default_rng(workers)
    prompts = PROMPTS // 10 if options.quick else PROMPTS
    work = workload(workers, prompts, tokens=PROMPT_TOKENS, chains=CHAINS, rng=rng)
    async with _stage(work) as stage:
        paces: dict[str, list[Pace]] = {side: [] for side in stage.deciders}
        for side, counts in turns(tuple(stage.deciders), options.rounds):
            servers = [stage.rig.process(name) for name in stage.servers[side]]
            decider = stage.deciders[side]
            took = await pace(decider, work.prompts, PASSES, CALLERS, servers)
            if counts:
                paces[side].append(took)
        booking = [side for side in (TOKENS, RESERVE_TOKENS) if side in stage.deciders]
        deciders = {side: stage.deciders[side] for side in booking} | {STAY: Stay(work.prompts)}
        arrivals = {EVEN: range(prompts), HOT: some_hot(work.prompts, workers, rng)}
        places: dict[tuple[str, str, float], Place] = {}

        async def find(side: str, kind: str, load: float) -> None:
            asked, chance = arrivals[kind], np.random.default_rng(workers)
            decider = deciders[side]
            found = await place(decider, work.prompts, asked, workers, load, CALLERS, chance)
            places[side, kind, load] = found

        for kind, load in SITUATIONS:
            async with anyio.create_task_group() as tasks:
                for side in deciders:
                    tasks.start_soon(find, side, kind, load)
    return Figures({side: _median(of_side) for side, of_side in paces.items()}, places)


@asynccontextmanager
async def _stage(work: Workload) -> AsyncIterator[Stage]:
    async with open_rig() as rig, _our_deciders(rig, work) as ours:
        deciders: dict[str, Decider] = dict(ours)
        servers: dict[str, tuple[str, ...]] = dict.fromkeys(ours, ("nats", "router"))
        if not peer.installed():
            yield Stage(work, deciders, servers, rig)
            return
        async with peer_service.serving(rig, work, CALLERS) as connections:
            theirs = {
                RESERVE_TOKENS: PeerDecider(connections, work.prompts, "tokens", reserve=True),
                RESERVE_HASHES: PeerDecider(connections, work.prompts, "hashes", reserve=True),
                SELECT_TOKENS: PeerDecider(connections, work.prompts, "tokens", reserve=False),
                SELECT_HASHES: PeerDecider(connections, work.prompts, "hashes", reserve=False),
            }
            servers |= dict.fromkeys(theirs, (peer_service.NAME,))
            yield Stage(work, deciders | theirs, servers, rig)


@asynccontextmanager
async def _our_deciders(rig: Rig, work: Workload) -> AsyncIterator[Mapping[str, OurDecider]]:
    """A router that knows what its workers hold, how busy they are and how fast."""
    bus, subjects = rig.carriers.bus, Subjects(rig.settings.cluster)
    hasher = BlockHasher(rig.settings.secret_bytes, Scope(MODEL), BLOCK_TOKENS)
    fleet = [agents.Agent(n, subjects, time.time) for n in range(len(work.chains))]
    for agent, chains in zip(fleet, work.chains, strict=True):
        for tokens in chains:
            agent.hold(hasher.names(tokens))
    producer = Producer("bench-caller", FIRST_LIFE, time.time)
    asking = (bus, subjects, hasher, producer, work.prompts)
    async with (
        agents.serving(fleet, bus, rig.carriers.store, Keys(rig.settings.cluster)),
        agents.reporting(fleet, bus, TOKEN_S, np.random.default_rng(0)),
    ):
        await rig.start_router()
        by_tokens = OurDecider(*asking, form="tokens")
        with anyio.fail_after(LEARNT_S):
            await by_tokens.until_it_predicts()
        listed, hashes = OurDecider(*asking, form="listed"), OurDecider(*asking, form="hashes")
        yield {TOKENS: by_tokens, LISTED: listed, HASHES: hashes}


def _pace_rows(workers: int, paces: Mapping[str, Pace]) -> Iterator[Row]:
    """Ours in one form beside the peer's in one form: `ours | peer`."""
    for ours, theirs in (
        (TOKENS, RESERVE_TOKENS),
        (TOKENS, SELECT_TOKENS),
        (TOKENS, SELECT_HASHES),
        (LISTED, RESERVE_TOKENS),
        (HASHES, RESERVE_HASHES),
        (HASHES, SELECT_HASHES),
    ):
        case, us, them = f"{workers} workers, {ours} | {theirs}", paces[ours], paces.get(theirs)
        yield row(case, "1/s", us.per_s, them and them.per_s)
        yield row(f"{case}, p50", "ms", us.p50_ms, them and them.p50_ms)
        yield row(f"{case}, p99", "ms", us.p99_ms, them and them.p99_ms)
        yield row(f"{case}, CPU of the servers", "us", us.cpu_us, them and them.cpu_us)


def _place_rows(workers: int, places: Mapping[tuple[str, str, float], Place]) -> Iterator[Row]:
    for kind, load in SITUATIONS:
        ours, stay = places[TOKENS, kind, load], places[STAY, kind, load]
        theirs = places.get((RESERVE_TOKENS, kind, load))
        case, what = f"{workers} workers, {kind}, load {load:.0%}", "to the first token"
        shares = 100 * ours.on_holder, theirs and 100 * theirs.on_holder
        yield row(f"{case}, on the holder", "%", *shares)
        yield row(f"{case}, {what}", "ms", ours.first_ms, theirs and theirs.first_ms)
        yield row(f"{case}, {what}, {STAY}", "ms", stay.first_ms)


def _median(paces: list[Pace]) -> Pace:
    return Pace(*(statistics.median(figures) for figures in zip(*paces, strict=True)))
