"""Buckets of the bus in memory: what each key holds, and when it was written last. Pure."""

from __future__ import annotations

from proto.wire.errors import BucketFull
from proto.wire.ports import BucketSpec, Cell


class KeptBucket:
    """Cells by key, in the order of their last writes. A deletion is a write without a value."""

    def __init__(self, spec: BucketSpec) -> None:
        self.spec = spec
        self._cells: dict[str, tuple[Cell, float]] = {}
        self._bytes = 0
        self._revision = 0

    def get(self, key: str, now_s: float) -> Cell | None:
        self.trim(now_s)
        cell, _ = self._cells.get(key, (None, 0.0))
        return cell if cell is not None and cell.value is not None else None

    def write(self, key: str, value: bytes | None, revision: int, now_s: float) -> int | None:
        """Over `revision`, 0 for a key that is not there; None if that is not how it is. Raises
        `BucketFull`."""
        present = self.get(key, now_s)
        if (present.revision if present else 0) != revision:
            return None
        cell = Cell(key, value, self._revision + 1)
        more_bytes = _size_bytes(cell) - (_size_bytes(present) if present else 0)
        if more_bytes > 0 and self._bytes + more_bytes > self.spec.max_bytes:
            raise BucketFull(f"{self.spec.name} is full")
        self._revision += 1
        self._bytes += more_bytes
        self._cells.pop(key, None)
        self._cells[key] = cell, now_s
        return self._revision

    def all(self, now_s: float) -> list[Cell]:
        """Whatever is there."""
        self.trim(now_s)
        return [cell for cell, _ in self._cells.values() if cell.value is not None]

    def after(self, revision: int) -> Cell | None:
        """The first cell that was written after `revision` and not since."""
        return next((c for c, _ in self._cells.values() if c.revision > revision), None)

    def trim(self, now_s: float) -> None:
        """Forget what nobody has written for too long."""
        while self._cells:
            key, (cell, written_s) = next(iter(self._cells.items()))
            if written_s + self.spec.max_age_s > now_s:
                return
            self._bytes -= _size_bytes(cell)
            del self._cells[key]


def _size_bytes(cell: Cell) -> int:
    """What a cell counts for; one that is deleted does not."""
    return 0 if cell.value is None else len(cell.key) + len(cell.value)
