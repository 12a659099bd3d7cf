"""Checks a dataclass of settings by its types, and names the first field that is wrong.

    @strict
    @dataclass
    class Options:                     check(Options(workers=0))
        workers: Positive = 1          ValueError: workers is 0; it must be positive

In:  dataclasses whose fields are annotated with the types below; JSON values.
Out: the dataclass, or a ValueError of one line: field, value, what is expected.

pydantic does the work. It takes a tenth of a second to import, so it is imported where a value is checked,
not by `--help`.
"""

import dataclasses
import json
import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from annotated_types import Ge, Gt, Le

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")

Positive = Annotated[int, Gt(0)]
Count = Annotated[int, Ge(0)]
PositiveNumber = Annotated[float, Gt(0)]
NonNegativeNumber = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]

_ADAPTERS: dict[Any, "TypeAdapter[Any]"] = {}  # built at first use, which takes some milliseconds
_STRICT = {"extra": "forbid", "strict": True, "allow_inf_nan": False, "revalidate_instances": "always"}
_EXPECTED = {
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "int_type": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a section of fields",
    "dataclass_type": "a section of fields",
    "dataclass_exact_type": "a section of fields",
}


def strict(kind: type[T]) -> type[T]:
    """Class decorator of a dataclass: unknown fields, values of other types, NaN and infinity are errors.

    A base class could do the same, but the command line parses the source of every base for its help.
    """
    kind.__pydantic_config__ = _STRICT  # type: ignore[attr-defined]
    return kind


def check(settings: Any, path: str = "") -> None:
    """Raises ValueError naming the first invalid field; `path` stands before the field's name."""
    from pydantic import ValidationError

    kind = type(settings)
    try:
        _adapter(kind).validate_python(settings)
    except ValidationError as error:
        raise ValueError(_sentence(kind, error, path)) from None


def check_typed(options: Any) -> None:
    """`check`, with names as they are typed on the command line: top-p.

    A dataclass without `@strict` is not checked.
    """
    if hasattr(options, "__pydantic_config__"):
        try:
            check(options)
        except ValueError as error:
            raise ValueError(str(error).replace("_", "-")) from None


def from_dict(kind: type[T], values: Any, path: str = "") -> T:
    """Build a dataclass from JSON values; fields that are not given keep their defaults.

    Raises:
        ValueError: naming an unknown field, or the first invalid value.
    """
    from pydantic import ValidationError

    try:
        # As JSON, where a list is a tuple; in Python pydantic tells them apart.
        return _adapter(kind).validate_json(json.dumps(values))
    except ValidationError as error:
        raise ValueError(_sentence(kind, error, path)) from None


def require(condition: bool, message: str) -> None:
    """Raises ValueError with `message` unless `condition` holds: for what several fields decide."""
    if not condition:
        raise ValueError(message)


def _adapter(kind: type[T]) -> "TypeAdapter[T]":
    from pydantic import TypeAdapter

    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def _sentence(kind: type, error: Any, path: str) -> str:
    """pydantic's first finding as one line: `model.dim is 0; it must be positive`."""
    first = error.errors()[0]
    place = [*([path] if path else []), *map(str, first["loc"])]
    name = ".".join(place) or kind.__name__
    if first["type"] == "unexpected_keyword_argument":
        fields = ", ".join(field.name for field in dataclasses.fields(_section(kind, first["loc"][:-1])))
        return f"unknown field {name}; the fields are: {fields}"
    if first["type"] == "missing":
        return f"{name} is missing"
    limits = {
        key: f"{limit:g}" if isinstance(limit, float) else limit
        for key, limit in first.get("ctx", {}).items()
    }
    expected = _EXPECTED.get(first["type"], first["msg"]).format(**limits)
    if expected == "above 0":
        expected = "positive"
    return f"{name} is {first['input']!r}; it must be {expected}"


def _section(kind: Any, names: Sequence[str]) -> Any:
    """The dataclass that lies in `kind` under field names; it may be optional there."""
    for name in names:
        hint = typing.get_type_hints(kind)[name]
        kind = next(one for one in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(one))
    return kind
