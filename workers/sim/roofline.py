"""Profiles of hardware that nobody has measured: a fitted one, scaled by what data sheets say.

Each term of a step is bound by memory (decoding reads weights and KV) or by arithmetic (prompts,
attention). A term gets faster by the ratio of the chips' bandwidths or peak arithmetic, to the
power of `REALISED`: a new generation's engines realise less than its data sheet promises. What
depends on neither, the fixed work for each sequence, stays as it is.

The power was chosen on Llama-2-70B, where H100 scaled so predicts the measured A100 best, and
tried on what it was not chosen on, BLOOM-176B. Relative error of A100 predicted from H100, median
and 95th percentile, as `python -m workers.sim.fit FILE proto/hardware.toml` prints it:

                              prompt pass        decode step
    Llama-2-70B, TP 8        11.4 %, 22.4 %     2.8 %,  5.4 %
    BLOOM-176B, TP 8          6.0 %, 15.1 %     5.7 %, 10.1 %

One pair of generations is all that there is: for Blackwell the rule is an extrapolation. Lower
precisions are not modelled: weights and KV have 16 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from workers.sim.chips import Chip
from workers.sim.timing import (
    A100,
    H100,
    LLAMA2_70B_KV_TOKEN_BYTES,
    LLAMA2_70B_WEIGHT_BYTES,
    PROFILES,
    Profile,
    StepCost,
    kv_capacity_tokens,
)

REALISED = 0.75
MODEL = "llama2-70b-tp8"
FITTED = {"h100": H100, "a100": A100}
"""Profiles that need no scaling, by accelerator."""


def profile_of(name: str, chips: Mapping[str, Chip]) -> Profile:
    """The profile of that name, or of an accelerator of that name: fitted, or scaled from the
    H100's. ValueError says what there is."""
    if name in PROFILES:
        return PROFILES[name]
    accelerator = name.removesuffix(f"-{MODEL}")
    if accelerator in FITTED:
        return FITTED[accelerator]
    if accelerator not in chips or "h100" not in chips:
        known = ", ".join(dict.fromkeys((*PROFILES, *FITTED, *chips)))
        raise ValueError(f"there is no profile {name!r}; there are: {known}")
    return derived(accelerator, chips[accelerator], chips["h100"])


def derived(accelerator: str, chip: Chip, h100: Chip) -> Profile:
    """The H100's profile on another chip, as many of them."""
    capacity = kv_capacity_tokens(
        chip.memory_gb * 1e9, H100.accelerators, LLAMA2_70B_WEIGHT_BYTES, LLAMA2_70B_KV_TOKEN_BYTES
    )
    return replace(
        H100,
        name=f"{accelerator}-{MODEL}",
        kv_capacity_tokens=capacity,
        cost=scaled(H100.cost, h100, chip),
    )


def scaled(cost: StepCost, of: Chip, to: Chip) -> StepCost:
    """What was measured on one chip, on another."""
    memory = (of.bandwidth_gb_s / to.bandwidth_gb_s) ** REALISED
    arithmetic = (of.dense_tflops / to.dense_tflops) ** REALISED
    return replace(
        cost,
        decode_base_ms=cost.decode_base_ms * memory,
        decode_kv_token_ms=cost.decode_kv_token_ms * memory,
        prefill_floor_ms=cost.prefill_floor_ms * memory,
        prefill_base_ms=cost.prefill_base_ms * memory,
        prefill_token_ms=cost.prefill_token_ms * arithmetic,
        prefill_knee_token_ms=cost.prefill_knee_token_ms * arithmetic,
        attention_pair_ms=cost.attention_pair_ms * arithmetic,
    )
