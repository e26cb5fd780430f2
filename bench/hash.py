"""hash: naming the blocks of a prompt.

Ours chains the names and mixes in scope, position and a secret; the peer's function hashes each
block by itself. Token ids stand in an array of 32-bit words, or in a Python list, of which turning
them into such words is the larger part; the peer's function does that whatever it is given, and is
quickest with a list, so that is what it gets.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial

import numpy as np

from bench import peer
from bench.measure import PEER, in_turns, p50_us
from bench.options import Options
from bench.rows import Bar, Row, row
from proto.hashing import BlockHasher, Scope

BARS = (Bar("*", "ratio", "at most", 0.5),)
PROMPT_TOKENS = (8_192, 65_536)
BLOCK_TOKENS = 16
VOCABULARY = 150_000
WORDS, LISTED = "in words", "in a list"


def run(options: Options) -> Iterator[Row]:
    """Two rows a prompt length."""
    hasher = BlockHasher(b"a secret of the benchmark", Scope("bench"), BLOCK_TOKENS)
    theirs = peer.hash_blocks() if peer.installed() else None
    rng = random.Random(0)
    for tokens in PROMPT_TOKENS:
        calls = 20 if options.quick else max(50, 2_000_000 // tokens)
        prompts = [[rng.randrange(VOCABULARY) for _ in range(tokens)] for _ in range(4)]
        cases = [prompts[call % len(prompts)] for call in range(calls)]
        words = [np.array(case, dtype=np.uint32) for case in cases]
        sides = {WORDS: partial(p50_us, hasher.names, words)}
        sides[LISTED] = partial(p50_us, hasher.names, cases)
        if theirs is not None:
            sides[PEER] = partial(p50_us, partial(theirs, kv_block_size=BLOCK_TOKENS), cases)
        figures = in_turns(sides, options.rounds)
        for form in (WORDS, LISTED):
            yield row(f"{tokens:,} tokens, {form}", "us", figures[form], figures.get(PEER))
