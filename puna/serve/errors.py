"""What went wrong, in OpenAI's form: {"error": {"message", "type", "param", "code"}}.

In:  ServeError, raised anywhere below; the framework's own refusals of a body, a path or a method.
Out: JSON answers that name the field and how to fix it.
"""

import json
from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.requests import Request
from starlette.responses import Response

from puna.serve.schemas import EXPECTED, NOT_OFFERED

KINDS = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
DOCUMENTED = "the fields are in /openapi.json"


class ServeError(Exception):
    """An answer that is an error."""

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

    def body(self) -> dict[str, Any]:
        """The error as OpenAI writes it."""
        kind = KINDS.get(self.status, "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> Response:
        """The error as an HTTP answer. Escaped to ASCII: a message may hold half a surrogate pair."""
        return Response(json.dumps(self.body()), self.status, self.headers, "application/json")


def of_validation(error: RequestValidationError) -> ServeError:
    """The first thing that is wrong with a body, in words of ours where pydantic's would puzzle."""
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
    if param in NOT_OFFERED:
        return ServeError(
            400, f"{param} is not offered: {NOT_OFFERED[param]}", "unsupported_parameter", param
        )
    for name, expected in EXPECTED.items():
        if name in place:
            return ServeError(400, f"{name} must be {expected}", "invalid_value", param)
    name = ".".join(place)
    return ServeError(400, f"{name}: {message[0].lower()}{message[1:]}", "invalid_value", param)


def of_http(status: int, detail: str, headers: Mapping[str, str] | None) -> ServeError:
    """The framework's refusals: no such path, another method, a body that cannot be read."""
    if status == 404:
        detail = "there is nothing at this path; the API is described at /openapi.json"
    elif status == 405:
        detail = f"this path does not take that method; it takes {(headers or {}).get('Allow', 'others')}"
    elif status == 400:
        detail = "the body cannot be read as JSON"
    return ServeError(status, detail, None, None, headers)


async def answer_error(_: Request, error: Exception) -> Response:
    """The handler of ServeError, for the application."""
    assert isinstance(error, ServeError)
    return error.response()
