"""What one session may take altogether: an agent that goes in circles is stopped (GW17). Pure.

A session is what a client calls so in `x-tokenplane-session`, of one tenant. Its steps are its
requests; its tokens are reserved and settled as a tenant's are; its time runs from its first
request. What it may take is the tenant's to say, and who stops it is told why, in the error's code.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

from controlplane.gateway.openai import ClientError
from controlplane.gateway.tenants import Tenant

SESSIONS_MAX = 65_536
"""Remembered in one process; the one that has asked for nothing for longest is forgotten first."""


@dataclass
class Session:
    """What one has taken so far."""

    began_s: float
    requests: int = 0
    tokens: int = 0


class Sessions:
    """Those of all tenants, in one gateway process."""

    def __init__(self, sessions_max: int = SESSIONS_MAX) -> None:
        self._sessions_max = sessions_max
        self._known: OrderedDict[tuple[str, bytes], Session] = OrderedDict()

    def admit(self, tenant: Tenant, name: str, tokens: int, now_s: float) -> Session | None:
        """The session that a request of so many tokens belongs to, and may go on; None if it has
        no limits. Takes nothing yet. Raises `ClientError` (403)."""
        if not name or not tenant.limits_sessions:
            return None
        # A name may be as long as a header, and is no more to us than this.
        key = (tenant.name, hashlib.blake2b(name.encode(), digest_size=16).digest())
        session = self._known.get(key) or Session(now_s)
        if reason := _why_it_ends(tenant, session, tokens, now_s):
            code, limit = reason
            raise ClientError(403, f"this session has had its {limit}", code=code)
        self._known[key] = session
        self._known.move_to_end(key)
        if len(self._known) > self._sessions_max:
            self._known.popitem(last=False)
        return session


def _why_it_ends(
    tenant: Tenant, session: Session, tokens: int, now_s: float
) -> tuple[str, str] | None:
    """The reason's code, and the limit in words."""
    requests_max, tokens_max = tenant.session_requests_max, tenant.session_tokens_max
    if requests_max is not None and session.requests >= requests_max:
        return "session_requests_spent", f"{requests_max} requests"
    if tokens_max is not None and session.tokens + tokens > tokens_max:
        return "session_tokens_spent", f"{tokens_max} tokens, or would with this request"
    seconds_max = tenant.session_seconds_max
    if seconds_max is not None and now_s - session.began_s > seconds_max:
        return "session_time_spent", f"{seconds_max:g} seconds"
    return None
