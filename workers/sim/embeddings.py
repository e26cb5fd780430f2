"""/v1/embeddings: vectors that depend on the tokens and on nothing else, in OpenAI's shape."""

from __future__ import annotations

import base64
import hashlib
import math
import sys
from array import array
from collections.abc import Sequence

DIMENSIONS = 64


def embeddings(
    model: str, prompts: Sequence[Sequence[int]], *, as_base64: bool
) -> dict[str, object]:
    """The answer; vectors of length 1, as floats or as base64 of little-endian float32."""
    tokens = sum(map(len, prompts))
    return {
        "object": "list",
        "model": model,
        "data": [
            {"object": "embedding", "index": i, "embedding": _encoded(prompt, as_base64)}
            for i, prompt in enumerate(prompts)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
    }


def _encoded(tokens: Sequence[int], as_base64: bool) -> str | list[float]:
    digest = hashlib.shake_256(array("I", tokens).tobytes()).digest(DIMENSIONS)
    length = math.hypot(*(byte - 127.5 for byte in digest))
    vector = array("f", [(byte - 127.5) / length for byte in digest])
    if not as_base64:
        return vector.tolist()
    if sys.byteorder == "big":
        vector.byteswap()
    return base64.b64encode(vector.tobytes()).decode()
