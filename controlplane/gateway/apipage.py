"""The OpenAPI document as a page to read: plain HTML, made here, that loads nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import msgspec
from jinja2 import Environment

from controlplane.gateway import openapi

PATH = "/docs"
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""Of the page, for browsers: nothing but its own style."""

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
  :root { color-scheme: light dark; --line: #8884; --soft: #8888; }
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto }
  section { border-top: 1px solid var(--line); margin-top: 2rem }
  h2 code { font-size: 1.1rem } h2 small { color: var(--soft); font-weight: normal }
  table { border-collapse: collapse; width: 100%; margin: .5rem 0 1rem }
  caption, th { text-align: left; font-weight: 600 }
  td, th { border-bottom: 1px solid var(--line); padding: .25rem .5rem; vertical-align: top }
  td:first-child { white-space: nowrap } td p { margin: 0 }
</style>
<h1>{{ title }} <small>{{ version }}</small></h1>
<p>What is not named here goes to the engine as it is.
  For programs: <a href="{{ document }}">{{ document }}</a>.</p>
{% for operation in operations %}
<section id="{{ operation.name }}">
<h2><code>{{ operation.method }} {{ operation.path }}</code>
  <small>{{ operation.summary }}</small></h2>
{% if operation.description %}<p>{{ operation.description }}</p>{% endif %}
{% for caption, rows in operation.tables if rows %}
<table><caption>{{ caption }}</caption>
{% for name, what in rows %}<tr><td><code>{{ name }}</code></td><td>{{ what }}</td></tr>
{% endfor %}</table>
{% endfor %}
</section>
{% endfor %}
</html>
"""

Object = Mapping[str, Any]


@cache
def page() -> bytes:
    """The page."""
    whole = msgspec.json.decode(openapi.document(), type=dict[str, Any])
    template = Environment(autoescape=True, trim_blocks=True).from_string(_PAGE)
    text = template.render(
        title=whole["info"]["title"],
        version=whole["info"]["version"],
        document=openapi.PATH.removeprefix("/"),
        operations=list(_operations(whole)),
    )
    return text.encode()


def _operations(whole: Object) -> Iterator[Object]:
    schemas = whole["components"]["schemas"]
    for path, methods in whole["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            yield {
                "name": operation["operationId"],
                "method": method.upper(),
                "path": path,
                "summary": operation["summary"],
                "description": operation.get("description", ""),
                "tables": (
                    ("Headers", [(p["name"], p["description"]) for p in _headers(operation)]),
                    ("Body", list(_fields(body.get("schema", {}), schemas))),
                    (
                        "Answers",
                        [(code, a["description"]) for code, a in operation["responses"].items()],
                    ),
                ),
            }


def _headers(operation: Object) -> Iterator[Object]:
    yield from (p for p in operation.get("parameters", ()) if p["in"] == "header")


def _fields(schema: Object, schemas: Object) -> Iterator[tuple[str, str]]:
    known = _named(schema, schemas)
    required = known.get("required", ())
    for name, field in known.get("properties", {}).items():
        yield name, _type(field, schemas) + (", required" if name in required else "")


def _type(field: Object, schemas: Object) -> str:
    """In words, one level deep."""
    if "anyOf" in field:
        kinds = (_type(each, schemas) for each in field["anyOf"])
        return " or ".join(dict.fromkeys(kind for kind in kinds if kind != "null"))
    known = _named(field, schemas)
    kind = known.get("type", "anything")
    if kind == "array" and "items" in known:
        return f"list of {_type(known['items'], schemas)}"
    return kind if isinstance(kind, str) else " or ".join(kind)


def _named(schema: Object, schemas: Object) -> Object:
    """What a reference points to."""
    reference = schema.get("$ref", "")
    found: Object = schemas[reference.rpartition("/")[2]] if reference else schema
    return found
