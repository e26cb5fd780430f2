"""KV bytes between two engines, over real sockets: what comes is right, or does not count."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from workers.sim.kvframes import BrokenTransfer, Content, Question
from workers.sim.kvreader import KvReader
from workers.sim.kvserver import KvServer
from workers.sim.staging import NotStaged, Staging

SIZE = 4096
NAMES = [hash(("block", n)) % (1 << 255) for n in range(700)]
CONTENT = Content(SIZE)


@contextmanager
def serving(lease_s: float = 30.0, bytes_per_s: float | None = None) -> Iterator[KvServer]:
    done: list[str] = []
    server = KvServer(
        ("127.0.0.1", 0),
        "life-1",
        CONTENT,
        Staging(lease_s),
        bytes_per_s=bytes_per_s,
        on_done=done.append,
    )
    try:
        yield server
    finally:
        server.close()


def ask(pages: list[int], id: str = "r", engine: str = "life-1") -> Question:
    return Question("read", id, engine, pages)


def test_every_block_comes_whole_and_is_let_go() -> None:
    with serving() as server:
        pages = server.stage("r", NAMES, None)
        reader = KvReader(server.address, CONTENT)
        assert reader.read(ask(pages), NAMES) == 700 * SIZE
        assert server.release("r") is False  # the reader has said that it is done
        with pytest.raises(BrokenTransfer, match="nothing is kept for r"):
            KvReader(server.address, CONTENT).read(ask(pages), NAMES)


def test_what_is_over_is_an_error_and_never_other_blocks() -> None:
    with serving(lease_s=0.0) as server:
        pages = server.stage("r", NAMES[:4], None)
        assert server.expire() == ["r"]
        assert sorted(server.stage("other", NAMES[10:14], None)) == sorted(pages)
        for id in ("r", "other"):
            with pytest.raises(BrokenTransfer):
                KvReader(server.address, CONTENT).read(ask(pages, id), NAMES[:4])


def test_another_requests_pages_are_noticed_by_their_content() -> None:
    with serving() as server:
        server.stage("r", NAMES[:4], None)
        theirs = server.stage("other", NAMES[10:14], None)
        with pytest.raises(BrokenTransfer, match="was not given"):
            KvReader(server.address, CONTENT).read(ask(theirs), NAMES[:4])
        with pytest.raises(BrokenTransfer, match="not what it should be"):
            KvReader(server.address, CONTENT).read(ask(theirs, "other"), NAMES[:4])


def test_an_earlier_life_is_told_apart() -> None:
    with serving() as server:
        pages = server.stage("r", NAMES[:4], None)
        with pytest.raises(BrokenTransfer, match="earlier life"):
            KvReader(server.address, CONTENT).read(ask(pages, engine="life-0"), NAMES[:4])


def test_a_torn_block_is_noticed() -> None:
    one, two, other = (
        np.frombuffer(b"".join(CONTENT.parts(name)), np.uint64) for name in NAMES[:3]
    )
    rows = np.stack([one, two])
    CONTENT.check(NAMES[:2], rows)
    rows[1, 300:] = other[300:]
    with pytest.raises(BrokenTransfer, match="block 1"):
        CONTENT.check(NAMES[:2], rows)


def test_large_blocks_are_summed_up_piece_by_piece() -> None:
    large = Content(3 << 20)
    server = KvServer(("127.0.0.1", 0), "life-1", large, Staging(30.0), on_done=lambda _: None)
    try:
        pages = server.stage("r", NAMES[:3], None)
        assert KvReader(server.address, large).read(ask(pages), NAMES[:3]) == 9 << 20
        pages = server.stage("r", NAMES[:3], None)
        with pytest.raises(BrokenTransfer, match="not what it should be"):
            KvReader(server.address, large).read(ask(pages), NAMES[1:4])
    finally:
        server.close()


def test_who_comes_first_to_a_room_waits_for_the_other() -> None:
    with serving() as server:
        later = threading.Timer(0.05, server.stage, ("r", NAMES[:4], 77))
        later.start()
        asked = Question("read", engine_id="life-1", room=77, skip=1)
        assert KvReader(server.address, CONTENT).read(asked, NAMES[1:4]) == 3 * SIZE
        later.join()


def test_a_read_under_way_keeps_its_blocks_and_can_be_given_up() -> None:
    with serving(lease_s=0.05, bytes_per_s=2e6) as server:
        pages = server.stage("r", NAMES, None)
        reader = KvReader(server.address, CONTENT)
        failed: list[BrokenTransfer] = []

        def read() -> None:
            try:
                reader.read(ask(pages), NAMES)
            except BrokenTransfer as error:
                failed.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        while not server.sent_bytes:
            time.sleep(0.001)
        assert server.expire() == []
        reader.abort()
        thread.join(10)
        assert not thread.is_alive() and failed


def test_leases() -> None:
    staging = Staging(10.0)
    pages = staging.stage("a", [1, 2, 3], 0.0)
    assert staging.read("a", pages, 9.9) == [1, 2, 3]
    assert staging.extend("a", 9.9)
    assert staging.expired(19.8) == []
    assert staging.next_expiry_s() == 19.9
    assert not staging.extend("a", 19.9)
    with pytest.raises(NotStaged):
        staging.read("a", pages, 19.9)
    assert staging.expired(19.9) == ["a"]
    assert staging.release("a") and not staging.release("a")
    assert staging.pages == 0
