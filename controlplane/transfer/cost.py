"""What it takes to prefill here, or elsewhere and move the blocks. Pure.

Rates are learned: prompt tokens a second of each worker from its load reports, bytes a second of
each link from transfers that have landed. Both are averages that forget: `KEEP` of the old at every
new sample. What nobody has measured yet is taken from what the path is known to be good for.

A choice is made in seconds of everybody's time: prefilling on a decode worker holds up each of its
running streams, prefilling elsewhere holds up nobody but takes the transfer (DG4, DG10).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from proto.load import LoadReport, StepSums

KEEP = 0.8
ASSUMED_BYTES_PER_S: Mapping[str, float] = {
    "nvlink_domain": 300e9,
    "host": 20e9,
    "rack": 20e9,
    "zone": 5e9,
    "far": 1e9,
}
"""By distance, before a link was measured; Dynamo's documents give 450-900 GB/s for NVLink, 20-50
for InfiniBand and 1-3 for TCP."""
SAMPLE_BYTES_MIN = 4 << 20
"""A transfer of less tells of latency and not of bandwidth."""
LATE_SHARE, LATE_S = 0.25, 60.0
LATENCY_SHARE_MAX = 0.9
"""Of what a large transfer took, that may have been latency."""


class Choice(StrEnum):
    """How remote or local prefill is decided."""

    COST = "cost"
    BOUNDS = "bounds"
    REMOTE = "remote"
    LOCAL = "local"


class Bounds(NamedTuple):
    """Below both, a prompt is not worth moving; above the gate, a decode worker has no room."""

    tokens: int = 2048
    share: float = 0.7
    decode_pressure: float = 0.9


class _Sums(NamedTuple):
    """Prompt tokens and what they took, faded: an engine may tell of one a report later."""

    tokens: float
    ms: float


class Rates:
    """What was measured of workers and links."""

    def __init__(self) -> None:
        self._prefill: dict[str, _Sums] = {}
        self._links: dict[str, float] = {}
        self._latencies: dict[str, float] = {}
        self._late: dict[str, tuple[float, float]] = {}
        """No faster than this, until then."""

    def saw_steps(self, worker: str, steps: StepSums) -> None:
        """A load report tells of some prefill."""
        took_ms = steps.prompt_ms or steps.prefill_ms
        if steps.prefill_tokens or took_ms:
            old = self._prefill.get(worker, _Sums(0.0, 0.0))
            self._prefill[worker] = _Sums(
                KEEP * old.tokens + steps.prefill_tokens, KEEP * old.ms + took_ms
            )

    def saw_transfer(self, link: str, moved_bytes: int, seconds: float) -> None:
        """A transfer has landed."""
        if seconds <= 0 or not moved_bytes:
            return
        if moved_bytes < SAMPLE_BYTES_MIN:
            self._latencies[link] = _blend(self._latencies.get(link), seconds)
            return
        latency_s = min(self.latency_s(link), LATENCY_SHARE_MAX * seconds)
        rate = moved_bytes / (seconds - latency_s)
        self._links[link] = _blend(self._links.get(link), rate)

    def saw_late(self, link: str, bytes_due: int, seconds: float, now_s: float) -> None:
        """Nobody waits any more for a transfer that had not come by then: the link is slower than
        that. How much is not known, and so guessed; for a while."""
        if bytes_due >= SAMPLE_BYTES_MIN and seconds > 0:
            rate = min(self.link_bytes_per_s(link), bytes_due / seconds * LATE_SHARE)
            self._late[link] = rate, now_s + LATE_S

    def forget_late(self, now_s: float) -> None:
        """Links that were too slow a while ago may be tried again."""
        self._late = {link: late for link, late in self._late.items() if late[1] > now_s}

    def prefill_tokens_per_s(self, worker: str) -> float | None:
        """None while it has not prefilled anything that we know of."""
        known = self._prefill.get(worker)
        return known.tokens / known.ms * 1000 if known and known.ms and known.tokens else None

    def link_bytes_per_s(self, link: str) -> float:
        """As measured; else as the slowest that was measured of its distance, which begins its
        name; else as assumed of that."""
        late = self._late.get(link, (math.inf, 0.0))[0]
        if link in self._links:
            return min(self._links[link], late)
        near = link.partition(":")[0]
        seen = [*self._links.items(), *((other, rate) for other, (rate, _) in self._late.items())]
        alike = (rate for other, rate in seen if other.partition(":")[0] == near)
        return min(min(alike, default=ASSUMED_BYTES_PER_S[near]), late)

    def latency_s(self, link: str) -> float:
        """What a transfer takes there that is too small to matter; 0 while none was seen."""
        return self._latencies.get(link, 0.0)

    def moving_s(self, link: str, moved_bytes: int, ahead_bytes: int) -> float:
        """How long a transfer would take, with what is ahead of it on its link."""
        rate = self.link_bytes_per_s(link)
        return self.latency_s(link) + (ahead_bytes + moved_bytes) / rate

    @property
    def links(self) -> Mapping[str, float]:
        """Measured bandwidths."""
        return self._links


class Side(NamedTuple):
    """One worker's part in the comparison."""

    worker: str
    new_tokens: int
    load: LoadReport | None


def prefill_s(side: Side, rates: Rates) -> float | None:
    """Until its first token, with what waits before it; None if its speed is not known."""
    rate = rates.prefill_tokens_per_s(side.worker)
    if rate is None:
        return None
    queued = side.load.queued_prefill_tokens if side.load else 0
    return (queued + side.new_tokens) / rate


def keep_local(
    choice: Choice, bounds: Bounds, prompt_tokens: int, decode: Side, remote_s: float | None,
    rates: Rates,
) -> str:  # fmt: skip
    """Why the decode worker should prefill by itself, "" if it should not.

    `remote_s` is what the best pair would take, prefill and transfer; None if that is not known.
    """
    if choice in (Choice.LOCAL, Choice.REMOTE):
        return "configured" if choice is Choice.LOCAL else ""
    if decode.load and decode.load.total_blocks:
        pressure = decode.load.used_blocks / decode.load.total_blocks
        if pressure > bounds.decode_pressure and decode.new_tokens >= bounds.tokens:
            return ""
    if decode.new_tokens < bounds.tokens and decode.new_tokens < bounds.share * prompt_tokens:
        return "short"
    local_s = prefill_s(decode, rates)
    if choice is Choice.BOUNDS or remote_s is None or local_s is None:
        return ""
    running = decode.load.running if decode.load else 0
    rate = rates.prefill_tokens_per_s(decode.worker)
    assert rate is not None
    held_up_s = running * decode.new_tokens / rate
    return "cheaper" if local_s + held_up_s < remote_s else ""


def _blend(old: float | None, new: float) -> float:
    return new if old is None else KEEP * old + (1 - KEEP) * new
