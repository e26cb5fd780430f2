"""Movements of KV blocks, put together from what is said of each step. Pure."""

from __future__ import annotations

from collections import OrderedDict

from controlplane.console.frames import Transfer
from proto.transfers import TERMINAL, State, TicketId, Transition

KEPT_MAX = 2_048
TOLD_MAX = 60


class Movements:
    """The last ones that were spoken of, oldest word first."""

    def __init__(self) -> None:
        self._known: OrderedDict[TicketId, Transfer] = OrderedDict()
        self._sequences: dict[TicketId, int] = {}
        self._changed: set[TicketId] = set()

    def saw(self, step: Transition) -> None:
        """A step was made; words of the past, that come late, are skipped."""
        if step.sequence < self._sequences.get(step.ticket, 0):
            return
        self._sequences[step.ticket] = step.sequence
        self._known[step.ticket] = _after(step, self._known.pop(step.ticket, None))
        self._changed.add(step.ticket)
        while len(self._known) > KEPT_MAX:
            gone, _ = self._known.popitem(last=False)
            del self._sequences[gone]
            self._changed.discard(gone)

    def all(self) -> tuple[Transfer, ...]:
        """Those that were spoken of last."""
        return tuple(self._known.values())[-TOLD_MAX:]

    def take_changed(self) -> tuple[Transfer, ...]:
        """What has changed since this was asked last."""
        changed = tuple(t for ticket, t in self._known.items() if ticket in self._changed)
        self._changed.clear()
        return changed[-TOLD_MAX:]


def _after(step: Transition, before: Transfer | None) -> Transfer:
    failed = step.after in TERMINAL - {State.RELEASED}
    return Transfer(
        ticket=step.ticket,
        request=step.request,
        prefill=step.prefill,
        decode=step.decode,
        state=step.after.value,
        reached=step.before.value if failed else step.after.value,
        began_s=before.began_s if before else step.at_s,
        changed_s=step.at_s,
        kv_bytes=step.kv_bytes or (before.kv_bytes if before else 0),
        link=step.link,
        cause=step.cause,
    )
