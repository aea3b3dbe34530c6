"""Typed look-ups in a GGUF file's metadata."""

from collections.abc import Mapping
from typing import Any

from edgellm.errors import GGUFError, UnsupportedModelError


class Metadata:
    """Entries by key, below a prefix. Without a default an entry must be there.

    Errors: GGUFError for an entry that is missing or of another type.
    """

    def __init__(self, values: Mapping[str, Any], prefix: str = "") -> None:
        self._values = values
        self._prefix = prefix

    def below(self, prefix: str) -> "Metadata":
        """The entries whose keys begin with this prefix and a dot, by the rest of their keys."""
        return Metadata(self._values, f"{prefix}.")

    def count(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if isinstance(value, list):
            raise UnsupportedModelError(
                f"{self._prefix}{key} differs from layer to layer, which this edgellm does not run"
            )
        if type(value) is not int:
            raise GGUFError(f"metadata {self._prefix}{key} is {value!r:.100}, not a whole number; get the file again")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if type(value) not in (int, float):
            raise GGUFError(f"metadata {self._prefix}{key} is {value!r:.100}, not a number; get the file again")
        return float(value)

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise GGUFError(f"metadata {self._prefix}{key} is {value!r:.100}, not a text; get the file again")
        return value

    def list(self, key: str) -> list[Any]:
        value = self._get(key, None)
        if not isinstance(value, list):
            raise GGUFError(f"metadata {self._prefix}{key} is {value!r:.100}, not a list; get the file again")
        return value

    def _get(self, key: str, default: Any) -> Any:
        value = self._values.get(self._prefix + key, default)
        if value is None:
            raise GGUFError(f"metadata {self._prefix}{key} is missing; get the file again")
        return value
