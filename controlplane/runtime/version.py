"""Which build of Tokenplane this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def _installed() -> str:
    try:
        return version("tokenplane")
    except PackageNotFoundError:
        return "0.0.0"


VERSION = _installed()
"""As installed; 0.0.0 when run from a source tree that is not."""
