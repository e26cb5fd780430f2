"""Logs: both forms, trace ids, extras, and URLs without their passwords."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import TracerProvider

from controlplane.runtime.logs import Console, JsonLines, setup_logging
from controlplane.runtime.settings import TelemetrySettings

log = logging.getLogger("tests.logs")


@pytest.fixture
def root_logger() -> Iterator[None]:
    """`setup_logging` changes the root logger, which pytest wants back."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(False)


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    return log.makeRecord(log.name, logging.INFO, "file", 1, message, args, None, extra=extra)


def test_a_json_line_holds_message_service_and_extras() -> None:
    line = json.loads(JsonLines("router").format(record("chose %s", "w1", overlap_blocks=7)))
    assert line["message"] == "chose w1"
    assert line["service"] == "router"
    assert line["level"] == "info"
    assert line["logger"] == "tests.logs"
    assert line["overlap_blocks"] == 7
    assert "trace_id" not in line


def test_a_console_line_is_one_line() -> None:
    line = Console("router").format(record("chose %s", "w1", overlap_blocks=7))
    assert line.endswith("INFO    router: chose w1 overlap_blocks=7")


@pytest.mark.parametrize("form", [JsonLines, Console])
def test_the_current_span_is_on_the_line(form: type[JsonLines] | type[Console]) -> None:
    with TracerProvider(shutdown_on_exit=False).get_tracer("t").start_as_current_span("s") as span:
        line = form("router").format(record("hello"))
    assert f"{span.get_span_context().trace_id:032x}" in line
    assert f"{span.get_span_context().span_id:016x}" in line


@pytest.mark.parametrize("form", [JsonLines, Console])
def test_an_exception_is_shown_with_its_traceback(form: type[JsonLines] | type[Console]) -> None:
    try:
        raise ValueError("broken")
    except ValueError as error:
        failed = record("failed")
        failed.exc_info = (ValueError, error, error.__traceback__)
    line = form("router").format(failed)
    assert "Traceback" in line
    assert "ValueError: broken" in line


@pytest.mark.parametrize("form", [JsonLines, Console])
def test_a_url_loses_its_password(form: type[JsonLines] | type[Console]) -> None:
    line = form("router").format(
        record("connected to %s", "nats://me:hunter2@127.0.0.1:4222", url="nats://hunter2@h:1")
    )
    assert "hunter2" not in line
    assert "nats://***@127.0.0.1:4222" in line


@pytest.mark.parametrize("form", [JsonLines, Console])
@pytest.mark.parametrize("password", ["it'shunter2", 'a"hunter2', "a\\hunter2", "ä,hunter2"])
def test_no_password_is_too_strange_to_be_hidden(
    form: type[JsonLines] | type[Console], password: str
) -> None:
    url = f"nats://me:{password}@127.0.0.1:4222"
    line = form("router").format(record("connected to %s", url, url=url, urls=[url, url]))
    assert "hunter2" not in line
    assert line.count("nats://***@127.0.0.1:4222") == 4


def test_setup_writes_to_standard_error(
    root_logger: None, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging("router", TelemetrySettings(log_format="json", log_level="warning"))
    log.info("quiet")
    log.warning("loud")
    out, err = capsys.readouterr()
    assert out == ""
    assert [json.loads(line)["message"] for line in err.splitlines()] == ["loud"]


def test_libraries_are_quiet_unless_it_matters(
    root_logger: None, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging("router", TelemetrySettings(log_level="debug"))
    logging.getLogger("aiohttp.access").info("GET /ready")
    logging.getLogger("nats.aio").warning("disconnected")
    assert capsys.readouterr().err.count("\n") == 1
