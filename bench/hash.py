"""hash: naming the blocks of a prompt, from a list of token ids.

Ours chains the names and mixes in scope, position and a secret; the peer's function hashes each
block by itself.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial

from bench import peer
from bench.measure import OURS, PEER, in_turns, p50_us
from bench.options import Options
from bench.rows import Bar, Row, row
from proto.hashing import BlockHasher, Scope

BARS = (Bar("*", "ratio", "at most", 0.5),)
PROMPT_TOKENS = (8_192, 65_536)
BLOCK_TOKENS = 16
VOCABULARY = 150_000


def run(options: Options) -> Iterator[Row]:
    """One row a prompt length."""
    hasher = BlockHasher(b"a secret of the benchmark", Scope("bench"), BLOCK_TOKENS)
    theirs = peer.hash_blocks() if peer.installed() else None
    rng = random.Random(0)
    for tokens in PROMPT_TOKENS:
        calls = 20 if options.quick else max(50, 2_000_000 // tokens)
        prompts = [[rng.randrange(VOCABULARY) for _ in range(tokens)] for _ in range(4)]
        cases = [prompts[call % len(prompts)] for call in range(calls)]
        sides = {OURS: partial(p50_us, hasher.names, cases)}
        if theirs is not None:
            sides[PEER] = partial(p50_us, partial(theirs, kv_block_size=BLOCK_TOKENS), cases)
        figures = in_turns(sides, options.rounds)
        yield row(f"{tokens:,} tokens", "us", figures[OURS], figures.get(PEER))
