"""A worker is to take no new requests, or to take them again; its agent obeys."""

from __future__ import annotations

import msgspec


class DrainRequest(msgspec.Struct, frozen=True):
    """To one agent."""

    drain: bool = True
    """False: the worker serves again."""


class DrainReply(msgspec.Struct, frozen=True):
    """How it is now."""

    draining: bool
    left: int
    """Requests that the engine has still to finish, as far as it says; 1 if it has none, and keeps
    blocks that another engine has still to fetch."""
    evacuating: bool = False
    """What it caches is being moved to others."""
