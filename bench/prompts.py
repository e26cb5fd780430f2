"""Prompts of which one worker holds the first half, as both sides name them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

VOCABULARY = 150_000
HOT_WORKERS, HOT_PROMPTS = 1 / 8, 3 / 8

Tokens = NDArray[np.uint32]


@dataclass(frozen=True)
class Prompt:
    """`holder` is the number of the only worker that holds its first `cached_tokens`."""

    tokens: list[int]
    holder: int
    cached_tokens: int


@dataclass(frozen=True)
class Workload:
    """Chains of tokens by the number of the worker that holds them, and prompts on top."""

    chains: Sequence[Sequence[Tokens]]
    prompts: Sequence[Prompt]


def workload(
    workers: int, prompts: int, *, tokens: int, chains: int, rng: np.random.Generator
) -> Workload:
    """Each worker holds so many chains of a prompt's length; each prompt begins with one half of
    one of them and goes on with what nobody has seen."""
    held = [[_tokens(tokens, rng) for _ in range(chains)] for _ in range(workers)]
    shared = tokens // 2

    def prompt() -> Prompt:
        holder = int(rng.integers(workers))
        chain = held[holder][int(rng.integers(chains))]
        words = np.concatenate((chain[:shared], _tokens(tokens - shared, rng)))
        return Prompt(words.tolist(), holder, shared)

    return Workload(held, [prompt() for _ in range(prompts)])


def some_hot(prompts: Sequence[Prompt], workers: int, rng: np.random.Generator) -> Sequence[int]:
    """As many numbers of prompts, by chance, so that a `HOT_WORKERS` share of the workers, the
    first, holds a `HOT_PROMPTS` share of them."""
    hot = np.array([prompt.holder < workers * HOT_WORKERS for prompt in prompts])
    weights = np.where(hot, HOT_PROMPTS / hot.sum(), (1 - HOT_PROMPTS) / (~hot).sum())
    order: list[int] = rng.choice(len(prompts), size=len(prompts), p=weights).tolist()
    return order


def _tokens(count: int, rng: np.random.Generator) -> Tokens:
    return rng.integers(0, VOCABULARY, size=count, dtype=np.uint32)
