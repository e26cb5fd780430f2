"""What kind of text a request asks for, as its body shows: it sets which engines suit, and how well
drafts of it are accepted."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

NULL = msgspec.Raw(b"null")


class Kind(StrEnum):
    """What is written."""

    COMPLETION = "completion"
    CHAT = "chat"
    STRUCTURED = "structured"
    """In a shape that the request prescribes, such as a JSON schema."""
    TOOLS = "tools"
    """Perhaps calls of tools."""


class Format(msgspec.Struct):
    """The shape of an answer."""

    type: str = "text"


class TextOptions(msgspec.Struct):
    """Where the responses API has it."""

    format: Format | None = None


Temperature = Annotated[float, Meta(extra_json_schema={"minimum": 0, "maximum": 2})]


class Shaped(msgspec.Struct, kw_only=True):
    """What any generation may say of its shape; the last two are vLLM's words."""

    temperature: Temperature | None = None
    response_format: Format | None = None
    # By a function, as a schema can show no default of this kind.
    structured_outputs: msgspec.Raw = msgspec.field(default_factory=lambda: NULL)
    guided_json: msgspec.Raw = msgspec.field(default_factory=lambda: NULL)

    @property
    def sampled(self) -> bool:
        """Tokens are drawn by chance; else the likeliest are taken."""
        return self.temperature != 0

    @property
    def shape(self) -> Format | None:
        """As far as it is prescribed in OpenAI's words."""
        return self.response_format

    def kind(self, otherwise: Kind, tools: list[dict[str, Any]] | None = None) -> Kind:
        """Of what is asked for."""
        asked = self.shape
        if asked is not None and asked.type != "text":
            return Kind.STRUCTURED
        if bytes(self.structured_outputs) != b"null" or bytes(self.guided_json) != b"null":
            return Kind.STRUCTURED
        return Kind.TOOLS if tools else otherwise
