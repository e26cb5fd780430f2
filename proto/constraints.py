"""What a request demands of whoever serves it. A demand is kept or the request is refused.

Routers filter by it, and so does a gateway that must choose by itself.
"""

from __future__ import annotations

import msgspec

from proto.ids import WorkerId
from proto.workers import WorkerRecord

NOT_ALLOWED = "not_allowed"
"""The request names those who may serve it, and the worker is not among them."""
TAINTED = "tainted"
"""The worker has a taint that the request does not tolerate."""
TOPOLOGY = "topology"
"""The worker is not where the request must be served."""
NO_ADAPTER = "no_adapter"
"""The worker does not have the LoRA adapter, and would not load it."""


class Constraints(msgspec.Struct, frozen=True):
    """Empty fields demand nothing, except that a tainted worker is always to be tolerated."""

    adapter: str = ""
    """A LoRA adapter of the model."""
    only: tuple[WorkerId, ...] = ()
    topology: tuple[tuple[str, str], ...] = ()
    """Labels that the worker's hardware must bear, each with its value."""
    tolerations: tuple[str, ...] = ()
    """Taints that do not matter."""

    def refusal(self, record: WorkerRecord) -> str:
        """Why the worker may not serve the request, "" if it may."""
        if self.only and record.worker not in self.only:
            return NOT_ALLOWED
        if record.taints and not set(record.taints) <= set(self.tolerations):
            return TAINTED
        labels = record.hardware.topology
        if any(labels.get(label) != value for label, value in self.topology):
            return TOPOLOGY
        if self.adapter and not (record.loads_adapters or self.adapter in record.adapters):
            return NO_ADAPTER
        return ""


UNCONSTRAINED = Constraints()
