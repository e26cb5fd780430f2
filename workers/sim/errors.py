"""Errors as clients see them: OpenAI's shape, vLLM's types."""

from __future__ import annotations


class ApiError(Exception):
    """An answer other than 200."""

    def __init__(
        self,
        status: int,
        message: str,
        type: str = "BadRequestError",
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param

    def body(self) -> dict[str, object]:
        """To be sent as JSON, or as the last event but one of a stream."""
        error = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.status,
        }
        return {"error": error}


def bad_request(message: str, param: str | None = None) -> ApiError:
    """The client must change something."""
    return ApiError(400, message, param=param)


def unavailable(message: str) -> ApiError:
    """Not now, but perhaps later or elsewhere."""
    return ApiError(503, message, "ServiceUnavailableError")
