"""A policy and a filter of one's own: plain functions, found by their entry points."""

from __future__ import annotations

import numpy as np

from controlplane.router.policies.base import Candidates, Prompt, State, Weighed
from proto.route import RouteRequest
from proto.workers import WorkerRecord


def emptiest(prompt: Prompt, candidates: Candidates, state: State) -> Weighed:
    """The worker whose KV cache is in use least, with this prompt in it."""
    del state
    new_tokens = prompt.tokens - candidates.cached_tokens
    used_share = (candidates.decode_tokens + new_tokens) / np.maximum(1, candidates.capacity_tokens)
    return Weighed(used_share, {"new_tokens": new_tokens.astype(np.float64)})


def no_batch(request: RouteRequest, record: WorkerRecord) -> str:
    """Batch work stays off the workers that are labelled so."""
    kept_off = record.hardware.topology.get("batch") == "no"
    return "no_batch" if kept_off and request.slo_class == "batch" else ""
