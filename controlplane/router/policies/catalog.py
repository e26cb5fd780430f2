"""The policies and filters that there are, by name: ours, and those that users have added."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from controlplane.router.filters import Filter
from controlplane.router.policies.affinity import consistent_hash
from controlplane.router.policies.base import Policy
from controlplane.router.policies.blind import random_choice, round_robin
from controlplane.router.policies.kv import kv
from controlplane.router.policies.lmetric import lmetric
from controlplane.router.policies.load import least_loaded, power_of_two
from controlplane.router.policies.slo import slo

POLICIES: Mapping[str, Policy] = {
    "consistent_hash": consistent_hash,
    "kv": kv,
    "least_loaded": least_loaded,
    "lmetric": lmetric,
    "power_of_two": power_of_two,
    "random": random_choice,
    "round_robin": round_robin,
    "slo": slo,
}
FALLBACK = "kv"
"""What decides where a user's policy fails."""


class Faults:
    """How often what users have added has failed."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._untold: dict[str, str] = {}

    def note(self, name: str, why: str) -> None:
        """It has failed once more."""
        if not self.counts[name]:
            self._untold[name] = why
        self.counts[name] += 1

    def take_untold(self) -> Mapping[str, str]:
        """Why those failed that had never failed before, each told once."""
        untold, self._untold = self._untold, {}
        return untold


@dataclass(frozen=True)
class Catalog:
    """What a router can be asked for."""

    policies: Mapping[str, Policy] = field(default_factory=lambda: POLICIES)
    filters: Mapping[str, Filter] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)

    def policy(self, name: str) -> Policy:
        """The policy of that name; ValueError lists those there are."""
        try:
            return self.policies[name]
        except KeyError:
            raise ValueError(
                f"there is no policy {name!r}; there are: {', '.join(sorted(self.policies))}"
            ) from None
