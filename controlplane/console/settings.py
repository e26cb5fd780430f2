"""The console's own settings."""

from __future__ import annotations

from pydantic import Field

from controlplane.runtime.settings import Group


class ConsoleSettings(Group):
    """Where the page is, and how much it remembers."""

    host: str = Field(
        "127.0.0.1",
        description="address to listen on; nobody is asked for a password here, so put a proxy that"
        " does in front before you change it",
    )
    port: int = Field(8001, ge=0, le=65535, description="the page's port; 0 takes a free one")
    hosts: tuple[str, ...] = Field(
        (),
        description="names by which browsers may call it, beside those of this machine; keeps other"
        " people's pages from reading it",
    )
    every_s: float = Field(1.0, ge=0.2, le=10, description="how often pages are told what is new")
    window_s: float = Field(10.0, ge=1, description="latencies and rates are taken over so long")
    history_s: float = Field(
        600.0, ge=60, le=86_400, description="how far back the curves of a newly opened page go"
    )
    pages_max: int = Field(32, ge=1, description="pages that may be open at once")
    spans_max: int = Field(
        0,
        ge=0,
        description="spans to keep, for clusters without a collector: takes OTLP over HTTP on this"
        " port, under /v1/traces; 0: none",
    )
    ttft_ms: float = Field(2_000.0, gt=0, description="target to draw: time to first token")
    tpot_ms: float = Field(100.0, gt=0, description="target to draw: time per output token")
