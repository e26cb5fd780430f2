from __future__ import annotations

import pytest

from controlplane.replay.arms import Knowledge, arm


def test_a_policy_alone_is_the_router_as_it_comes() -> None:
    plain = arm("round_robin")
    assert (plain.settings.policy, plain.knowledge) == ("round_robin", Knowledge.EVENTS)
    assert (plain.kv_delay_s, plain.kv_loss) == (0.0, 0.0)


def test_options_are_settings_of_the_router_or_say_how_it_is_informed() -> None:
    tuned = arm("kv:prefill_weight=2:kv_delay_s=0.5:kv_loss=0.1:temperature=0.3")
    assert (tuned.settings.prefill_weight, tuned.settings.temperature) == (2.0, 0.3)
    assert (tuned.kv_delay_s, tuned.kv_loss) == (0.5, 0.1)
    assert tuned.name == "kv:prefill_weight=2:kv_delay_s=0.5:kv_loss=0.1:temperature=0.3"


def test_short_names() -> None:
    assert arm("oracle").knowledge is Knowledge.ORACLE
    assert arm("approximate").knowledge is Knowledge.APPROXIMATE
    assert arm("approximate").name == "approximate"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nonsense", "there is no policy 'nonsense'"),
        ("kv:fast", "write name=value and not 'fast'"),
        ("kv:spin=1", "spin: Extra inputs"),
        ("kv:prefill_weight=-1", "prefill_weight: .*greater than or equal to 0"),
        ("kv:knowledge=hearsay", "hearsay"),
        ("kv:kv_delay_s=-1", "kv_delay_s must not be below 0"),
        ("kv:kv_delay_s=soon", "soon"),
        ("kv:kv_loss=1", "kv_loss must be at least 0 and below 1"),
    ],
)
def test_what_is_no_arm_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        arm(text)
