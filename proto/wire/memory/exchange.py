"""The server of the bus in memory: who listens to what, what is kept, and what gets lost.

What is not delayed arrives within the call that sends it, in the order of subscription, so a run
repeats itself if its faults do.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import NamedTuple, Protocol

import anyio
from anyio.abc import TaskStatus

from proto.wire.memory.cells import KeptBucket
from proto.wire.memory.faults import Delay, Deliver, Drop, Duplicate, Fault
from proto.wire.memory.streams import KeptStream
from proto.wire.patterns import is_wild, matches
from proto.wire.ports import BucketSpec, Message, StreamSpec

Happen = Callable[[], None]


class Client(Protocol):
    """Whoever is connected."""

    @property
    def name(self) -> str: ...

    @property
    def connected(self) -> bool: ...


class Parcel(NamedTuple):
    """A message under way. A stream keeps it once for each `message_id`, and tells `stored` the
    sequence number."""

    message: Message
    reply: str = ""
    message_id: str = ""
    stored: Callable[[int], None] | None = None


class Listener(NamedTuple):
    """A subscription; `take` must not wait."""

    owner: Client
    pattern: str
    take: Callable[[Parcel], None]
    group: str | None = None


class Exchange:
    """Sends every message on its ways, as far as `fault` lets it."""

    def __init__(self, fault: Fault, ack_wait_s: float) -> None:
        self._fault = fault
        self._ack_wait_s = ack_wait_s
        self._listeners: dict[int, Listener] = {}
        self._exact: dict[str, set[int]] = {}
        self._wild: set[int] = set()
        self._numbers = count()
        self._turns: defaultdict[str, count[int]] = defaultdict(count)
        self._streams: dict[str, KeptStream] = {}
        self._buckets: dict[str, KeptBucket] = {}
        self._watchers: dict[int, Happen] = {}
        self._late: list[tuple[float, int, Happen]] = []
        self._sooner: anyio.Event | None = None

    def listen(self, listener: Listener) -> int:
        """Returns the number to `leave` by."""
        number = next(self._numbers)
        self._listeners[number] = listener
        if is_wild(listener.pattern):
            self._wild.add(number)
        else:
            self._exact.setdefault(listener.pattern, set()).add(number)
        return number

    def leave(self, number: int) -> None:
        pattern = self._listeners.pop(number).pattern
        if is_wild(pattern):
            self._wild.remove(number)
            return
        self._exact[pattern].remove(number)
        if not self._exact[pattern]:
            del self._exact[pattern]

    def publish(self, sender: Client, parcel: Parcel) -> int:
        """Returns how many it is meant for."""
        subject = parcel.message.subject
        concerned = self._concerned(subject)
        for number, listener in concerned:
            arrive = partial(self._arrive, number, parcel)
            self.carry(sender.name, subject, listener.owner.name, arrive)
        keepers = [stream for stream in self._streams.values() if stream.wants(subject)]
        for stream in keepers:
            store = partial(self._store, stream, parcel, sender)
            self.carry(sender.name, subject, stream.spec.name, store)
        return len(concerned) + len(keepers)

    def carry(self, sender: str, subject: str, receiver: str, arrive: Happen) -> None:
        """One message on its way to one receiver: `arrive` happens once, twice, later or never."""
        match self._fault(sender, subject, receiver):
            case Deliver():
                arrive()
            case Duplicate():
                arrive()
                arrive()
            case Delay(seconds):
                self._arrive_later(seconds, arrive)
            case Drop():
                pass

    def ensure_stream(self, spec: StreamSpec) -> None:
        if spec.name in self._streams:
            self._streams[spec.name].spec = spec
        else:
            self._streams[spec.name] = KeptStream(spec, self._ack_wait_s)

    def bucket(self, spec: BucketSpec) -> KeptBucket:
        """The one of that name, made if it is not there."""
        kept = self._buckets.setdefault(spec.name, KeptBucket(spec))
        kept.spec = spec
        return kept

    def stream(self, name: str) -> KeptStream | None:
        return self._streams.get(name)

    def keeps(self, subject: str) -> bool:
        """Whether any stream does."""
        return any(stream.wants(subject) for stream in self._streams.values())

    def watch(self, changed: Happen) -> int:
        """Have `changed` called when a reader of a stream may find more; see `unwatch`."""
        number = next(self._numbers)
        self._watchers[number] = changed
        return number

    def unwatch(self, number: int) -> None:
        del self._watchers[number]

    def stir(self) -> None:
        """Tell the readers of streams to look again."""
        for changed in tuple(self._watchers.values()):
            changed()

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Let delayed messages arrive, for ever."""
        self._sooner = anyio.Event()
        task_status.started()
        while True:
            with anyio.CancelScope(deadline=self._late[0][0] if self._late else math.inf):
                await self._sooner.wait()
            self._sooner = anyio.Event()
            while self._late and self._late[0][0] <= anyio.current_time():
                heapq.heappop(self._late)[2]()

    def _arrive_later(self, seconds: float, arrive: Happen) -> None:
        if self._sooner is None:
            raise RuntimeError("to delay messages a hub must be entered: `async with hub`")
        due_s = anyio.current_time() + seconds
        heapq.heappush(self._late, (due_s, next(self._numbers), arrive))
        self._sooner.set()

    def _concerned(self, subject: str) -> list[tuple[int, Listener]]:
        """Everybody without a group, and of each group the one whose turn it is."""
        concerned: list[tuple[int, Listener]] = []
        groups: dict[str, list[tuple[int, Listener]]] = {}
        wild = (each for each in self._wild if matches(self._listeners[each].pattern, subject))
        for number in sorted([*self._exact.get(subject, ()), *wild]):
            listener = self._listeners[number]
            if not listener.owner.connected:
                continue
            if listener.group is None:
                concerned.append((number, listener))
            else:
                groups.setdefault(listener.group, []).append((number, listener))
        for group, members in groups.items():
            concerned.append(members[next(self._turns[group]) % len(members)])
        return concerned

    def _arrive(self, number: int, parcel: Parcel) -> None:
        listener = self._listeners.get(number)
        if listener is not None and listener.owner.connected:
            listener.take(parcel)

    def _store(self, stream: KeptStream, parcel: Parcel, sender: Client) -> None:
        sequence = stream.store(parcel.message, parcel.message_id, anyio.current_time())
        self.stir()
        if parcel.stored is not None:
            confirm = partial(parcel.stored, sequence)
            self.carry(stream.spec.name, parcel.message.subject, sender.name, confirm)
