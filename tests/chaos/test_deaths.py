"""A thousand deaths: every part of a split fleet dies at every state that a ticket comes to.

    make chaos                                      # with everything else that is broken on purpose
    PYTHONHASHSEED=0 python -m pytest -m chaos tests/chaos/test_deaths.py -s

In virtual time; seeds are printed, and one plays the same history again (the order of Python's sets
belongs to it, hence the variable).
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

from proto.transfers import State
from tests.simulation import split

VICTIMS = {
    "prefill engine", "decode engine", "prefill agent", "decode agent", "coordinator", "bus",
}  # fmt: skip
FAULTS_MIN = 1_000
SEED = 1_000 * (1 + int(os.environ.get("CHAOS_SEED", "0")))


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_a_thousand_deaths(capsys: pytest.CaptureFixture[str]) -> None:
    """Every part, at every state that a ticket comes to."""
    faults: Counter[tuple[State, str]] = Counter()
    outcomes: Counter[str] = Counter()
    seed = SEED
    while faults.total() < FAULTS_MIN:
        played = split.run(seed)
        faults += played.faults
        outcomes += played.outcomes
        with capsys.disabled():
            print(f"seed {seed}: {faults.total()} faults, {dict(outcomes)}", flush=True)
        seed += 1
    reached = {State.RESERVED, State.PREFILLING, State.STAGED, State.TRANSFERRING, State.LANDED}
    missing = [(state, who) for state in reached for who in VICTIMS if not faults[state, who]]
    assert missing == []
