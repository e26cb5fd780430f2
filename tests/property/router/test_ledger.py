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
    """One request on one worker: what is said of it, by whom, in the order that it happened."""

    request: RequestId
    worker: WorkerId
    ours: bool
    prefill_tokens: int
    phases: tuple[Phase, ...]

    @property
    def booking(self) -> Booking:
        return Booking(self.request, self.worker, self.prefill_tokens, 7)

    def owes(self) -> tuple[int, int, int]:
        """What is left once everything has been heard."""
        if Phase.ENDED in self.phases:
            return 0, 0, 0
        return 1, 0 if Phase.FIRST_TOKEN in self.phases else self.prefill_tokens, 7


FULL_LIFE = (Phase.DISPATCHED, Phase.FIRST_TOKEN, Phase.ALIVE, Phase.ENDED)


@st.composite
def lives(draw: st.DrawFn) -> list[Life]:
    return [
        Life(
            RequestId(f"r{i}"),
            draw(st.sampled_from(WORKERS)),
            draw(st.booleans()),
            draw(st.integers(1, 1_000)),
            FULL_LIFE[: draw(st.integers(0, len(FULL_LIFE)))],
        )
        for i in range(draw(st.integers(1, 8)))
    ]


@settings(max_examples=300, deadline=None)
@given(lives=lives(), rng=st.randoms(use_true_random=False))
def test_any_order_with_doubles_comes_to_the_same(lives: list[Life], rng: object) -> None:
    ledger = Ledger(silence_s=60)
    words: list[Booking | Progress] = []
    for life in lives:
        if life.ours:
            ledger.book(life.booking, 0.0)  # we book before anybody can speak of it
        else:
            words += [life.booking, life.booking]
        said = [Progress(life.request, life.worker, 1, phase) for phase in life.phases]
        words += said + said
    rng.shuffle(words)  # type: ignore[attr-defined]
    for word in words:
        if isinstance(word, Booking):
            ledger.book_elsewhere(word, 0.0)
        else:
            ledger.hear(word, 0.0)
    for worker in WORKERS:
        owed = ledger.of(worker)
        left = [life.owes() for life in lives if life.worker == worker] or [(0, 0, 0)]
        assert (owed.requests, owed.prefill_tokens, owed.decode_blocks) == tuple(
            map(sum, zip(*left, strict=True))
        )
    assert len(ledger) == sum(life.owes()[0] for life in lives)
    assert ledger.expire(1_000.0) == sum(life.owes()[0] for life in lives)
    assert all(ledger.of(worker).requests == 0 for worker in WORKERS)
