"""The gateway's HTTP API as an OpenAPI document, from the shapes that requests are read by.

What is not named there goes to the engine as it is, so every object may have more fields.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from controlplane.gateway.idempotency import KEY_CHARS_MAX
from controlplane.gateway.openai import Api, ChatBody, CompletionBody, EmbeddingBody, ResponseBody
from controlplane.runtime.version import VERSION

PATH = "/openapi.json"
_JSON = "application/json"
_REF = "#/components/schemas/"

Object = dict[str, object]

_BODIES: Mapping[Api, type[msgspec.Struct]] = {
    Api.COMPLETIONS: CompletionBody,
    Api.CHAT: ChatBody,
    Api.RESPONSES: ResponseBody,
    Api.EMBEDDINGS: EmbeddingBody,
}
_SUMMARIES = {
    Api.COMPLETIONS: "Go on with a text, or with token ids",
    Api.CHAT: "Answer a conversation",
    Api.RESPONSES: "Answer, by the responses API; nothing is kept",
    Api.EMBEDDINGS: "Vectors of texts",
}
_REFUSALS = {
    400: "The request is wrong; `param` says where",
    401: "No API key, or none that is known",
    403: "This tenant may not ask for that, or its session has had its share",
    404: "Nobody has ever served that model",
    413: "The body is too long",
    422: "The idempotency key was used for another request",
    429: "Over the tenant's limit; `Retry-After` says when to come again",
    502: "The engine failed, and there was no other attempt",
    503: "Nobody can take it now; `Retry-After` says when to come again",
    504: "Not finished, or nothing heard of the engine, in time",
}
_HEADERS = {
    "x-request-id": "The answer's own begins with it, and is what `tokenplane explain` takes",
    "x-tokenplane-policy": "One of the router's policies, to compare them",
    "x-tokenplane-session": "A hint to stay with one worker; and whose budget it is",
    "idempotency-key": "Asked twice with one key it is generated once",
}
_DEMANDS = (
    "`x-tokenplane-topology: label=value, ...` keeps it where the hardware bears these labels, "
    "`x-tokenplane-workers: name, ...` to these workers, for tenants that may pin."
)


def document() -> bytes:
    """The document, as JSON."""
    _, schemas = msgspec.json.schema_components(
        tuple(_BODIES.values()), ref_template=_REF + "{name}"
    )
    schemas["Error"] = _ERROR
    schemas["Event"] = _EVENT
    paths: Object = {api.value: {"post": _inference(api)} for api in Api}
    paths["/v1/models"] = {
        "get": {
            "summary": "Models and LoRA adapters that can be asked for",
            "operationId": "models",
            "responses": {"200": _answer("The list", {"type": "object"}), "401": _refusal(401)},
        }
    }
    for path, what in (("/health", "Whether new requests are taken"), ("/live", "It runs")):
        responses = {"200": {"description": "Yes"}}
        if path == "/health":
            responses["503"] = {"description": "It is shutting down"}
        paths[path] = {
            "get": {
                "summary": what,
                "operationId": path[1:],
                "responses": responses,
                "security": [],
            }
        }
    whole: Object = {
        "openapi": "3.1.0",
        "info": {"title": "Tokenplane gateway", "version": VERSION},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }
    return msgspec.json.encode(whole)


def _inference(api: Api) -> Object:
    answer: Object = {_JSON: {"schema": {"type": "object"}}}
    if api is not Api.EMBEDDINGS:
        answer["text/event-stream"] = {"schema": {"$ref": _REF + "Event"}}
    return {
        "summary": _SUMMARIES[api],
        "description": _DEMANDS,
        "operationId": api.name.lower(),
        "parameters": [
            {
                "name": name,
                "in": "header",
                "description": what,
                "schema": {"type": "string", "maxLength": KEY_CHARS_MAX},
            }
            for name, what in _HEADERS.items()
        ],
        "requestBody": {
            "required": True,
            "content": {_JSON: {"schema": {"$ref": _REF + _BODIES[api].__name__}}},
        },
        "responses": {
            "200": {"description": "The engine's own answer", "content": answer},
            **{str(status): _refusal(status) for status in _REFUSALS},
        },
    }


def _refusal(status: int) -> Object:
    return _answer(_REFUSALS[status], {"$ref": _REF + "Error"})


def _answer(what: str, schema: Object) -> Object:
    return {"description": what, "content": {_JSON: {"schema": schema}}}


_EVENT: Object = {
    "description": "One of the events that the answer is, each by itself",
    "type": "object",
    "required": ["data"],
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
}
_ERROR: Object = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"enum": ["invalid_request_error", "server_error"]},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
