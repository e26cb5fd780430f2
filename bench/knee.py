"""How many streams this machine holds, and what becomes of three times what its engines can serve.

    make load-knee                  # some minutes
    python -m bench.knee --json knee.json --plot knee.png

First one gateway process, a router, NATS and etcd stand before engines that cost next to nothing
and give every stream a token each 20 ms: more and more streams are held open, each followed by
another, until tokens come clearly later than they are made, or the first ones late. Then simulated
engines of limited speed are asked for shares of what they can serve, at random moments, up to three
times as much (`bench.overload`). Clients, engines and control plane share the machine's cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import anyio
import numpy as np

from bench.callers import drive
from bench.gateway_side import STEP_MS, engines_running, gateway_running
from bench.http import request
from bench.measure import percentile
from bench.overload import Answered, overload
from bench.rig import cpu_s, open_rig
from bench.stream_engine import MODEL

FIRST_STREAMS, GROWTH = 50, 1.5
STREAMS_MAX = 6_000
TOKENS = (50, 150)
ROUNDS = 3
"""Streams that each client asks for, one after the other."""
HELD = 1.25
"""Tokens may come so much later than they are made, and streams still count as held,"""
FIRST_MS = 100.0
"""if half of them have their first by then. Later, and requests queue up before the gateway."""
BEYOND = 2
"""Levels beyond the knee, to show what is there."""


@dataclass(frozen=True)
class Level:
    """So many streams at once."""

    streams: int
    tokens_per_s: float
    pace_p50_ms: float
    """From token to token of a stream, on average."""
    pace_p99_ms: float
    """The same for the slowest hundredth of streams."""
    first_p50_ms: float
    first_p99_ms: float
    gateway_cores: float

    @property
    def held(self) -> bool:
        """Streams begin at once, and nearly all go as fast as engines make them."""
        return self.pace_p99_ms <= HELD * STEP_MS and self.first_p50_ms <= FIRST_MS


async def climb() -> list[Level]:
    """Levels from few streams to beyond the knee."""
    levels: list[Level] = []
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="tokenplane-knee-") as made:
        async with open_rig() as rig, engines_running(rig, Path(made)):
            side = await gateway_running(rig, processes=1)
            gateway = rig.process(side.processes[0])
            await drive("127.0.0.1", side.port, _streams(rng, 20), 10)
            streams, beyond = FIRST_STREAMS, 0
            while beyond < BEYOND and streams <= STREAMS_MAX:
                before_s = cpu_s(gateway)
                load = await drive("127.0.0.1", side.port, _streams(rng, ROUNDS * streams), streams)
                used_s = cpu_s(gateway) - before_s
                calls = load.calls
                paces = [1e3 * (c.total_s - c.first_s) / (c.events - 1) for c in calls]
                firsts = [1e3 * call.first_s for call in calls]
                levels.append(
                    Level(
                        streams,
                        sum(call.events for call in calls) / load.wall_s,
                        statistics.median(paces),
                        percentile(paces, 0.99),
                        statistics.median(firsts),
                        percentile(firsts, 0.99),
                        used_s / load.wall_s,
                    )
                )
                print(_line(levels[-1]), flush=True)
                beyond += not levels[-1].held
                streams = int(streams * GROWTH)
    return levels


def knee(levels: Sequence[Level]) -> int:
    """The most streams that were held, none below them failing to be."""
    held = 0
    for level in levels:
        if not level.held:
            break
        held = level.streams
    return held


def _streams(rng: np.random.Generator, count: int) -> Iterator[bytes]:
    """Not all of one length: they would come and go all at once."""
    for number in range(count):
        body = {
            "model": MODEL,
            "prompt": f"Say it again, number {number}. " * 12,
            "max_tokens": int(rng.integers(*TOKENS)),
            "stream": True,
            "ignore_eos": True,
        }
        yield request("POST", "/v1/completions", json.dumps(body).encode())


def _line(level: Level) -> str:
    return (
        f"| {level.streams:,} | {level.tokens_per_s:,.0f} | {level.pace_p50_ms:.1f} | "
        f"{level.pace_p99_ms:.1f} | {level.first_p50_ms:.0f} | {level.first_p99_ms:.0f} | "
        f"{level.gateway_cores:.2f} |"
    )


HEAD = (
    "| streams | tokens a second | a token each, p50 ms | p99 | to the first, p50 ms | p99 "
    "| cores of the gateway |\n| --: | --: | --: | --: | --: | --: | --: |"
)


def plot(levels: Sequence[Level], loads: Sequence[Answered], path: Path) -> None:
    """Both halves beside each other."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    streams = [level.streams for level in levels]
    left.plot(streams, [level.pace_p99_ms for level in levels], marker="o", label="a token, p99")
    left.plot(streams, [level.first_p50_ms for level in levels], marker="o", label="to the first")
    left.axhline(STEP_MS, color="grey", linewidth=0.8, label="a token, as made")
    left.axvline(knee(levels), color="black", linestyle=":", label=f"knee: {knee(levels):,}")
    left.set(yscale="log", xlabel="concurrent streams", ylabel="ms", xlim=(0, None))
    left.legend(frameon=False, fontsize="small")
    asked = [load.asked for load in loads]
    right.plot(asked, [load.served_per_s for load in loads], marker="o", label="served a second")
    right.plot(asked, [load.refused_per_s for load in loads], marker="o", label="refused a second")
    right.plot(asked, [load.first_p99_s for load in loads], marker="o", label="to the first, p99 s")
    right.set(xlabel="asked for, as a share of capacity", ylim=(0, None))
    right.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def main() -> int:
    """`python -m bench.knee`: 1 if overload was not borne as it should be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    uvloop = {"use_uvloop": True}
    print(HEAD, flush=True)
    levels = anyio.run(climb, backend_options=uvloop)
    print(f"\nthe knee: {knee(levels):,} streams at once\n", flush=True)
    loads = anyio.run(overload, options.seed, backend_options=uvloop)
    if options.json:
        told = {
            "knee": knee(levels),
            "levels": [asdict(level) for level in levels],
            "loads": [asdict(load) for load in loads],
        }
        options.json.write_text(json.dumps(told, indent=1) + "\n")
    if options.plot:
        plot(levels, loads, options.plot)
    faults = [fault for load in loads for fault in load.faults(loads)]
    for fault in faults:
        print(f"load-knee: {fault}", file=sys.stderr)
    return 1 if faults or not knee(levels) else 0


if __name__ == "__main__":
    sys.exit(main())
