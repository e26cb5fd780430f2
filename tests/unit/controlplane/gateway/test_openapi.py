"""The document of the HTTP API says what the border does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from controlplane.gateway import apipage
from controlplane.gateway.openai import Api, ClientError, read
from controlplane.gateway.openapi import PATH, document
from tests.unit.controlplane.gateway.test_http import Client, served_world

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """The HTTP server is asyncio's."""
    return "asyncio"


async def test_what_is_documented_is_served_and_other_methods_are_refused(tmp_path: Path) -> None:
    async with served_world(tmp_path) as (_, session, url):
        async with session.get(f"{url}{PATH}") as response:
            paths = json.loads(await response.read())["paths"]
        assert {api.value for api in Api} < paths.keys()
        headers = Client(session, url, "acme-key").headers
        for path, methods in paths.items():
            for method, operation in methods.items():
                async with session.request(method, url + path, headers=headers, data=b"{}") as got:
                    assert str(got.status) in operation["responses"], (path, got.status)
            async with session.request("PATCH", url + path, headers=headers) as got:
                assert got.status == 405
                assert got.headers["allow"].lower() in methods


async def test_what_can_be_got_can_be_asked_for_its_head(tmp_path: Path) -> None:
    async with served_world(tmp_path) as (_, session, url):
        headers = Client(session, url, "acme-key").headers
        for path, methods in json.loads(document())["paths"].items():
            async with session.head(url + path, headers=headers) as got:
                assert got.status == (200 if "get" in methods else 405), path
                assert await got.read() == b""


async def test_the_page_tells_of_every_path_and_loads_nothing(tmp_path: Path) -> None:
    async with (
        served_world(tmp_path) as (_, session, url),
        session.get(f"{url}{apipage.PATH}") as response,
    ):
        assert response.status == 200 and response.content_type == "text/html"
        assert "default-src 'none'" in response.headers["content-security-policy"]
        page = await response.text()
    for path, methods in json.loads(document())["paths"].items():
        for method in methods:
            assert f"{method.upper()} {path}" in page
    assert "max_completion_tokens" in page and "session has had its share" in page
    assert "://" not in page and "<script" not in page


@pytest.mark.parametrize("api", Api)
def test_what_the_schema_requires_is_what_is_missed(api: Api) -> None:
    whole = json.loads(document())
    schema = whole["paths"][api.value]["post"]["requestBody"]["content"]["application/json"]
    name = schema["schema"]["$ref"].rpartition("/")[2]
    for required in whole["components"]["schemas"][name]["required"]:
        body = {"model": "m", "prompt": "x", "messages": [{}], "input": "x"}
        del body[required]
        with pytest.raises(ClientError, match=required):
            read(api, json.dumps(body).encode())
