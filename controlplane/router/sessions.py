"""Which requests belong together, and which worker had the last of them. Pure."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b

from proto.hashing import HASH_BYTES
from proto.ids import WorkerId
from proto.route import RouteRequest

SESSIONS_MAX = 1 << 16
"""Some ten megabytes."""
KEY_TOKENS = 256
"""Prompts that begin with so many equal tokens belong together."""


class Sessions:
    """The last worker of each session; those that have been silent longest are forgotten first."""

    def __init__(self, sessions_max: int = SESSIONS_MAX) -> None:
        self._sessions_max = sessions_max
        self._homes: OrderedDict[int, WorkerId] = OrderedDict()

    def __len__(self) -> int:
        return len(self._homes)

    def home(self, session: int) -> WorkerId | None:
        """Where the session's last request went; the worker may be gone."""
        return self._homes.get(session)

    def served(self, session: int, worker: WorkerId) -> None:
        """A request of the session went there. 0 is no session."""
        if session:
            self._homes[session] = worker
            self._homes.move_to_end(session)
            if len(self._homes) > self._sessions_max:
                self._homes.popitem(last=False)


def session_key(request: RouteRequest) -> int:
    """64 bits that stand for the session; 0 if the request has none. What a client calls its
    session is its own: another tenant's of that name is another."""
    if not request.session:
        return 0
    named = "\0".join((request.model, request.tenant, request.session)).encode()
    return int.from_bytes(blake2b(named, digest_size=HASH_BYTES).digest(), "little")


def prefix_key(request: RouteRequest) -> int | None:
    """64 bits that stand for how the prompt begins; None if it has not one whole block."""
    if not request.blocks:
        return None
    block_tokens = min(request.blocks)
    names = request.blocks[block_tokens][: max(1, KEY_TOKENS // block_tokens) * HASH_BYTES]
    return int.from_bytes(names[-HASH_BYTES:], "little") if names else None
