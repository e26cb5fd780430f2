"""A request's way through the gateway, with engines that fail in every way; no HTTP server."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable

import anyio
import pytest

from controlplane.gateway.dispatch import RETRY_BURST, RetryBudget
from controlplane.gateway.flight import ClientStalled
from controlplane.gateway.openai import ClientError
from controlplane.gateway.pools import Attempt
from controlplane.gateway.routing import Hints
from controlplane.runtime.version import VERSION
from proto.constraints import Constraints
from proto.ids import WorkerId
from proto.progress import Phase
from proto.route import NO_WORKER
from proto.wire.errors import HttpBroken
from proto.wire.memory.http import Answer, Request
from tests.support.gateway_world import (
    DONE,
    NO_HINTS,
    PIECES,
    SETTINGS,
    SUBJECTS,
    Client,
    World,
    asked,
    broken_at_once,
    broken_later,
    cut_short,
    records,
    silent,
    silent_later,
    whole,
    with_adapter,
    world,
)
from tests.support.router_core import record

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]


async def test_a_stream_comes_through_byte_for_byte(anyio_backend: str) -> None:
    async with world() as ours:
        ours.engine("a", whole)
        client = Client()
        await ours.serve(client)
        assert client.read == b"".join(PIECES) + DONE
        assert client.status == 200
        assert client.headers["x-tokenplane-worker"] == "a"
        assert client.headers["x-tokenplane-engine"] == "sim"
        assert client.headers["x-tokenplane-version"] == VERSION
        [written] = await records(ours, 1)
        assert (written.engine, written.router, written.version) == ("sim", "r", VERSION)
        assert (written.outcome, written.worker, written.output_tokens) == ("completed", "a", 3)
        assert written.ttft_ms is not None
        assert [(p.worker, p.phase) for p in await ours.told()] == [
            ("a", Phase.DISPATCHED),
            ("a", Phase.FIRST_TOKEN),
            ("a", Phase.ENDED),
        ]


async def test_a_model_that_cannot_be_tokenised_is_told_before_it_is_asked_for(
    anyio_backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with world():
        with anyio.fail_after(5):
            while "m is routed by load only" not in caplog.text:  # noqa: ASYNC110 no event tells
                await anyio.sleep(0.01)


@pytest.mark.parametrize("failure", [None, broken_at_once, silent])
async def test_before_the_first_byte_another_worker_is_tried(
    anyio_backend: str, failure: Callable[[], AsyncGenerator[bytes]] | None
) -> None:
    async with world() as ours:
        if failure is not None:
            ours.engine("a", failure)
        ours.engine("b", whole)
        client = Client()
        await ours.serve(client)
        assert client.read.endswith(DONE)
        assert client.headers["x-tokenplane-worker"] == "b"
        assert ours.routed[1].exclude == ("a",)
        assert [route.attempt for route in ours.routed] == [1, 2]
        ends = [each for each in await ours.told(2) if each.phase is Phase.ENDED]
        assert [(p.worker, p.attempt, p.worker_failed) for p in ends] == [
            ("a", 1, True),
            ("b", 2, False),
        ]


@pytest.mark.parametrize("status", [429, 503, 507, 529, 204, 307])
async def test_an_engine_that_is_full_is_left_for_another(anyio_backend: str, status: int) -> None:
    async with world() as ours:
        ours.engine("a", cut_short, status=status)
        ours.engine("b", whole)
        client = Client()
        await ours.serve(client)
        assert client.read.endswith(DONE)


async def test_each_engine_is_asked_in_words_that_it_knows(anyio_backend: str) -> None:
    """TensorRT-LLM refuses a request that asks for token ids."""
    async with world(fleet=(record("a", engine="vllm"), record("b", engine="trtllm"))) as ours:
        bodies: list[bytes] = []

        def full(request: Request) -> Answer:
            bodies.append(request.body)
            return Answer(503, cut_short(), {})

        def serves(request: Request) -> Answer:
            bodies.append(request.body)
            return Answer(200, whole(), {"content-type": "text/event-stream"})

        ours.http.origins |= {"http://a": full, "http://b": serves}
        client = Client()
        await ours.serve(client)
        assert client.read.endswith(DONE)
        assert json.loads(bodies[0]) == {**json.loads(asked()), "return_token_ids": True}
        assert bodies[1] == asked()


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (broken_later, "engine_lost"),
        (cut_short, "engine_lost"),
        (silent_later, "engine_silent"),
    ],
)
async def test_after_the_first_byte_a_failure_is_one_typed_event_and_no_done(
    anyio_backend: str, failure: Callable[[], AsyncGenerator[bytes]], code: str
) -> None:
    async with world() as ours:
        ours.engine("a", failure)
        ours.engine("b", whole)
        client = Client()
        await ours.serve(client)
        events = client.read.removesuffix(b"\n\n").split(b"\n\n")
        assert events[0] + b"\n\n" == PIECES[0]
        assert json.loads(events[-1].removeprefix(b"data: "))["error"]["code"] == code
        assert len(events) == 2
        assert b"[DONE]" not in client.read
        assert len(ours.routed) == 1
        [written] = await records(ours, 1)
        assert written.outcome == code


async def test_gw13_a_request_may_not_take_for_ever_though_tokens_come(
    anyio_backend: str,
) -> None:
    async def endless() -> AsyncGenerator[bytes]:
        while True:
            yield PIECES[0]
            await anyio.sleep(0.01)

    async with world(settings=SETTINGS.model_copy(update={"total_s": 0.2})) as ours:
        ours.engine("a", endless)
        client = Client()
        await ours.serve(client)
        last = client.read.removesuffix(b"\n\n").rpartition(b"\n\n")[2]
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "deadline"
        assert b"[DONE]" not in client.read


async def test_gw6_retries_are_a_share_of_requests(anyio_backend: str) -> None:
    async with world(settings=SETTINGS.model_copy(update={"retry_share": 0.0})) as ours:
        ours.engine("b", whole)
        for _ in range(int(RETRY_BURST)):
            ours.engine("a", broken_at_once)
            await ours.serve(Client())
            ours.engine("a", whole)
            await ours.serve(Client())  # else its breaker would open before
            await ours.serve(Client())
        ours.engine("a", broken_at_once)
        with pytest.raises(ClientError) as caught:
            await ours.serve(Client())
        assert (caught.value.status, caught.value.code) == (502, "engine_lost")


def test_gw6_every_request_earns_a_share_of_a_retry(anyio_backend: str) -> None:
    budget, failed = RetryBudget(0.2), Attempt(0.0, probe=False, fails_anew=True)
    while budget.spend(failed):
        pass
    for _ in range(4):
        budget.earn()
        assert not budget.spend(failed)
    budget.earn()
    assert budget.spend(failed)
    assert not budget.spend(failed)
    with_it = Attempt(0.0, probe=False, fails_anew=False)
    assert all(budget.spend(with_it) for _ in range(1_000))


async def test_gw6_an_engine_that_dies_with_hundreds_of_requests_costs_none(
    anyio_backend: str,
) -> None:
    """All of them opened just before: no budget could have been earned for that many."""
    clients = [Client() for _ in range(6 * int(RETRY_BURST))]
    waiting, all_wait, died = 0, anyio.Event(), anyio.Event()

    async def dies() -> AsyncGenerator[bytes]:
        nonlocal waiting
        waiting += 1
        if waiting == len(clients):
            all_wait.set()
        await died.wait()
        raise HttpBroken("died")
        yield b""

    deadlines = {"route_s": 30.0, "first_token_s": 30.0, "gap_s": 30.0, "total_s": 60.0}
    patient = SETTINGS.model_copy(update=deadlines)
    async with world(settings=patient) as ours:
        ours.engine("a", dies)
        ours.engine("b", whole)
        async with anyio.create_task_group() as tasks:
            for client in clients:
                tasks.start_soon(ours.serve, client)
            with anyio.fail_after(30):
                await all_wait.wait()
            died.set()
    assert {client.read for client in clients} == {b"".join(PIECES) + DONE}


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        (
            b'{"error":{"message":"\\"x\\" is too hot","type":"e","param":"temperature"}}',
            '"x" is too hot',
            "temperature",
        ),
        (b"no JSON \xff", "no JSON \N{REPLACEMENT CHARACTER}", None),
    ],
)
async def test_an_engines_refusal_is_told_in_its_own_words(
    anyio_backend: str, body: bytes, message: str, param: str | None
) -> None:
    async def refuses() -> AsyncGenerator[bytes]:
        yield body

    async with world() as ours:
        ours.engine("a", refuses, status=400)
        with pytest.raises(ClientError) as caught:
            await ours.serve(Client())
        assert (caught.value.status, caught.value.code) == (400, "engine_rejected")
        assert (str(caught.value), caught.value.param) == (message, param)


@pytest.mark.parametrize("status", [404, 499, 501])
async def test_what_is_the_requests_fault_is_no_engines(anyio_backend: str, status: int) -> None:
    async def refuses() -> AsyncGenerator[bytes]:
        yield b"{}"

    async with world() as ours:
        ours.engine("a", refuses, status=status)
        with pytest.raises(ClientError) as caught:
            await ours.serve(Client())
        assert (caught.value.status, caught.value.code) == (status, "engine_rejected")
        assert not any(each.worker_failed for each in await ours.told())


async def test_a_refusal_that_repeats_a_long_prompt_is_one_all_the_same(
    anyio_backend: str,
) -> None:
    async def refuses() -> AsyncGenerator[bytes]:
        yield b"x" * (2 << 20)

    async with world() as ours:
        ours.engine("a", refuses, status=400)
        with pytest.raises(ClientError) as caught:
            await ours.serve(Client())
        assert (caught.value.status, caught.value.code) == (400, "engine_rejected")


async def test_an_answer_too_long_to_be_taken_is_not_its_engines_fault(
    anyio_backend: str,
) -> None:
    async def body() -> AsyncGenerator[bytes]:
        for _ in range(17):
            yield b"1" * (4 << 20)

    async with world() as ours:
        ours.engine("a", body)
        client = Client()
        with pytest.raises(ClientError) as caught:
            await ours.serve(client, stream=False)
        assert (caught.value.status, caught.value.code) == (502, "answer_too_long")
        assert client.status == 0
        assert len(ours.routed) == 1
        assert not any(each.worker_failed for each in await ours.told())


ENGINES_ERROR = (
    b'data: {"error":{"message":"no memory","type":"InternalServerError","code":500}}\n\n'
)
ENGINES_REFUSAL = b'data: {"error":{"message":"too long","type":"BadRequestError","code":400}}\n\n'
ABORTED = b'data: {"choices":[{"index":0,"text":"","finish_reason":"abort"}]}\n\n'


@pytest.mark.parametrize(
    ("last_words", "code"),
    [
        (ENGINES_ERROR, "engine_gave_up"),
        (ENGINES_REFUSAL, "engine_rejected"),
        (ABORTED, "engine_gave_up"),
    ],
)
async def test_gw11_what_an_engine_gives_up_never_looks_whole(
    anyio_backend: str, last_words: bytes, code: str
) -> None:
    """vLLM writes `[DONE]` after its own error, too, and after an answer that was aborted."""

    async def gives_up() -> AsyncGenerator[bytes]:
        yield PIECES[0]
        yield last_words + DONE

    async with world() as ours:
        ours.engine("a", gives_up)
        client = Client()
        await ours.serve(client)
        first, last = client.read.removesuffix(b"\n\n").split(b"\n\n")
        assert first + b"\n\n" == PIECES[0]
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == code
        [written] = await records(ours, 1)
        assert written.outcome == code


@pytest.mark.parametrize("last_words", [ENGINES_ERROR, ABORTED])
async def test_what_an_engine_gives_up_at_once_another_one_does(
    anyio_backend: str, last_words: bytes
) -> None:
    async def gives_up() -> AsyncGenerator[bytes]:
        yield last_words + DONE

    async with world() as ours:
        ours.engine("a", gives_up)
        ours.engine("b", whole)
        client = Client()
        await ours.serve(client)
        assert client.read == b"".join(PIECES) + DONE


async def test_gw8_engines_that_fail_are_not_asked_for_a_moment(anyio_backend: str) -> None:
    asked = 0

    async def poisoned() -> AsyncGenerator[bytes]:
        nonlocal asked
        asked += 1
        raise HttpBroken("poisoned")
        yield b""

    settings = SETTINGS.model_copy(update={"inhibit_s": 0.0})
    async with world(settings=settings) as ours:
        ours.engine("a", poisoned)
        ours.engine("b", poisoned)
        codes = []
        for _ in range(10):
            with pytest.raises(ClientError) as refused:
                await ours.serve(Client())
            codes.append(refused.value.code)
        assert codes[-5:] == ["pool_failing"] * 5
        assert refused.value.retry_after_s
        assert asked < 10


async def test_when_all_fail_the_client_is_told_and_nothing_was_sent(anyio_backend: str) -> None:
    async with world() as ours:
        client = Client()
        with pytest.raises(ClientError) as caught:
            await ours.serve(client)
        assert (caught.value.status, caught.value.code) == (503, NO_WORKER)
        assert client.status == 0


async def test_a_client_that_leaves_frees_the_engine(anyio_backend: str) -> None:
    left = anyio.Event()

    async def endless() -> AsyncGenerator[bytes]:
        try:
            while True:
                yield PIECES[0]
                await anyio.sleep(0.01)
        finally:
            left.set()

    async with world() as ours:
        ours.engine("a", endless)
        with anyio.move_on_after(0.2):
            await ours.serve(Client())
        with anyio.fail_after(2):
            await left.wait()
        [written] = await records(ours, 1)
        assert written.outcome == "cancelled"
        assert (await ours.told())[-1].outcome == "cancelled"


async def test_without_a_router_the_gateway_chooses_by_itself(anyio_backend: str) -> None:
    async with world(router=False) as ours:
        ours.engine("a", whole)
        ours.engine("b", whole)
        client = Client()
        await ours.serve(client)
        assert client.read.endswith(DONE)
        assert client.headers["x-tokenplane-policy"] == "fallback"


async def test_without_a_router_demands_are_kept_all_the_same(anyio_backend: str) -> None:
    async with world(router=False) as ours:
        ours.engine("a", whole)
        ours.engine("b", whole)
        for name in "abbaab":
            client = Client()
            await ours.serve(client, Hints(constraints=Constraints(only=(WorkerId(name),))))
            assert client.headers["x-tokenplane-worker"] == name
        nowhere = Hints(constraints=Constraints(topology=(("zone", "none"),)))
        with pytest.raises(ClientError, match="demands"):
            await ours.serve(Client(), nowhere)


@pytest.mark.parametrize("router", [True, False])
async def test_an_adapter_is_served_by_who_has_it_under_names_of_its_own(
    anyio_backend: str, router: bool
) -> None:
    prompt = list(range(32))
    async with world(router=router, fleet=with_adapter("poet")) as ours:
        for name in "ab":
            ours.engine(name, whole)
        client = Client()
        await ours.serve(client, prompt=prompt)
        await ours.serve(client, model="poet", prompt=prompt)
        if router:
            plain, adapted = ours.routed
            assert (plain.model, adapted.model) == ("m", "m")
            assert (plain.constraints.adapter, adapted.constraints.adapter) == ("", "poet")
            assert len(plain.blocks[16]) == len(adapted.blocks[16]) == 16
            assert plain.blocks != adapted.blocks
        else:
            assert client.headers["x-tokenplane-worker"] == "b"
        told = await records(ours, 2)
        assert [(each.model, each.base_model) for each in told] == [("m", "m"), ("poet", "m")]


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"model": "other"}, 404, "model_not_found"),
        ({"prompt": list(range(100))}, 400, "context_length_exceeded"),
        ({"max_tokens": 98}, 400, "context_length_exceeded"),
    ],
)
async def test_what_cannot_be_served_is_refused_before_any_engine_hears_of_it(
    anyio_backend: str, fields: dict[str, object], status: int, code: str
) -> None:
    async with world() as ours:
        with pytest.raises(ClientError) as caught:
            await ours.serve(Client(), NO_HINTS, **fields)
        assert (caught.value.status, caught.value.code) == (status, code)
        assert not ours.routed
        [written] = await records(ours, 1)
        assert written.outcome == code


async def test_an_answer_that_is_not_streamed_comes_whole(anyio_backend: str) -> None:
    answer = {"usage": {"prompt_tokens": 3, "completion_tokens": 2}}

    async def body() -> AsyncGenerator[bytes]:
        yield json.dumps(answer).encode()

    async with world() as ours:
        ours.engine("a", body)
        client = Client()
        await ours.serve(client, stream=False)
        assert json.loads(client.read) == answer
        [written] = await records(ours, 1)
        assert (written.prompt_tokens, written.output_tokens) == (3, 2)


async def test_nothing_is_put_behind_an_answer_whose_length_was_told(anyio_backend: str) -> None:
    class Slow(Client):
        def put(self, data: bytes) -> bool:
            super().put(data)
            return False

        async def writable(self) -> None:
            await anyio.sleep_forever()

    async def body() -> AsyncGenerator[bytes]:
        yield b"{}"

    async with world(settings=SETTINGS.model_copy(update={"total_s": 0.2})) as ours:
        ours.engine("a", body)
        client = Slow()
        with anyio.fail_after(5), pytest.raises(ClientStalled, match="not finished within"):
            await ours.serve(client, stream=False)
        assert client.read == b"{}"
        [written] = await records(ours, 1)
        assert written.outcome == "deadline"


async def test_a_bug_is_recorded_as_what_it_is(anyio_backend: str) -> None:
    class Broken(Client):
        def put(self, data: bytes) -> bool:
            raise RecursionError("a bug")

    async with world() as ours:
        ours.engine("a", whole)
        with pytest.raises(RecursionError):
            await ours.serve(Broken())
        [written] = await records(ours, 1)
        assert written.outcome == "internal_error"


async def test_sd3_drafts_are_counted_by_kind_of_text_and_sampling(anyio_backend: str) -> None:
    """Ten tokens: the first alone, and of the other nine six by drafts, so in three passes."""
    drafts = {"accepted_prediction_tokens": 6, "rejected_prediction_tokens": 9}
    usage = {"prompt_tokens": 3, "completion_tokens": 10, "completion_tokens_details": drafts}

    async def body() -> AsyncGenerator[bytes]:
        yield json.dumps({"usage": usage}).encode()

    async with world() as ours:
        ours.engine("a", body)
        await ours.serve(Client(), stream=False, temperature=0, guided_json={})
        [written] = await records(ours, 1)
        told = ours.registry.get_sample_value
        of = {"model": "m", "kind": "structured", "sampling": "greedy"}
        for outcome, count in (("accepted", 6), ("rejected", 9)):
            assert told("tokenplane_gateway_drafts_total", {**of, "outcome": outcome}) == count
        passes = told("tokenplane_gateway_decode_passes_total", {**of, "speculating": "yes"})
        assert passes == 3
        assert told("tokenplane_gateway_accept_length_sum", of) == 3.0
    assert (written.accepted_drafts, written.rejected_drafts) == (6, 9)
    assert (written.kind, written.sampled) == ("structured", False)


async def test_sd12_gaps_between_bursts_are_told_beside_the_time_per_token(
    anyio_backend: str,
) -> None:
    """Five tokens in three bursts: two gaps, each longer than the time per token."""
    drafts = {"accepted_prediction_tokens": 2, "rejected_prediction_tokens": 4}
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "completion_tokens_details": drafts}

    async def bursts() -> AsyncGenerator[bytes]:
        for burst in ("one", "two three", "four five"):
            yield f'data: {{"choices": [{{"text": "{burst}"}}]}}\n\n'.encode()
            await anyio.sleep(0.05)
        yield b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n" + DONE

    async with world() as ours:
        ours.engine("a", bursts)
        await ours.serve(Client(), temperature=0)
        await records(ours, 1)
        told = ours.registry.get_sample_value
        of = {"model": "m", "kind": "completion", "sampling": "greedy", "speculating": "yes"}
        assert told("tokenplane_gateway_emission_gap_seconds_count", of) == 2
        gaps_s = told("tokenplane_gateway_emission_gap_seconds_sum", of)
        assert gaps_s is not None and gaps_s >= 0.1


async def test_the_bus_never_carries_a_prompt(anyio_backend: str) -> None:
    heard: dict[str, bytes] = {}

    async def listen(ours: World) -> None:
        async with ours.hub.connect("spy").subscribe(SUBJECTS.everything) as messages:
            async for message in messages:
                heard[message.subject] = heard.get(message.subject, b"") + message.data

    async with world() as ours, anyio.create_task_group() as tasks:
        tasks.start_soon(listen, ours)
        await anyio.sleep(0.01)
        ours.engine("a", whole)
        await ours.serve(Client(), prompt="a very secret prompt")
        await records(ours, 1)
        await ours.told()
        tasks.cancel_scope.cancel()
    assert {SUBJECTS.route, SUBJECTS.progress(WorkerId("a")), SUBJECTS.requests} <= set(heard)
    assert not any(b"secret" in data for data in heard.values())
