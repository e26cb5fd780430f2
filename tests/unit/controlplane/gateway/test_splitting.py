"""Which requests two engines can share."""

from __future__ import annotations

import json

import pytest

from controlplane.gateway.dialects import obstacle
from controlplane.gateway.migration import Leg
from controlplane.gateway.openai import Api, read

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


def leg(path: str, indent: int | None = None, **fields: object) -> Leg:
    return Leg(path, json.dumps({"model": "m", **fields}, indent=indent).encode())


def why_not(made: Leg) -> str:
    return obstacle(read(Api(made.path), made.body), made)


@pytest.mark.parametrize(
    "made",
    [
        leg(CHAT, messages=MESSAGES),
        leg(CHAT, messages=MESSAGES, n=1),
        leg(COMPLETIONS, prompt="a", echo=False),
        leg(COMPLETIONS, prompt=[1, 2]),
        leg(COMPLETIONS, prompt=[[1, 2]]),
    ],
)
def test_what_can_be_split(made: Leg) -> None:
    assert why_not(made) == ""


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (leg(CHAT, messages=MESSAGES, n=2), "several answers"),
        (leg("/v1/responses", input="a"), "one engine"),
        (leg("/v1/embeddings", input="a"), "one engine"),
        (leg(CHAT, messages=MESSAGES, kv_transfer_params={"x": 1}), "kv_transfer_params"),
        (leg(COMPLETIONS, prompt=["a", "b"]), "several prompts"),
        (leg(COMPLETIONS, prompt=[[1], [2]]), "several prompts"),
        (leg(COMPLETIONS, prompt=["a", "b"], indent=1), "several prompts"),
        (leg(COMPLETIONS, prompt="a", echo=True), "echo"),
    ],
)
def test_what_cannot_be_split_and_why(made: Leg, why: str) -> None:
    assert why in why_not(made)
