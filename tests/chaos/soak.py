"""An hour under load while workers come and go: does anything grow, leak or drift?

    make soak                       # an hour
    make soak SOAK_MINUTES=10       # a shorter one
    make soak SOAK_SPEED=0.25       # slow engines: seven tenths of them, and little of the machine
    python -m tests.chaos.soak --minutes 60 --json soak.json --plot soak.png

First the load that three engines can just carry is measured, then seven tenths of it are sent, at
random moments. Every minute an engine and its agent leave (SIGTERM) and join again. All the time
answers are checked against known ones, and each process is looked at: resident memory, file
descriptors, threads. At the end the router's belief of what is cached is held against the engines'
own figures. Exit code 1 if a stream was wrong or lost, or if anything grew.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.to_thread
import numpy as np
import psutil

from proto.wire.http import HttpClient
from tests.chaos.faults import Fault, How, inflict
from tests.chaos.load import Load, Question, Verdict, ask, predicted_and_actual, questions
from tests.support.up import UpCluster, up

ENGINES, ROUTERS = 3, 2
SHARE = 0.7
CALIBRATION_S = 20.0
CHURN_S = 60.0
LOOK_S = 10.0
WARM_SHARE = 0.3
"""Of the time: caches fill and pools grow to what they need; slopes are of the rest."""
DECISIONS_BYTES = 4 << 20
"""What routers remember of their decisions, so little that it is full before slopes begin: with
the usual 64 MiB it takes half of the hour, which looks like a leak."""
GROWTH_MAX_MIB_PER_HOUR = 8.0
GROWTH_MAX_DESCRIPTORS = 8.0
OPEN_MAX = 512
PROMPTS = [f"Chapter {n}. " + "There was a token, and there was a block. " * 20 for n in range(64)]
LASTING = ("gateway", "registry", "router", "nats", "etcd")
"""Parts that live all the time; engines and agents come and go."""


@dataclass
class Looks:
    """What a process was seen to use."""

    at_s: list[float] = field(default_factory=list)
    rss_mib: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)


@dataclass
class Soak:
    """What an hour came to."""

    minutes: float
    capacity_per_s: float
    rate_per_s: float
    streams: dict[str, int]
    churned: int
    looks: dict[str, Looks]
    drifted: int
    """Prompts of which the router believed something else than the engine found."""

    def growth(self, name: str) -> tuple[float, float]:
        """MiB an hour, and file descriptors an hour, after warming up."""
        looks = self.looks[name]
        first = int(len(looks.at_s) * WARM_SHARE)
        hours = np.array(looks.at_s[first:]) / 3600
        if len(hours) < 3:
            return 0.0, 0.0
        rss = float(np.polyfit(hours, looks.rss_mib[first:], 1)[0])
        return rss, float(np.polyfit(hours, looks.descriptors[first:], 1)[0])

    def faults(self) -> list[str]:
        """What is not as it should be."""
        bad = {v: n for v, n in self.streams.items() if v in {"wrong", "cut", "unreachable"}}
        found = [f"{count} streams {verdict}" for verdict, count in bad.items()]
        found += [f"{self.drifted} prompts were believed cached and were not"] * (self.drifted > 0)
        for name in self.looks:
            rss, descriptors = self.growth(name)
            if rss > GROWTH_MAX_MIB_PER_HOUR:
                found.append(f"{name} grows by {rss:.1f} MiB an hour")
            if descriptors > GROWTH_MAX_DESCRIPTORS:
                found.append(f"{name} opens {descriptors:.1f} file descriptors more an hour")
        return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(description="Run a cluster for an hour and look at it.")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument(
        "--speed", type=float, default=1.0, help="of the engines; less loads the machine less"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="tokenplane-soak-") as home:
        options = (
            "--engines",
            str(ENGINES),
            "--routers",
            str(ROUTERS),
            "--speed",
            str(asked.speed),
        )
        memory = str(DECISIONS_BYTES)
        with up(Path(home), *options, TOKENPLANE_ROUTER__DECISIONS_BYTES=memory) as cluster:
            soak = anyio.run(_soak, cluster, asked.minutes * 60, random.Random(asked.seed))
    print(table(soak))
    if asked.json:
        asked.json.write_text(json.dumps(_plain(soak), indent=1) + "\n")
    if asked.plot:
        plot(soak, asked.plot)
    for fault in soak.faults():
        print(f"soak: {fault}", file=sys.stderr)
    return 1 if soak.faults() else 0


async def _soak(cluster: UpCluster, seconds: float, rng: random.Random) -> Soak:
    async with HttpClient() as http:
        load = Load(http, cluster.url, cluster.model, [], rng, clients=64)
        load.questions = await questions(load, PROMPTS)
        capacity_per_s = await _capacity(load)
        load.ended.clear()
        rate_per_s = SHARE * capacity_per_s
        print(f"{capacity_per_s:.1f} streams a second at the most; sending {rate_per_s:.1f}")
        looks: defaultdict[str, Looks] = defaultdict(Looks)
        churned = 0
        began_s = time.monotonic()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_arrivals, load, rate_per_s)
            tasks.start_soon(_look, cluster, looks, began_s)
            with anyio.move_on_after(seconds):
                while True:
                    await anyio.sleep(CHURN_S)
                    await anyio.to_thread.run_sync(_leave_and_join, cluster, rng)
                    churned += 1
                    print(_progress(load, began_s, seconds), flush=True)
            tasks.cancel_scope.cancel()
        why = Counter((e.verdict, e.detail) for e in load.ended if e.verdict is not Verdict.WHOLE)
        for (verdict, detail), count in why.most_common():
            print(f"{count} {verdict}: {detail}")
        drifted = await _drifted(load)
        streams = {str(verdict): count for verdict, count in load.count().items()}
        minutes = seconds / 60
        return Soak(minutes, capacity_per_s, rate_per_s, streams, churned, dict(looks), drifted)


async def _capacity(load: Load) -> float:
    """Streams a second with more clients than there is room for."""
    with anyio.move_on_after(CALIBRATION_S):
        await load.run()
    half_s = time.monotonic() - CALIBRATION_S / 2
    return load.count(half_s)[Verdict.WHOLE] / (CALIBRATION_S / 2)


async def _arrivals(load: Load, rate_per_s: float) -> None:
    """Streams that begin at random moments, whatever became of those before."""
    slots = anyio.Semaphore(OPEN_MAX)

    async def one(question: Question) -> None:
        async with slots:
            began_s = time.monotonic()
            verdict, detail = await ask(load, question)
            load.note(began_s, verdict, detail)

    async with anyio.create_task_group() as tasks:
        while True:
            await anyio.sleep(load.rng.expovariate(rate_per_s))
            tasks.start_soon(one, load.rng.choice(load.questions))


async def _look(cluster: UpCluster, looks: dict[str, Looks], began_s: float) -> None:
    while True:
        for name, pid in cluster.pids().items():
            if not name.startswith(LASTING):
                continue
            process = psutil.Process(pid)
            mine = looks[name]
            mine.at_s.append(time.monotonic() - began_s)
            mine.rss_mib.append(process.memory_info().rss / 2**20)
            mine.descriptors.append(process.num_fds())
            mine.threads.append(process.num_threads())
        await anyio.sleep(LOOK_S)


def _leave_and_join(cluster: UpCluster, rng: random.Random) -> None:
    number = rng.randrange(ENGINES)
    inflict(cluster, [Fault(f"{part}-{number}", How.RESTART) for part in ("agent", "engine")])


async def _drifted(load: Load) -> int:
    """Prompts of which the router is wrong, asked twice so that all of them are cached."""
    beliefs = []
    for _ in range(2):
        beliefs = [await predicted_and_actual(load, each) for each in load.questions]
    return sum(predicted != actual for predicted, actual in beliefs)


def table(soak: Soak) -> str:
    """For the terminal and for docs/reliability.md."""
    told = ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(soak.streams.items()))
    head = (
        f"{soak.minutes:g} minutes at {soak.rate_per_s:.1f} streams a second "
        f"({SHARE:.0%} of capacity), {soak.churned} workers left and joined; streams: {told}; "
        f"prompts believed wrongly at the end: {soak.drifted} of {len(PROMPTS)}"
    )
    lines = [
        head,
        "",
        "| part | RSS, end | growth an hour | descriptors, end | growth an hour | threads |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    for name, looks in sorted(soak.looks.items()):
        rss, descriptors = soak.growth(name)
        lines.append(
            f"| {name} | {looks.rss_mib[-1]:.0f} MiB | {rss:+.1f} MiB | {looks.descriptors[-1]} "
            f"| {descriptors:+.1f} | {looks.threads[-1]} |"
        )
    return "\n".join(lines)


def plot(soak: Soak, path: Path) -> None:
    """Resident memory of every lasting part over time."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4))
    for name, looks in sorted(soak.looks.items()):
        axes.plot(np.array(looks.at_s) / 60, looks.rss_mib, label=name)
    axes.set_xlabel("minutes")
    axes.set_ylabel("resident memory, MiB")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, ncols=3, fontsize="small")
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def _progress(load: Load, began_s: float, seconds: float) -> str:
    told = ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(load.count().items()))
    return f"{(time.monotonic() - began_s) / 60:5.1f} of {seconds / 60:g} minutes: {told}"


def _plain(soak: Soak) -> dict[str, object]:
    return {
        "minutes": soak.minutes,
        "capacity_per_s": soak.capacity_per_s,
        "rate_per_s": soak.rate_per_s,
        "streams": soak.streams,
        "churned": soak.churned,
        "drifted": soak.drifted,
        "growth_per_hour": {
            name: dict(zip(("rss_mib", "descriptors"), soak.growth(name), strict=True))
            for name in soak.looks
        },
        "faults": soak.faults(),
    }


if __name__ == "__main__":
    sys.exit(main())
