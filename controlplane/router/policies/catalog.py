"""The policies that there are, by name."""

from __future__ import annotations

from controlplane.router.policies.affinity import consistent_hash
from controlplane.router.policies.base import Policy
from controlplane.router.policies.blind import random_choice, round_robin
from controlplane.router.policies.kv import kv
from controlplane.router.policies.lmetric import lmetric
from controlplane.router.policies.load import least_loaded, power_of_two
from controlplane.router.policies.slo import slo

POLICIES: dict[str, Policy] = {
    "consistent_hash": consistent_hash,
    "kv": kv,
    "least_loaded": least_loaded,
    "lmetric": lmetric,
    "power_of_two": power_of_two,
    "random": random_choice,
    "round_robin": round_robin,
    "slo": slo,
}


def policy(name: str) -> Policy:
    """The policy of that name; ValueError lists those there are."""
    try:
        return POLICIES[name]
    except KeyError:
        raise ValueError(
            f"there is no policy {name!r}; there are: {', '.join(sorted(POLICIES))}"
        ) from None
