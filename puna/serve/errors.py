"""Errors in OpenAI's form: {"error": {"message", "type", "param", "code"}}.

In:  ServeError, raised anywhere in serve/; the framework's errors for a body, a path or a method.
Out: JSON responses that name the field and how to fix it.
"""

from collections.abc import Mapping

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from puna.serve.answers import Error, ErrorBody
from puna.serve.schemas import EXPECTED, NOT_SUPPORTED

KINDS = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
BOUNDS = ("greater_than_equal", "less_than_equal")
DOCUMENTED = "see /openapi.json for the fields"
CLIENT_GONE = 499  # never sent: the client has disconnected; counted by the metrics


class ServeError(Exception):
    """An error response."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    def answer(self) -> Error:
        """The error in OpenAI's form."""
        kind = KINDS.get(self.status, "invalid_request_error")
        # A message may quote half a surrogate pair, which UTF-8 cannot hold.
        message = self.message.encode(errors="backslashreplace").decode()
        param = self.param and self.param.encode(errors="backslashreplace").decode()
        return Error(error=ErrorBody(message=message, type=kind, param=param, code=self.code))

    def response(self) -> Response:
        """The error as an HTTP response."""
        return Response(self.answer().to_json(), self.status, self.headers, "application/json")


def from_validation(error: RequestValidationError) -> ServeError:
    """The first error of a body; pydantic's message is replaced where it would be unclear."""
    first = error.errors()[0]
    kind, message = first["type"], first["msg"].removeprefix("Value error, ")
    place = [str(part)[:60] for part in first["loc"] if part != "body"]
    if kind == "extra_forbidden" and "field" in first.get("ctx", {}):
        place.append(first["ctx"]["field"])
    if kind == "json_invalid":
        detail = first.get("ctx", {}).get("error", "")
        return ServeError(400, f"the body is not JSON: {detail} (character {place[0]})", "invalid_json")
    if not place:
        if kind in ("missing", "model_attributes_type", "model_type", "dict_type"):
            message = "the body must be a JSON object, sent with content-type: application/json"
        elif kind == "string_unicode":
            message = "a field's name is not valid Unicode (half a surrogate pair)"
        return ServeError(400, message, "invalid_value")
    param = place[0]
    if kind == "extra_forbidden":
        name = ".".join(place)
        return ServeError(400, f"unknown field {name}; {DOCUMENTED}", "unknown_parameter", name)
    if kind == "missing":
        name = ".".join(place)
        return ServeError(400, f"{name} is missing; {DOCUMENTED}", "missing_required_parameter", name)
    if param in NOT_SUPPORTED:
        return ServeError(
            400, f"{param} is not supported: {NOT_SUPPORTED[param]}", "unsupported_parameter", param
        )
    for name, expected in EXPECTED.items():
        if name in place and kind not in BOUNDS:
            return ServeError(400, f"{name} must be {expected}", "invalid_value", param)
    name = ".".join(place)
    return ServeError(400, f"{name}: {message[0].lower()}{message[1:]}", "invalid_value", param)


def from_http(status: int, detail: str, headers: Mapping[str, str] | None) -> ServeError:
    """The framework's errors: unknown path, wrong method, unreadable body."""
    if status == 404:
        detail = "unknown path; /openapi.json describes the API"
    elif status == 405:
        detail = f"method not allowed; use {(headers or {}).get('Allow', 'another')}"
    elif status == 400:
        detail = "the body cannot be read as JSON"
    return ServeError(status, detail, None, None, headers)


async def error_response(_: Request, error: Exception) -> Response:
    """Handle any error, as the application's exception handler."""
    if isinstance(error, RequestValidationError):
        error = from_validation(error)
    elif isinstance(error, HTTPException):
        error = from_http(error.status_code, error.detail, error.headers)
    elif not isinstance(error, ServeError):
        error = ServeError(500, "internal error; see the server's log", "bug")
    return error.response()
