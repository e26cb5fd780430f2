"""How long one step of an engine takes, and how much KV it has room for.

A step runs the weights once over everything scheduled: chunks of prompts and one token of every
decoding sequence. Its duration is linear in what decoding adds, which lets the scheduler advance
long stretches of pure decoding in closed form:

    step_ms = weights_ms + attention_pair_ms * pairs
            + decode_sequence_ms * decode_batch + decode_kv_token_ms * decode_kv_tokens

    weights_ms = decode_base_ms                                    without prefill tokens
               = max(prefill_floor_ms, prefill_base_ms + prefill_token_ms * prefill_tokens
                     + prefill_knee_token_ms * (prefill_tokens above the knee))        with them

`pairs` counts the (query, key) pairs of causal attention in the prompt chunks: a chunk of c tokens
after k computed ones has c * k + c * (c + 1) / 2.

Two profiles are fitted, by `workers/sim/fit.py`, to the measurements published with Splitwise
(Patel et al., ISCA '24; repository Mutinifni/splitwise-sim, MIT licence): Llama-2-70B, tensor
parallel 8, 105 rows each. Relative error of the fit over those rows, median and 95th percentile:

                 prompt pass       decode step
    H100-80GB    3.3 %, 14.4 %     1.6 %, 5.3 %
    A100-80GB    1.9 %, 18.2 %     1.1 %, 4.9 %

What the rows cannot tell, and the profiles assume:

- Measured prompts end at 8,192 tokens, where attention is a few percent of a pass. So its cost is
  not fitted but tied to the rest: as many operations a second as the weights get. For this model
  a pair costs 4 * 80 layers * 8,192 wide operations, a token 2 * 69e9.
- Prompts and decoding were measured apart. A mixed step is taken to read the weights once.
- On the A100 sixteen prompts of 512 tokens took a third longer than one of 8,192. The model sees
  their sum, and attention makes the single prompt the dearer one: the tail of the error.
- Their step budget is 2,048 tokens: above it, where the curve bends, a token costs twice as much.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepCost:
    """The coefficients of the formula above, in milliseconds."""

    decode_base_ms: float
    decode_sequence_ms: float
    decode_kv_token_ms: float
    prefill_floor_ms: float
    prefill_base_ms: float
    prefill_token_ms: float
    prefill_knee_token_ms: float
    attention_pair_ms: float
    prefill_knee_tokens: int = 2048

    def step_ms(
        self,
        prefill_tokens: int,
        attention_pairs: float,
        decode_batch: int,
        decode_kv_tokens: int,
    ) -> float:
        """Duration of one step; `decode_kv_tokens` includes the tokens computed in it."""
        weights_ms = self.prefill_ms(prefill_tokens) if prefill_tokens else self.decode_base_ms
        return (
            weights_ms
            + self.attention_pair_ms * attention_pairs
            + self.decode_sequence_ms * decode_batch
            + self.decode_kv_token_ms * decode_kv_tokens
        )

    def prefill_ms(self, tokens: int) -> float:
        """What the weights take over `tokens` of prompts, at least one; attention not counted."""
        return max(self.prefill_floor_ms, self.prefill_base_ms + self.arithmetic_ms(tokens))

    def arithmetic_ms(self, tokens: int) -> float:
        """What the weights take over `tokens` where nothing but arithmetic takes time."""
        above_knee = max(0, tokens - self.prefill_knee_tokens)
        return self.prefill_token_ms * tokens + self.prefill_knee_token_ms * above_knee


@dataclass(frozen=True)
class Profile:
    """One model on one kind of hardware: what a scheduler may do, and what it costs."""

    name: str
    kv_capacity_tokens: int
    cost: StepCost
    max_num_batched_tokens: int = 2048
    max_num_seqs: int = 256
    kv_token_bytes: int = 2 * 80 * 8 * 128 * 2
    """Of one token's KV over all layers; what a transfer has to move."""
    accelerators: int = 1

    def kv_capacity_blocks(self, block_tokens: int) -> int:
        """Whole KV blocks of that size."""
        return self.kv_capacity_tokens // block_tokens


def attention_pairs(chunk_tokens: int, computed_tokens: int) -> float:
    """(Query, key) pairs of a prompt chunk that follows `computed_tokens`, causally masked."""
    return chunk_tokens * (computed_tokens + (chunk_tokens + 1) / 2)


def kv_capacity_tokens(
    memory_bytes: float, tensor_parallel: int, weight_bytes: float, kv_token_bytes: int
) -> int:
    """Tokens of KV beside the weights: nine tenths of every GPU's memory may be used, as by
    vLLM's default (`gpu_memory_utilization`), activations not counted."""
    free_bytes = memory_bytes * 0.9 * tensor_parallel - weight_bytes
    assert free_bytes > 0
    return int(free_bytes // kv_token_bytes)


LLAMA2_70B_WEIGHT_BYTES = 69e9 * 2
LLAMA2_70B_KV_TOKEN_BYTES = 2 * 80 * 8 * 128 * 2
"""Keys and values, 80 layers, 8 KV heads of 128, 2 bytes each: 320 KiB."""

_LLAMA2_70B_ON_8 = kv_capacity_tokens(80e9, 8, LLAMA2_70B_WEIGHT_BYTES, LLAMA2_70B_KV_TOKEN_BYTES)
"""About 1.3 million tokens: both GPUs have 80 GB."""

H100 = Profile(
    "h100-llama2-70b-tp8",
    _LLAMA2_70B_ON_8,
    StepCost(
        decode_base_ms=29.80,
        decode_sequence_ms=0.2016,
        decode_kv_token_ms=1.778e-4,
        prefill_floor_ms=51.84,
        prefill_base_ms=27.91,
        prefill_token_ms=0.05182,
        prefill_knee_token_ms=0.05059,
        attention_pair_ms=9.843e-7,
    ),
    accelerators=8,
)

A100 = Profile(
    "a100-llama2-70b-tp8",
    _LLAMA2_70B_ON_8,
    StepCost(
        decode_base_ms=44.16,
        decode_sequence_ms=0.2000,
        decode_kv_token_ms=3.100e-4,
        prefill_floor_ms=65.76,
        prefill_base_ms=33.05,
        prefill_token_ms=0.1188,
        prefill_knee_token_ms=0.1034,
        attention_pair_ms=2.256e-6,
    ),
    accelerators=8,
)

LAPTOP = Profile(
    "laptop",
    65_536,
    StepCost(
        decode_base_ms=5.0,
        decode_sequence_ms=0.05,
        decode_kv_token_ms=2e-5,
        prefill_floor_ms=5.0,
        prefill_base_ms=0.0,
        prefill_token_ms=0.1,
        prefill_knee_token_ms=0.0,
        attention_pair_ms=1e-6,
    ),
    max_num_batched_tokens=512,
    kv_token_bytes=4096,
)
"""Invented, for demonstrations: 10,000 prompt tokens a second, a decode step of 5 to 10 ms, and
chunks small enough that a long prompt makes nobody's token wait for much more than 50 ms."""

PROFILES = {profile.name: profile for profile in (H100, A100, LAPTOP)}
