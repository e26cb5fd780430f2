"""Logs: one line a record, JSON for machines or plain for people, with trace ids."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

from opentelemetry import trace

from controlplane.runtime.settings import TelemetrySettings

QUIET_LIBRARIES = ("aiohttp", "asyncio", "grpc", "nats", "requests", "urllib3")
"""Below a warning their words help nobody who runs us."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")


def setup_logging(service: str, settings: TelemetrySettings) -> None:
    """Send every log record of the process to standard error, in the chosen format."""
    formatter = JsonLines(service) if settings.log_format == "json" else Console(service)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    for library in QUIET_LIBRARIES:
        logging.getLogger(library).setLevel(logging.WARNING)


class JsonLines(logging.Formatter):
    """One JSON object a line; what a caller gave as `extra=` stands beside the message."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
            **dict(_trace_ids()),
            **dict(_extras(record)),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _clean(json.dumps(line, default=str))


class Console(logging.Formatter):
    """Time, level, service, message, and what came as `extra=` or from the span as name=value."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).astimezone()
        facts = "".join(f" {k}={v}" for k, v in (*_extras(record), *_trace_ids()))
        line = (
            f"{time:%H:%M:%S}.{int(record.msecs):03d} {record.levelname:<7} "
            f"{self._service}: {record.getMessage()}{facts}"
        )
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return _clean(line)


def _trace_ids() -> Iterator[tuple[str, str]]:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        yield "trace_id", trace.format_trace_id(context.trace_id)
        yield "span_id", trace.format_span_id(context.span_id)


def _extras(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    return (item for item in vars(record).items() if item[0] not in _STANDARD)


def _clean(text: str) -> str:
    """Without the `user:password@` that URLs of servers may hold."""
    return _CREDENTIALS.sub("***@", text)
