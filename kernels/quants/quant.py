"""What a weight format says of itself."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.ops import WEIGHT_HEAD, Record
from edgellm.kernels.panels import (
    PANEL,
    pack_bytes,
    pack_nibbles,
    pack_per_row,
    padded_rows,
    unpack_bytes,
    unpack_nibbles,
    unpack_per_row,
)

Parts = dict[str, NDArray[Any]]  # of some rows of a matrix, by name
Transcode = Callable[[NDArray[np.uint8]], Parts]  # rows of a foreign type, uint8 [N][bytes] -> the same, regrouped


class PartSpec(NamedTuple):
    """An array that a matrix is kept in; its first axis are panels."""

    dtype: type[np.generic]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Quant(ABC):
    """A weight format, with a group size where it has a choice of them."""

    group: int  # G, inputs that share a scale

    unit: ClassVar[str]  # the file's name, and that of its compiled kernels
    bits: ClassVar[int]  # of a code
    record: ClassVar[Record]  # the kernels (WEIGHT_HEAD), the addresses of the parts, and `numbers`

    @property
    @abstractmethod
    def name(self) -> str:
        """As in packed files and options."""

    @property
    def kernel(self) -> str:
        """Its kernels are product_<kernel> and row_<kernel>, of its unit."""
        return self.unit

    @property
    @abstractmethod
    def bits_per_weight(self) -> float:
        """All parts together."""

    @abstractmethod
    def parts(self, rows: int, columns: int) -> dict[str, PartSpec]:
        """The arrays that a matrix is kept in, in the file's order."""

    @property
    def exact(self) -> Mapping[str, Transcode]:
        """The foreign types that it holds bit for bit, by GGUF's name, and how they are regrouped."""
        return {}

    @abstractmethod
    def encode(self, values: NDArray[np.float32]) -> Parts:
        """Round float32 [N][C] to the format; G divides C. What is too large for its scales gives infinite ones."""

    @abstractmethod
    def decode(self, parts: Mapping[str, NDArray[Any]], rows: int) -> NDArray[np.float32]:
        """The weights that the parts stand for, float32 [N][C]."""

    def numbers(self) -> dict[str, int]:
        """The words of the record that are neither kernels nor parts."""
        return {}

    def fitting(self, columns: int) -> "Quant":
        """The format, or the one of the largest smaller group that divides the columns, which are a multiple of 32."""
        group = self.group
        while columns % group:
            group //= 2
        return type(self)(group)


class GroupedQuant(Quant):
    """Codes of 4 or 8 bits, and for every row and group of G inputs a float16 scale, or a scale and a minimum."""

    has_minimums: ClassVar[bool] = False
    zero_point: ClassVar[int]  # what a stored code stands for is code - zero_point

    @property
    def name(self) -> str:
        return f"{self.unit.replace('_', '-')}-g{self.group}"

    @property
    def bits_per_weight(self) -> float:
        return self.bits + (32 if self.has_minimums else 16) / self.group

    def parts(self, rows: int, columns: int) -> dict[str, PartSpec]:
        panels = padded_rows(rows) // PANEL
        scales = PartSpec(np.float16, (panels, columns // self.group, PANEL))
        codes = PartSpec(np.uint8, (panels, columns // 32, PANEL * 32 * self.bits // 8))
        return {"codes": codes, "scales": scales} | ({"mins": scales} if self.has_minimums else {})

    def numbers(self) -> dict[str, int]:
        return {"group_shift": (self.group // 32).bit_length() - 1}

    def pack(
        self, codes: NDArray[np.uint8], scales: NDArray[np.float16], mins: NDArray[np.float16] | None = None
    ) -> Parts:
        """Codes uint8 [N][C], unsigned, scales and minimums [N][C/G] in natural order -> parts."""
        parts: Parts = {"codes": self.pack_codes(codes), "scales": pack_per_row(scales)}
        if mins is not None:
            parts["mins"] = pack_per_row(mins)
        return parts

    def decode(self, parts: Mapping[str, NDArray[Any]], rows: int) -> NDArray[np.float32]:
        values = self.unpack_codes(parts["codes"], rows).astype(np.float32) - np.float32(self.zero_point)
        result = values * np.repeat(unpack_per_row(parts["scales"], rows).astype(np.float32), self.group, axis=1)
        if self.has_minimums:
            result += np.repeat(unpack_per_row(parts["mins"], rows).astype(np.float32), self.group, axis=1)
        return result

    def pack_codes(self, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Codes uint8 [N][C] -> nibbles or bytes as panels.py draws them."""
        return (pack_nibbles if self.bits == 4 else pack_bytes)(codes, self.zero_point)

    def unpack_codes(self, packed: NDArray[np.uint8], rows: int) -> NDArray[np.uint8]:
        """The inverse of `pack_codes`."""
        return (unpack_nibbles if self.bits == 4 else unpack_bytes)(packed, rows)

    def rounded(
        self, groups: NDArray[np.float32], scales: NDArray[np.floating], lowest: int, highest: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        """Groups [N][C/G][G] by scales [N][C/G] -> codes [N][C] in lowest..highest, and the scales as they are kept."""
        kept = scales.astype(np.float16)
        steps = kept.astype(np.float32)[:, :, None]
        codes = np.divide(groups, steps, out=np.zeros_like(groups), where=steps != 0)
        codes = np.clip(np.rint(codes, out=codes) + self.zero_point, lowest, highest)
        return codes.astype(np.uint8).reshape(len(groups), -1), kept


def grouped_record(has_minimums: bool) -> Record:
    """The record of a GroupedQuant."""
    return Record(*WEIGHT_HEAD, "codes", "scales", *(["mins"] if has_minimums else []), "group_shift")
