"""What speculative decoding is expected to bring, from what is measured of it (SD6, SD7).

A verification runs K drafts of each sequence through the target at once and keeps those it agrees
with up to the first it does not, and one token of its own. With `a` the probability that a draft is
kept given that those before it were, a verification brings

    E = 1 + a + a**2 + ... + a**K = (1 - a**(K + 1)) / (1 - a)

tokens, the *accept length*, and costs 1 + K * c plain steps, where a draft's step takes c of the
target's, as long as verifying more tokens than one takes no longer (small batches). The expected
speed-up is the quotient (Leviathan et al., ICML '23, theorem 3.8).
"""

from __future__ import annotations


def accept_length(verifications: int, accepted_tokens: int) -> float:
    """Tokens that a verification brought on average; 1 where there was none: no speculation."""
    return 1 + accepted_tokens / verifications if verifications else 1.0


def expected_accept_length(acceptance: float, drafts: int) -> float:
    """Of `drafts` a verification, each kept with that probability if those before it are."""
    return sum(acceptance**n for n in range(drafts + 1))


def expected_speedup(acceptance: float, drafts: int, draft_cost: float) -> float:
    """Of decoding, by the formula above; above 1 is faster."""
    return expected_accept_length(acceptance, drafts) / (drafts * draft_cost + 1)


def conditional_acceptance(length: float, drafts: int) -> float:
    """The `a` that makes for that accept length: what counters do not say directly. 0 to 1."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if expected_accept_length(middle, drafts) < length:
            low = middle
        else:
            high = middle
    return (low + high) / 2
