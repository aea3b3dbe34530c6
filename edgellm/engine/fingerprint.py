"""What a model's keys and values depend on, in 32 bytes: the name of its prefixes in a cache."""

import hashlib
import json

from edgellm.kernels.kv_formats.kv_format import KVFormat
from edgellm.packed.read import PackedModel

FINGERPRINT_BYTES = 32


def fingerprint(packed: PackedModel, kv_format: KVFormat, backend: str = "cpu") -> bytes:
    """Of the packed file's header, which names its source by hash, the KV format, and who computes them: what is cached
    must be what would be computed, to the bit.
    """
    named = {"provenance": packed.provenance, "config": dict(packed.network.config), "size": packed.nbytes}
    named["layouts"] = {name: weight.quant.name for name, weight in packed.weights.items()}
    named["kv"] = kv_format.meaning
    if backend != "cpu":
        named["backend"] = backend
    return hashlib.blake2b(json.dumps(named, sort_keys=True).encode(), digest_size=FINGERPRINT_BYTES).digest()
