"""One answer being given: what is asked, the tokens said so far, and how it will end.

The language model is a function of the tokens before, so an answer is known before the engine has
"computed" it. Its text is made only as far as the engine's progress (or a stop string, or a
natural end, which must be looked for) requires: an answer that nobody reads takes no more memory
than its tokens.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from workers.sim.kvparams import KvParams
from workers.sim.language import LanguageModel
from workers.sim.naming import BlockNamer
from workers.sim.request import Progress, ProgressKind, Request


@dataclass(frozen=True)
class Sampling:
    """What bounds and colours an answer. Without `max_tokens` it ends by itself or when the
    context is full; `seed` is the only thing that changes what is said."""

    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    seed: int = 0
    cache_salt: str | None = None
    kind: str = ""
    """Of text; see `workers.sim.speculation`."""


@dataclass(frozen=True)
class Ending:
    """How an answer ends: after how many tokens, why, and where its visible text is cut."""

    output_tokens: int
    finish_reason: str
    stop_reason: str | int | None = None
    text_chars: int | None = None


@dataclass(frozen=True)
class Delta:
    """What an answer has gained since the last look."""

    text: str
    token_ids: list[int]
    finished: bool


class Generation:
    """One sequence: a prompt and its answer, `notify` called whenever there is news.

    `context_tokens` bounds prompt and answer together; the prompt leaves room for one token.
    """

    def __init__(
        self,
        id: str,
        prompt: Sequence[int],
        sampling: Sampling,
        model: LanguageModel,
        *,
        context_tokens: int,
        notify: Callable[[], None],
        transfer: KvParams | None = None,
    ) -> None:
        self.id = id
        self.transfer = transfer
        """What is asked of its KV blocks."""
        self.client_request = ""
        """The client's own name for it."""
        self.staged: KvParams | None = None
        """Where they are for another engine to fetch, once it has ended."""
        self.block_names: list[int] = []
        """Of all blocks of its prompt that are moved, the last one perhaps not full."""
        self.prompt_tokens = len(prompt)
        self.sampling = sampling
        self.tokens = array("I", prompt)
        """The prompt and all of the answer that was made so far."""
        self.produced_tokens = 0
        """Tokens of the answer that the engine has computed."""
        self.cached_tokens = 0
        self.drafted_tokens = self.accepted_tokens = 0
        self.error: str | None = None
        self.not_loaded = False
        self.arrived_s = self.first_token_s = self.last_token_s = 0.0
        self._notify = notify
        self._model = model
        room_tokens = context_tokens - len(prompt)
        assert room_tokens > 0
        may_end = sampling.max_tokens is None and not sampling.ignore_eos
        self._speech = model.say(prompt, sampling.seed, may_end=may_end)
        self.ending = self._find_ending(sampling.max_tokens or room_tokens, may_end)
        self._told_tokens = self._told_chars = 0

    @property
    def cache_salt(self) -> str | None:
        return self.sampling.cache_salt

    @property
    def finished(self) -> bool:
        return self.produced_tokens == self.ending.output_tokens

    @property
    def told(self) -> bool:
        """The whole answer has been taken."""
        return self._told_tokens == self.ending.output_tokens

    def request(self, namer: BlockNamer) -> Request:
        """What the scheduler has to know of it."""
        salt = self.sampling.cache_salt
        names = namer.names(self.tokens[: self.prompt_tokens], salt)
        wanted = self.transfer
        if wanted is not None:
            tail = self.tokens[len(names) * namer.block_tokens : self.prompt_tokens]
            last = [namer.name(names[-1] if names else None, tail, salt)] if tail else []
            self.block_names = [*names, *last]

        def name_output_block(index: int) -> int:
            start = index * namer.block_tokens
            end = start + namer.block_tokens
            self._make(end - self.prompt_tokens)
            parent = names[-1] if names else None
            assert index == len(names)
            names.append(namer.name(parent, self.tokens[start:end], salt))
            return names[-1]

        prompt_names = tuple(names)
        output_tokens = self.ending.output_tokens
        return Request(
            self.id,
            self.prompt_tokens,
            prompt_names,
            output_tokens,
            name_output_block,
            self.sampling.kind,
            stage=wanted is not None and wanted.do_remote_decode,
            fetch=wanted is not None and wanted.do_remote_prefill,
        )

    def advance(self, progress: Progress) -> None:
        """The engine has computed more of it."""
        self.produced_tokens = progress.output_tokens
        self.cached_tokens = progress.cached_tokens
        self.drafted_tokens = progress.drafted_tokens
        self.accepted_tokens = progress.accepted_tokens
        if progress.kind is ProgressKind.FIRST_TOKEN:
            self.first_token_s = progress.time_s
        self.last_token_s = progress.time_s
        self._notify()

    def fail(self, message: str, *, not_loaded: bool = False) -> None:
        """The engine gives up on it; `not_loaded`: as its blocks have not come."""
        self.error, self.not_loaded = message, not_loaded
        self._notify()

    def take(self) -> Delta:
        """What was computed since the last call."""
        self._make(self.produced_tokens)
        start = self.prompt_tokens + self._told_tokens
        token_ids = self.tokens[start : self.prompt_tokens + self.produced_tokens].tolist()
        self._told_tokens = self.produced_tokens
        text = self._model.text(token_ids)
        if self.ending.text_chars is not None:
            text = text[: max(0, self.ending.text_chars - self._told_chars)]
        self._told_chars += len(text)
        return Delta(text, token_ids, self.finished)

    def _make(self, output_tokens: int) -> None:
        """Say the answer as far as `output_tokens`."""
        missing = self.prompt_tokens + output_tokens - len(self.tokens)
        if missing > 0:
            self.tokens.extend(islice(self._speech, missing))

    def _find_ending(self, limit_tokens: int, may_end: bool) -> Ending:
        stops, stop_ids = self.sampling.stop, self.sampling.stop_token_ids
        if not (may_end or stops or stop_ids):
            return Ending(limit_tokens, "length")
        text = ""
        for count in range(1, limit_tokens + 1):
            self._make(count)
            token = self.tokens[-1]
            if token == self._model.end_id:
                return Ending(count, "stop")
            if token in stop_ids:
                return Ending(count, "stop", token)
            piece = self._model.text([token])
            text += piece
            for stop in stops:
                found = text.find(stop, max(0, len(text) - len(piece) - len(stop)))
                if found >= 0:
                    return Ending(count, "stop", stop, found)
        return Ending(limit_tokens, "length")
