"""memory: what an index costs, by how many workers hold each block.

Resident memory of a fresh process before and after it has learned the blocks. The number of blocks
is just past one at which our table doubles, which is its worst. The holders of each chain are drawn
at random, so that there are thousands of different sets of them.

`python -m bench.memory SIDE HOLDERS BLOCKS` is the process that is measured; it prints the bytes.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import psutil

from bench import peer
from bench.match import Index, names_at_random
from bench.measure import OURS, PEER
from bench.options import Options
from bench.ours import OurIndex
from bench.peer import PeerIndex
from bench.rows import Bar, Row, row

BARS = (Bar("*", "ours", "at most", 120.0),)
HOLDERS = (1, 8, 64)
FLEET = 512
CHAIN_BLOCKS = 256
BLOCKS = 550_000
CHILD_S = 600.0


def run(options: Options) -> Iterator[Row]:
    """One row a number of holders."""
    blocks = BLOCKS // 20 if options.quick else BLOCKS
    for holders in HOLDERS:
        ours = _in_a_process(OURS, holders, blocks)
        theirs = _in_a_process(PEER, holders, blocks) if peer.installed() else None
        case = f"a unique block with {holders} holder{'s' * (holders > 1)}"
        yield row(case, "B", ours, theirs)


def _in_a_process(side: str, holders: int, blocks: int) -> float:
    """Bytes a block, of one side."""
    argv = [sys.executable, "-m", "bench.memory", side, str(holders), str(blocks)]
    said = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=CHILD_S)
    return int(said.stdout) / blocks


def growth_bytes(index: Index, holders: int, blocks: int) -> int:
    """How much this process grows while its index learns the blocks."""
    rng = np.random.default_rng(0)
    index.hold(0, names_at_random(CHAIN_BLOCKS, rng))
    gc.collect()
    process = psutil.Process()
    before = process.memory_info().rss
    for start in range(0, blocks, CHAIN_BLOCKS):
        names = names_at_random(min(CHAIN_BLOCKS, blocks - start), rng)
        for worker in rng.choice(FLEET, holders, replace=False).tolist():
            index.hold(worker, names)
    gc.collect()
    return process.memory_info().rss - before


def main(side: str, holders: str, blocks: str) -> None:
    """The measured process."""
    index: Index = OurIndex(FLEET) if side == OURS else PeerIndex()
    print(growth_bytes(index, int(holders), int(blocks)))


if __name__ == "__main__":
    main(*sys.argv[1:])
