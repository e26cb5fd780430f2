"""HTTP to engines, and to whoever asks us, on httptools. Nothing outside knows an HTTP library."""

from proto.wire.http.client import HttpClient
from proto.wire.http.server import HttpServer

__all__ = ["HttpClient", "HttpServer"]
