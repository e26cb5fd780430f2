"""One whole completion, and what its answer tells of how it was routed."""

from __future__ import annotations

from typing import NamedTuple

import httpx2 as httpx

from tests.support.up import UpCluster

TOKENS = 4


class Answer(NamedTuple):
    """How a prompt fared."""

    request: str
    policy: str
    worker: str
    expected_tokens: int
    """Of the prompt, that were believed to be in the worker's cache."""
    cached_tokens: int
    """That were."""


def ask(cluster: UpCluster, prompt: str) -> Answer:
    """On a connection of its own, so that any process behind the port may get it."""
    body = {"model": cluster.model, "prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True}
    answer = httpx.post(f"{cluster.url}/v1/completions", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    said, usage = answer.headers, answer.json()["usage"]
    assert usage["completion_tokens"] == TOKENS
    return Answer(
        said["x-request-id"],
        said["x-tokenplane-policy"],
        said["x-tokenplane-worker"],
        int(said.get("x-tokenplane-overlap-tokens", 0)),
        usage["prompt_tokens_details"]["cached_tokens"],
    )
