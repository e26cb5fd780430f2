"""For schemathesis, in its own process: most made-up requests name a model that is served, or all
would end where models are looked up; and a policy that the routers have, which the gateway's
document cannot know."""

from __future__ import annotations

from typing import Any

import schemathesis  # type: ignore[import-not-found,unused-ignore]

SERVED, POLICY = "sim", "kv"


@schemathesis.hook  # type: ignore[untyped-decorator,unused-ignore]
def map_body(context: Any, body: Any) -> Any:
    """The body as it is sent."""
    del context
    if isinstance(body, dict) and isinstance(body.get("model"), str) and len(body["model"]) % 8:
        return {**body, "model": SERVED}
    return body


@schemathesis.hook  # type: ignore[untyped-decorator,unused-ignore]
def map_headers(context: Any, headers: Any) -> Any:
    """The headers as they are sent."""
    del context
    if headers and "x-tokenplane-policy" in headers:
        return {**headers, "x-tokenplane-policy": POLICY}
    return headers
