"""A decision as its caller sees it: ask for a worker, have it booked, give it back. Ours here; the
peer's is in `peer_service`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Literal, NamedTuple, Protocol

import anyio
import numpy as np

from bench.ours import BLOCK_TOKENS, MODEL, worker_id, worker_number
from bench.prompts import Prompt, Tokens
from proto.codec import Producer, Reader
from proto.hashing import BlockHasher, pack
from proto.ids import RequestId
from proto.progress import Phase, Progress
from proto.route import Chosen, RouteReply, RouteRequest
from proto.subjects import Subjects
from proto.wire.ports import Bus

Form = Literal["tokens", "listed", "hashes"]
"""What a caller begins with: token ids, by us also in a list, or names."""
TIMEOUT_S, POLL_S = 30.0, 0.5
OUTPUT_TOKENS = 1
"""All prompts of these benchmarks ask for."""


class WrongAnswer(Exception):
    """A side did not choose a worker."""


class Decision(NamedTuple):
    """Who was chosen, what it has cached of the prompt as the decider believes, and by what name
    it is given back."""

    worker: int
    cached_tokens: int
    name: str


class Decider(Protocol):
    """One side in one form. A caller does one thing at a time."""

    async def decide(self, prompt: int, caller: int) -> Decision: ...

    async def free(self, decision: Decision, caller: int) -> None: ...


class OurDecider:
    """Token ids, or names, to a router over NATS, as a gateway asks; progress gives it back."""

    def __init__(
        self,
        bus: Bus,
        subjects: Subjects,
        hasher: BlockHasher,
        producer: Producer,
        prompts: Sequence[Prompt],
        form: Form,
    ) -> None:
        self._bus = bus
        self._subjects = subjects
        self._hasher = hasher
        self._producer = producer
        listed = [prompt.tokens for prompt in prompts]
        words = [np.array(tokens, dtype=np.uint32) for tokens in listed]
        self._tokens: Sequence[Tokens | list[int]] = listed if form == "listed" else words
        self._hashed = [self._names(t) for t in self._tokens] if form == "hashes" else None
        self._reader = Reader[RouteReply](RouteReply)
        self._numbers = count()

    async def decide(self, prompt: int, caller: int) -> Decision:
        tokens = self._tokens[prompt]
        names = self._hashed[prompt] if self._hashed else self._names(tokens)
        name = self._new_name()
        reply = await self._ask(name, len(tokens), names)
        cached_tokens = reply.overlap_blocks * reply.block_tokens
        return Decision(worker_number(reply.worker), cached_tokens, name)

    async def until_it_predicts(self) -> None:
        """Until the router has learned how fast its workers are, as its explanations tell."""
        while True:
            name = self._new_name()
            reply = await self._ask(name, BLOCK_TOKENS, b"", explain=True)
            await self.free(Decision(worker_number(reply.worker), 0, name), 0)
            if any("ttft_ms" in term.values for term in reply.terms):
                return
            await anyio.sleep(POLL_S)

    async def free(self, decision: Decision, caller: int) -> None:
        worker = worker_id(decision.worker)
        ended = Progress(RequestId(decision.name), worker, 1, Phase.ENDED)
        await self._bus.publish(self._subjects.progress(worker), self._producer.seal(ended))

    async def _ask(
        self, name: RequestId, tokens: int, names: bytes, *, explain: bool = False
    ) -> Chosen:
        route = RouteRequest(
            name,
            MODEL,
            tokens,
            {BLOCK_TOKENS: names},
            expected_output_tokens=OUTPUT_TOKENS,
            explain=explain,
        )
        sealed = self._producer.seal(route)
        answer = await self._bus.request(self._subjects.route, sealed, timeout_s=TIMEOUT_S)
        reply = self._reader.open(answer.data).body
        if not isinstance(reply, Chosen):
            raise WrongAnswer(str(reply))
        return reply

    def _new_name(self) -> RequestId:
        return RequestId(f"{id(self)}-{next(self._numbers)}")

    def _names(self, tokens: Tokens | list[int]) -> bytes:
        return pack(self._hasher.names(tokens))
