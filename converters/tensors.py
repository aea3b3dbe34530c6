"""The tensors of a GGUF file, by our names and as numbers."""

import gguf.quants
import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from edgellm.converters.gguf_reader import GGUFFile, GGUFTensor
from edgellm.errors import GGUFError, UnsupportedModelError
from edgellm.families import find_family
from edgellm.families.base import Family
from edgellm.families.metadata import Metadata
from edgellm.families.network import Network


def read_network(file: GGUFFile) -> tuple[Family, Network]:
    """The network that a file's metadata describe, and its family. Errors: GGUFError, UnsupportedModelError."""
    metadata = Metadata(file.metadata)
    family = find_family(metadata.text("general.architecture"))
    return family, family.read_gguf(metadata, file.tensors.keys())


def match_tensors(file: GGUFFile, family: Family, network: Network) -> dict[str, GGUFTensor]:
    """Our name -> tensor, for every one that the network needs and those optional ones that there are.

    Errors: GGUFError for one that is missing or of another shape, UnsupportedModelError for one left over, which must
    not be ignored in silence.
    """
    if len(network.layers) > len(file.tensors):  # before tables of that size are built
        raise GGUFError(
            f"{file.path}: the metadata say {len(network.layers)} layers, the file has {len(file.tensors)} tensors; "
            "get the file again"
        )
    matched = {}
    for spec in network.tensors():
        name = family.gguf_name(spec.name)
        tensor = file.tensors.get(name)
        if tensor is None and spec.is_optional:
            continue
        if tensor is None:
            raise GGUFError(f"{file.path}: tensor {name} is missing; get the file again")
        if tensor.shape != spec.shape:
            raise GGUFError(f"{file.path}: tensor {name} has the shape {tensor.shape}, the metadata say {spec.shape}")
        matched[spec.name] = tensor
    left_over = sorted(file.tensors.keys() - {tensor.name for tensor in matched.values()})
    if left_over:
        raise UnsupportedModelError(
            f"tensor {left_over[0]!r:.100} has no place in a {family.name} model; get another file of the model"
        )
    return matched


def to_float32(kind: GGMLQuantizationType, data: NDArray[np.uint8], rows: int) -> NDArray[np.float32]:
    """What a GGUF tensor's bytes stand for, float32 [rows, C]. Errors: UnsupportedModelError for a type that the gguf
    package cannot read.
    """
    try:
        with np.errstate(all="ignore"):  # damaged scales give infinities and NaN, which the caller refuses by name
            values: NDArray[np.float32] = gguf.quants.dequantize(data.reshape(rows, -1), kind)
    except NotImplementedError as error:
        raise UnsupportedModelError(f"tensors of the type {kind.name} cannot be read; get another file") from error
    return values
