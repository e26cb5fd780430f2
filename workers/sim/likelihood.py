"""Log probabilities: the model draws every word with the same chance, so they are all alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

from workers.sim.language import LanguageModel


class Likelihood:
    """Names the token that was said and, of the others, enough to make `top` in all."""

    def __init__(self, model: LanguageModel, top: int) -> None:
        self._model = model
        self._top = top
        self._logprob = -math.log(model.words)

    def of_chat(self, tokens: Sequence[int]) -> dict[str, object]:
        """As /v1/chat/completions gives them."""
        return {
            "content": [
                self._entry(self._model.text([token]))
                | {"top_logprobs": [self._entry(text) for text in self._likely(token)]}
                for token in tokens
            ]
        }

    def of_completion(self, tokens: Sequence[int]) -> dict[str, object]:
        """As /v1/completions gives them; offsets count from the first of these tokens."""
        texts = [self._model.text([token]) for token in tokens]
        offsets = [sum(map(len, texts[:i])) for i in range(len(texts))]
        likely = [dict.fromkeys(self._likely(token), self._logprob) for token in tokens]
        return {
            "text_offset": offsets,
            "tokens": texts,
            "token_logprobs": [self._logprob] * len(texts),
            "top_logprobs": likely if self._top else None,
        }

    def _entry(self, text: str) -> dict[str, object]:
        return {"token": text, "logprob": self._logprob, "bytes": list(text.encode())}

    def _likely(self, token: int) -> list[str]:
        """Texts of the most likely tokens, the one that was said first."""
        if not self._top:
            return []
        said = self._model.text([token])
        others = (text for text in self._model.some_texts(self._top) if text != said)
        return [said, *others][: self._top]
