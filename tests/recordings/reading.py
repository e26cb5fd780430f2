"""Recorded bytes for tests: ours, and those of real engines where they are to be had."""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent


def payloads(name: str) -> list[bytes]:
    """Golden batch payloads, such as `vllm/arrays-2`."""
    return [bytes.fromhex(line) for line in (HERE / f"{name}.hex").read_text().splitlines()]


def frames(path: Path) -> Iterator[list[bytes]]:
    """Messages of a capture: a byte with the number of frames, then each as u32be length and
    bytes; gzipped or not."""
    data = path.read_bytes()
    stream = io.BytesIO(gzip.decompress(data) if path.suffix == ".gz" else data)
    while count := stream.read(1):
        yield [stream.read(*struct.unpack(">I", stream.read(4))) for _ in range(count[0])]
