"""Numbers as they may come from outside: what no honest sender exceeds.

A reader adds many of them up in 64 bits, and learns from them; a count below zero, a time that is
not a number or a sum that overflows must not come so far.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from pydantic import Field

COUNT_MAX = 1 << 40
SPAN_MAX = 1e12
LIVES_MAX = 1 << 53
"""Milliseconds since the epoch for 285,000 years; JSON's numbers are exact up to here."""

# Each is held to by messages (msgspec) and by records (pydantic), which read their own word of it.
Count = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX), Field(ge=0, le=COUNT_MAX)]
"""How many tokens, blocks, requests or steps."""

Span = Annotated[float, msgspec.Meta(ge=0, le=SPAN_MAX), Field(ge=0, le=SPAN_MAX)]
"""How long, how much or how fast, in whatever unit."""

Life = Annotated[int, msgspec.Meta(ge=0, le=LIVES_MAX), Field(ge=0, le=LIVES_MAX)]
"""An incarnation."""
