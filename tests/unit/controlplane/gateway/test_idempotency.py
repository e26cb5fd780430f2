"""Two requests with one key: one answer, whoever comes when."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest
from anyio import wait_all_tasks_blocked

from controlplane.gateway import idempotency
from controlplane.gateway.flight import ClientStalled, Sink
from controlplane.gateway.idempotency import Answers
from controlplane.gateway.openai import ClientError
from tests.support.gateway_world import Client

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]


class Engine:
    """Says three words, one at each `release`, and counts how often it was asked."""

    def __init__(self, outcome: str = "completed") -> None:
        self.asked = 0
        self.cancelled = 0
        self._outcome = outcome
        self._go = anyio.Semaphore(0)

    def release(self, words: int = 3) -> None:
        for _ in range(words):
            self._go.release()

    async def __call__(self, sink: Sink) -> str:
        self.asked += 1
        try:
            sink.start(200, {"x": "y"})
            for word in (b"a", b"b", b"c"):
                await self._go.acquire()
                await sink.write(word)
        except anyio.get_cancelled_exc_class():
            self.cancelled += 1
            raise
        return self._outcome


@asynccontextmanager
async def running(kept_s: float = 60.0, bytes_max: int = 1 << 20) -> AsyncIterator[Answers]:
    answers = Answers(kept_s, bytes_max)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(answers.run)
        await wait_all_tasks_blocked()
        yield answers
        tasks.cancel_scope.cancel()


async def test_a_second_request_joins_the_first_from_its_beginning(anyio_backend: str) -> None:
    engine, first, second = Engine(), Client(), Client()
    async with running() as answers:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answers.serve, "t", "k", b"{}", engine, first)
            engine.release(2)
            await wait_all_tasks_blocked()
            tasks.start_soon(answers.serve, "t", "k", b"{}", engine, second)
            await wait_all_tasks_blocked()
            assert (first.read, second.read) == (b"ab", b"ab")
            engine.release()
        later = Client()
        await answers.serve("t", "k", b"{}", engine, later)
    assert first.read == second.read == later.read == b"abc"
    assert later.status == 200
    assert engine.asked == 1


async def test_keys_of_two_tenants_have_nothing_to_do_with_each_other(anyio_backend: str) -> None:
    engine = Engine()
    engine.release(6)
    async with running() as answers:
        await answers.serve("t", "k", b"{}", engine, Client())
        await answers.serve("u", "k", b"{}", engine, Client())
    assert engine.asked == 2


async def test_a_key_stands_for_one_request(anyio_backend: str) -> None:
    engine = Engine()
    engine.release()
    async with running() as answers:
        await answers.serve("t", "k", b"{}", engine, Client())
        with pytest.raises(ClientError) as refused:
            await answers.serve("t", "k", b"other", engine, Client())
    assert (refused.value.status, refused.value.code) == (422, "idempotency_key_reused")


async def test_the_first_client_may_leave_while_another_reads(anyio_backend: str) -> None:
    engine, second = Engine(), Client()
    async with running() as answers, anyio.create_task_group() as tasks:
        with anyio.CancelScope() as first:
            tasks.start_soon(answers.serve, "t", "k", b"{}", engine, second)
            await wait_all_tasks_blocked()

            async def leave() -> None:
                await wait_all_tasks_blocked()
                first.cancel()

            tasks.start_soon(leave)
            await answers.serve("t", "k", b"{}", engine, Client())
        engine.release()
    assert second.read == b"abc"
    assert engine.cancelled == 0


async def test_when_nobody_reads_any_more_the_work_is_cancelled(anyio_backend: str) -> None:
    engine = Engine()
    async with running() as answers:
        with anyio.CancelScope() as client:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(answers.serve, "t", "k", b"{}", engine, Client())
                await wait_all_tasks_blocked()
                client.cancel()
        await wait_all_tasks_blocked()
        assert engine.cancelled == 1
        engine.release(6)
        again = Client()
        await answers.serve("t", "k", b"{}", engine, again)
    assert again.read == b"abc"


async def test_a_client_that_goes_with_its_whole_answer_leaves_it_to_be_kept(
    anyio_backend: str,
) -> None:
    class Told(Client):
        has_all = False

        def finish(self) -> None:
            self.has_all = True

    asked, hung_up = 0, anyio.Event()

    async def lingers(sink: Sink) -> str:
        nonlocal asked
        asked += 1
        sink.start(200, {})
        await sink.write(b"abc")
        sink.finish()
        await hung_up.wait()
        return "completed"

    async with running() as answers:
        client, again = Told(), Told()
        with anyio.CancelScope() as first:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(answers.serve, "t", "k", b"{}", lingers, client)
                await wait_all_tasks_blocked()
                first.cancel()
        assert client.has_all
        hung_up.set()
        await answers.serve("t", "k", b"{}", lingers, again)
    assert again.read == b"abc"
    assert asked == 1


async def test_a_failure_is_not_kept(anyio_backend: str) -> None:
    broken, engine = Engine("engine_lost"), Engine()
    broken.release()
    engine.release()

    async def refused(sink: Sink) -> str:
        raise ClientError(503, "busy", code="all_busy")

    async with running() as answers:
        await answers.serve("t", "k", b"{}", broken, Client())
        with pytest.raises(ClientError, match="busy"):
            await answers.serve("t", "k", b"{}", refused, Client())
        await answers.serve("t", "k", b"{}", engine, Client())
    assert engine.asked == 1


async def test_a_bug_while_serving_one_request_ends_no_other(anyio_backend: str) -> None:
    engine, other = Engine(), Client()

    async def broken(sink: Sink) -> str:
        raise RecursionError("a bug")

    async def broken_later(sink: Sink) -> str:
        sink.start(200, {})
        await sink.write(b"a")
        raise RecursionError("a bug")

    async with running() as answers, anyio.create_task_group() as tasks:
        tasks.start_soon(answers.serve, "t", "k", b"{}", engine, other)
        await wait_all_tasks_blocked()
        cut_off = Client()
        for run, client in ((broken, Client()), (broken_later, cut_off)):
            with pytest.raises(RecursionError, match="a bug"):
                await answers.serve("t", "other", b"{}", run, client)
        engine.release()
    assert cut_off.read == b"a"
    assert other.read == b"abc"


async def test_a_reader_that_stalls_harms_nobody_else(anyio_backend: str) -> None:
    class Stalled(Client):
        async def write(self, data: bytes) -> None:
            raise ClientStalled("did not read")

    engine, patient = Engine(), Client()
    async with running() as answers, anyio.create_task_group() as tasks:
        tasks.start_soon(answers.serve, "t", "k", b"{}", engine, patient)
        await wait_all_tasks_blocked()
        engine.release(1)
        with pytest.raises(ClientStalled):
            await answers.serve("t", "k", b"{}", engine, Stalled())
        engine.release(2)
    assert patient.read == b"abc"


@pytest.mark.parametrize(("kept_s", "bytes_max"), [(0.0, 1 << 20), (60.0, 2)])
async def test_answers_are_forgotten_by_age_and_by_size(
    anyio_backend: str, kept_s: float, bytes_max: int
) -> None:
    engine = Engine()
    engine.release(6)
    async with running(kept_s, bytes_max) as answers:
        await answers.serve("t", "k", b"{}", engine, Client())
        with anyio.fail_after(5):
            while engine.asked < 2:
                await answers.serve("t", "k", b"{}", engine, Client())
                await anyio.lowlevel.checkpoint()


async def test_the_oldest_answers_are_forgotten_when_there_are_too_many(
    anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "ANSWERS_MAX", 2, raising=False)
    engine = Engine()
    engine.release(15)
    async with running() as answers:
        for key in "abcbcab":  # the second `a` comes for `b`, which then comes for `c`
            await answers.serve("t", key, b"{}", engine, Client())
    assert engine.asked == 5


async def test_an_answer_too_long_to_be_kept_ends_in_an_error(
    anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "ANSWER_BYTES_MAX", 2)
    engine = Engine()
    engine.release()
    async with running() as answers:
        with pytest.raises(ClientError) as refused:
            await answers.serve("t", "k", b"{}", engine, Client())
    assert refused.value.code == "answer_too_long"


async def test_an_answer_whose_length_is_too_much_is_refused_before_its_head(
    anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "ANSWER_BYTES_MAX", 2)

    async def whole(sink: Sink) -> str:
        sink.start(200, {}, 3)
        await sink.write(b"abc")
        return "completed"

    client = Client()
    async with running() as answers:
        with pytest.raises(ClientError) as refused:
            await answers.serve("t", "k", b"{}", whole, client)
    assert refused.value.code == "answer_too_long"
    assert (client.status, client.read) == (0, b"")
