"""Sessions: what belongs together, and where the last of it went."""

from __future__ import annotations

import msgspec

from controlplane.router.sessions import Sessions, prefix_key, session_key
from proto.ids import RequestId, WorkerId
from proto.route import RouteRequest

A, B = WorkerId("a"), WorkerId("b")
REQUEST = RouteRequest(RequestId("1"), "m", 640, {}, tenant="t", session="s")


def named(*names: int) -> bytes:
    return b"".join(name.to_bytes(8, "little") for name in names)


def test_the_last_worker_is_home_and_the_longest_silent_is_forgotten() -> None:
    sessions = Sessions(sessions_max=2)
    sessions.served(1, A)
    sessions.served(2, A)
    sessions.served(1, B)
    sessions.served(3, A)
    assert [sessions.home(key) for key in (1, 2, 3)] == [B, None, A]
    assert len(sessions) == 2


def test_no_session_has_no_home() -> None:
    sessions = Sessions()
    sessions.served(session_key(msgspec.structs.replace(REQUEST, session="")), A)
    assert len(sessions) == 0


def test_a_session_is_its_tenants_and_its_models() -> None:
    others = [{"tenant": "u"}, {"model": "n"}, {"session": "r"}, {"tenant": "t\0s", "session": ""}]
    keys = {session_key(msgspec.structs.replace(REQUEST, **other)) for other in others}
    assert len(keys) == 4
    assert session_key(REQUEST) not in keys
    assert session_key(REQUEST) == session_key(msgspec.structs.replace(REQUEST, attempt=2))


def test_prompts_that_begin_alike_belong_together() -> None:
    """Sixteen blocks of sixteen tokens decide; the names of blocks hold all that comes before."""
    blocks = list(range(1, 41))
    alike = [*blocks[:16], 77, 78]
    keys = [
        prefix_key(msgspec.structs.replace(REQUEST, blocks={16: named(*names)}))
        for names in (blocks, alike, blocks[:3], [])
    ]
    assert keys == [16, 16, 3, None]


def test_of_several_block_sizes_the_smallest_counts() -> None:
    asked = msgspec.structs.replace(REQUEST, blocks={512: named(9), 64: named(1, 2, 3, 4, 5)})
    assert prefix_key(asked) == 4
    assert prefix_key(REQUEST) is None
