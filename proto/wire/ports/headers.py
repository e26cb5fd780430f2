"""What goes beside a message or a body."""

from __future__ import annotations

from collections.abc import Mapping

Headers = Mapping[str, str]
NO_HEADERS: Headers = {}
