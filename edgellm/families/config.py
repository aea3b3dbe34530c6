"""The numbers that a packed file stores of a network: a frozen dataclass in each family, checked field by field."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Self

from edgellm.errors import UnsupportedModelError
from edgellm.families.network import MAX_LAYERS

MAX_DIMENSION = 1 << 24  # no sound model comes near; keeps every product of two dimensions far from overflow


@dataclass(frozen=True)
class FamilyConfig:
    """Fields are counts (int, or int | None), positive finite numbers (float), and bool.

    Errors: UnsupportedModelError.
    """

    architecture: str
    layers: int  # L

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int or (field.type == int | None and value is not None):
                limit = MAX_LAYERS if field.name == "layers" else MAX_DIMENSION
                if not (type(value) is int and 0 < value <= limit):
                    raise UnsupportedModelError(f"config: {field.name} = {value!r} must be a count in 1..{limit}")
            if field.type is float and not (type(value) is float and math.isfinite(value) and value > 0):
                raise UnsupportedModelError(f"config: {field.name} = {value!r} must be a positive finite number")
            if field.type is bool and type(value) is not bool:
                raise UnsupportedModelError(f"config: {field.name} = {value!r} must be true or false")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The config that `to_json` wrote; unknown, mistyped, or missing entries (without a default) are errors."""
        names = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        if not needed <= set(data) <= names:
            raise UnsupportedModelError(f"config: expected the entries {sorted(names)}, found {sorted(data)}")
        return cls(**data)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
