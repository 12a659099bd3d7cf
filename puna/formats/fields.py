"""Values of an untrusted configuration file, each checked before it is used.

Fields(params.json, {"dim": 4096, "n_heads": "32"}).whole("n_heads")
─> ValueError: params.json: n_heads is '32'; it must be a whole number
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
_REQUIRED: Any = object()


@contextmanager
def named(file: Path) -> Iterator[None]:
    """Errors within name the file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error) if str(file) in str(error) else f"{file}: {error}") from error


class Fields:
    """A mapping of names to unchecked values, and the file that they came from."""

    def __init__(self, file: Path, values: Mapping[str, Any], prefix: str = "") -> None:
        self.file, self.values, self.prefix = file, values, prefix

    def wrong(self, name: str, wanted: str) -> ValueError:
        """The error for an invalid value."""
        return ValueError(f"{self.file}: {self.prefix}{name} is {self.values.get(name)!r}; {wanted}")

    def _get(self, name: str, default: T, kinds: tuple[type, ...], wanted: str) -> T:
        value = self.values.get(name)
        if value is None:
            if default is _REQUIRED:
                raise ValueError(f"{self.file} lacks the field {self.prefix}{name}")
            return default
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise self.wrong(name, f"it must be {wanted}")
        return value  # type: ignore[return-value]

    def whole(self, name: str, default: int = _REQUIRED) -> int:
        """A whole number."""
        return self._get(name, default, (int,), "a whole number")

    def number(self, name: str, default: float = _REQUIRED) -> float:
        """A number."""
        value = self._get(name, default, (int, float), "a number")
        try:
            return float(value)
        except OverflowError:
            raise self.wrong(name, "it must be a number that fits into 64 bits") from None

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        return self._get(name, default, (bool,), "true or false")

    def section(self, name: str) -> "Fields | None":
        """A nested object, or None when it is absent."""
        values = self._get(name, None, (dict,), "an object of fields")
        return None if values is None else Fields(self.file, values, f"{self.prefix}{name}.")

    def only(self, name: str, *accepted: Any) -> None:
        """Refuse a field whose value is none of `accepted`; an absent one passes.

        Raises:
            ValueError: naming the field, its value, and what puna implements.
        """
        value = self.values.get(name)
        if value is not None and not any(type(value) is type(item) and value == item for item in accepted):
            known = " or ".join(repr(item) for item in accepted) or "none"
            raise self.wrong(name, f"puna implements only {known}")
