"""Route requests: what they must be, what a policy is shown of them, what they cost. Pure."""

from __future__ import annotations

from controlplane.router.policies.base import Prompt, decode_blocks
from controlplane.router.policies.catalog import Catalog
from controlplane.router.sessions import prefix_key, session_key
from proto.hashing import HASH_BYTES
from proto.ids import WorkerId
from proto.progress import Booking
from proto.route import Chosen, RouteLeg, RouteRequest


def check(request: RouteRequest, catalog: Catalog) -> None:
    """Raises ValueError, saying what is wrong, for a request that no router can answer."""
    if request.prompt_tokens < 1:
        raise ValueError("prompt_tokens must be at least 1: an empty prompt has no place to go")
    if request.expected_output_tokens < 0:
        raise ValueError("expected_output_tokens must not be negative")
    for block_tokens, names in request.blocks.items():
        if block_tokens < 1 or len(names) % HASH_BYTES:
            raise ValueError(f"blocks[{block_tokens}] is not a whole number of named blocks")
        if len(names) // HASH_BYTES * block_tokens > request.prompt_tokens:
            raise ValueError(f"blocks[{block_tokens}] names more tokens than the prompt has")
    if request.policy:
        catalog.policy(request.policy)


def prompt_of(request: RouteRequest, home: WorkerId | None) -> Prompt:
    """What is to be placed; `home` had its session last."""
    return Prompt(
        tokens=request.prompt_tokens,
        expected_output_tokens=request.expected_output_tokens,
        key=session_key(request) or prefix_key(request),
        home=home,
    )


def booking_of(request: RouteRequest, chosen: Chosen) -> Booking:
    """What a decision costs its worker, of the part that it is to do."""
    prompt = Prompt(request.prompt_tokens, request.expected_output_tokens)
    prefills, decodes = request.leg is not RouteLeg.DECODE, request.leg is not RouteLeg.PREFILL
    return Booking(
        request.request,
        chosen.worker,
        chosen.new_prefill_tokens if prefills else 0,
        decode_blocks(prompt, chosen.block_tokens) if decodes else 0,
        request.attempt,
        session_key(request),
    )
