"""The ledger's sums against a list of all that was said."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.router.ledger import Ledger
from proto.ids import RequestId, WorkerId
from proto.progress import Booking, Phase, Progress

WORKERS = [WorkerId("a"), WorkerId("b")]


@dataclass(frozen=True)
class Life:
    """One attempt of one request on one worker, and what is said of it in the order that it
    happened."""

    request: RequestId
    worker: WorkerId
    attempt: int
    prefill_tokens: int
    phases: tuple[Phase, ...]

    @property
    def words(self) -> list[Booking | Progress]:
        booking = Booking(self.request, self.worker, self.prefill_tokens, 7, self.attempt)
        return [
            booking,
            *(Progress(self.request, self.worker, self.attempt, phase) for phase in self.phases),
        ]

    def owes(self) -> tuple[int, int, int]:
        """What is left once everything has been heard, if no later attempt was made there."""
        if Phase.ENDED in self.phases:
            return 0, 0, 0
        return 1, 0 if Phase.FIRST_TOKEN in self.phases else self.prefill_tokens, 7


FULL_LIFE = (Phase.DISPATCHED, Phase.FIRST_TOKEN, Phase.ALIVE, Phase.ENDED)


@st.composite
def lives(draw: st.DrawFn) -> list[Life]:
    """Requests with an attempt or more each, on workers of which the next may be the same."""
    return [
        Life(
            RequestId(f"r{i}"),
            draw(st.sampled_from(WORKERS)),
            attempt,
            draw(st.integers(1, 1_000)),
            FULL_LIFE[: draw(st.integers(0, len(FULL_LIFE)))],
        )
        for i in range(draw(st.integers(1, 6)))
        for attempt in range(1, draw(st.integers(1, 3)) + 1)
    ]


@settings(max_examples=300, deadline=None)
@given(lives=lives(), rng=st.randoms(use_true_random=False))
def test_any_order_with_doubles_comes_to_the_same(lives: list[Life], rng: object) -> None:
    ledger = Ledger(silence_s=60)
    words = [word for life in lives for word in life.words * 2]
    rng.shuffle(words)  # type: ignore[attr-defined]
    for word in words:
        if isinstance(word, Booking):
            ledger.book(word, 0.0)
        else:
            ledger.hear(word, 0.0)
    last = {(life.request, life.worker): life for life in lives}
    for worker in WORKERS:
        owed = ledger.of(worker)
        left = [life.owes() for life in last.values() if life.worker == worker] or [(0, 0, 0)]
        assert (owed.requests, owed.prefill_tokens, owed.decode_blocks) == tuple(
            map(sum, zip(*left, strict=True))
        )
    assert len(ledger) == sum(life.owes()[0] for life in last.values())
    assert ledger.expire(1_000.0) == sum(life.owes()[0] for life in last.values())
    assert all(ledger.of(worker).requests == 0 for worker in WORKERS)
