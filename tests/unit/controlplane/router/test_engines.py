"""Which engine for which work (EN6): rules of a router, over one pool of mixed engines."""

from __future__ import annotations

import random

import pytest
from pydantic import ValidationError

from controlplane.cli.explain import headline, table
from controlplane.router.core import RouterCore
from controlplane.router.settings import RouterSettings
from proto.engine_choice import EngineRule
from proto.ids import RequestId, WorkerId
from proto.route import NO_WORKER, Rejected
from tests.support.router_core import ask, chosen, record

MIXED = {"v": "vllm", "s": "sglang", "t": "trtllm"}


def pool(*rules: EngineRule, **settings: object) -> RouterCore:
    """One worker of each engine, all serving one model."""
    more = {"engine_rules": rules} if rules else {}
    core = RouterCore(
        RouterSettings.model_validate({"policy": "kv", **more, **settings}), "r", random.Random(0)
    )
    for name, engine in MIXED.items():
        core.worker_joined(record(name, engine=engine))
    return core


def test_structured_output_prefers_sglang() -> None:
    core = pool()
    replies = [chosen(ask(core, str(i), workload=("structured",), blocks={})) for i in range(5)]
    assert {reply.worker for reply in replies} == {"s"}
    assert replies[0].engine_choice.startswith("engine sglang preferred (structured output")


def test_other_work_goes_anywhere_without_a_reason() -> None:
    core = pool()
    replies = [chosen(ask(core, str(i), workload=("chat",), blocks={})) for i in range(6)]
    assert {reply.worker for reply in replies} == set(MIXED)
    assert {reply.engine_choice for reply in replies} == {""}


def test_portability_excludes_tensorrt_llm_and_says_so() -> None:
    core = pool()
    replies = [
        chosen(ask(core, str(i), workload=("chat", "portable"), blocks={}, explain=True))
        for i in range(6)
    ]
    assert {reply.worker for reply in replies} == {"v", "s"}
    excluded = {term.worker: term.excluded for term in replies[0].terms if term.excluded}
    assert excluded == {
        "t": "engine trtllm (portability: TensorRT-LLM runs on NVIDIA's hardware only)"
    }


def test_where_nobody_is_left_the_answer_says_why() -> None:
    core = RouterCore(RouterSettings(policy="kv"), "r", random.Random(0))
    core.worker_joined(record("t", engine="trtllm"))
    reply = ask(core, workload=("portable",))
    assert isinstance(reply, Rejected)
    assert reply.reason == NO_WORKER
    assert "portability" in reply.detail


def test_a_preference_never_makes_a_request_wait() -> None:
    """The preferred worker is busy: the next best serves, and nobody is told of a preference that
    was not kept."""
    core = pool(busy_prefill_batches=1.0)
    first = chosen(ask(core, "1", workload=("structured",), prompt_tokens=20_000, blocks={}))
    assert first.worker == "s"
    second = chosen(ask(core, "2", workload=("structured",), prompt_tokens=500, blocks={}))
    assert second.worker in {"v", "t"}
    assert second.engine_choice == ""


def test_engines_are_preferred_in_order_and_the_first_rule_counts() -> None:
    core = pool(
        EngineRule(workload="batch", prefer=("none", "trtllm", "vllm"), reason="throughput"),
        EngineRule(workload="chat", prefer=("vllm",), reason="habit"),
    )
    reply = chosen(ask(core, workload=("chat", "batch")))
    assert (reply.worker, reply.engine_choice) == ("t", "engine trtllm preferred (throughput)")


def test_a_rule_may_need_a_capability_or_a_precision() -> None:
    core = pool(
        EngineRule(workload="structured", need=("guided_decoding",), reason="grammar"),
        EngineRule(workload="fast", need=("fp8",), reason="speed"),
    )
    assert isinstance(ask(core, workload=("structured",)), Rejected)
    core.worker_joined(record("g", engine="vllm", capabilities=("guided_decoding",)))
    core.worker_joined(record("f", engine="vllm", hardware={"precision": "fp8"}))
    assert chosen(ask(core, workload=("structured",))).worker == "g"
    assert chosen(ask(core, workload=("fast",))).worker == "f"


def test_the_reason_is_recorded_and_explained() -> None:
    core = pool()
    ask(core, "7", workload=("structured",))
    [made] = core.decisions.of(RequestId("7"))
    decision = made.told("router-0", 0.0)
    assert decision.worker == WorkerId("s")
    assert decision.workload == ("structured",)
    assert "engine sglang preferred" in decision.engine_choice
    line = headline(decision).plain
    assert "(structured) to s, policy kv; engine sglang preferred (structured output" in line
    assert table(decision).row_count == 3


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"workload": "x", "reason": "r"}, "must prefer or exclude"),
        ({"workload": "x", "prefer": ["a"], "exclude": ["a"], "reason": "r"}, "both preferred"),
        ({"workload": "x", "prefer": ["a"]}, "reason"),
    ],
)
def test_a_rule_that_says_nothing_is_refused(rule: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        EngineRule.model_validate(rule)
