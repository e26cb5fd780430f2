"""Names of things, one type each, and the one rule for telling two lives of a process apart."""

from __future__ import annotations

import random
from typing import NewType

WorkerId = NewType("WorkerId", str)
"""A routing target: one engine, or one data-parallel rank of it. A subject token (see below)."""

RequestId = NewType("RequestId", str)
"""One client request, the same across retries and migrations."""

ServiceId = NewType("ServiceId", str)
"""One process of a service, for example `router-7f3a`; agents use their worker's id."""

Incarnation = NewType("Incarnation", int)
"""One life of a numbered stream. A greater incarnation voids everything said under a smaller."""

NAME_MAX_CHARS = 128
_TOKEN_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=")


class BadName(ValueError):
    """A name that cannot stand as one token of a subject or one segment of a key."""


def check_name(name: str, what: str) -> str:
    """Return `name` if it can be a subject token: letters, digits, `-`, `_`, `=`; not empty."""
    if not name or len(name) > NAME_MAX_CHARS or not _TOKEN_CHARS.issuperset(name):
        raise BadName(
            f"{what} {name!r} must be 1 to {NAME_MAX_CHARS} letters, digits, '-', '_' or '='"
        )
    return name


def new_incarnation(now_s: float) -> Incarnation:
    """A number that grows with wall-clock time, so that a restarted process outranks its past.

    Milliseconds since the epoch; a process does not restart twice within one.
    """
    return Incarnation(int(now_s * 1000))


def new_request_id(rng: random.Random) -> RequestId:
    """128 random bits in hex."""
    return RequestId(f"{rng.getrandbits(128):032x}")


def request_id_after(given: str, rng: random.Random) -> RequestId:
    """A request's own, which begins with the name that its client gave: that name may be given to
    any number of requests at once, by any number of clients. Raises `BadName`."""
    suffix = f"-{rng.getrandbits(48):012x}"
    return RequestId(check_name(given, "request")[: NAME_MAX_CHARS - len(suffix)] + suffix)
