"""Which releases of an engine an adapter was written for.

A newer engine may say the same words and mean other things by them, so KV events of an unknown
release are not believed: its worker serves without them, and routers guess what it caches. Wrong
knowledge would be worse than none only in the cost of a prefill, but it would stay for ever.
"""

from __future__ import annotations

import re

Release = tuple[int, ...]

KNOWN: dict[str, tuple[Release, Release]] = {
    "vllm": ((0, 8), (0, 33)),
    "sglang": ((0, 5, 9), (0, 6)),
    "trtllm": ((1, 0), (1, 4)),
}
"""From the first one, up to and without the second."""
_NUMBERS = re.compile(r"\d+(?:\.\d+)*")


def why_unknown(engine: str, version: str) -> str:
    """Empty for a release that the adapter knows; else what to say of it."""
    first, end = KNOWN[engine]
    numbers = _NUMBERS.match(version.removeprefix("v"))
    if numbers and first <= tuple(int(part) for part in numbers[0].split(".")) < end:
        return ""
    return (
        f"{engine} {version or 'of unknown version'} is none of the releases whose KV events are "
        f"known ({_written(first)} up to and without {_written(end)}); set agent.trust_version to "
        "follow them all the same"
    )


def _written(release: Release) -> str:
    return ".".join(map(str, release))
