"""What a model's keys and values depend on, in 32 bytes: the name of its prefixes in a cache."""

import hashlib
import json

from edgellm.memory.kv import KVDtype
from edgellm.packed import PackedModel

IDENTITY_BYTES = 32
# A format is named anew when its bytes get another meaning: blocks on disk outlive the version that wrote them
KV_FORMATS: dict[KVDtype, str] = {"bf16": "bf16", "int8": "int8, hadamard"}


def identity(packed: PackedModel, kv_cache_dtype: KVDtype) -> bytes:
    """Of the packed file's header, which names its source by hash, and of the KV format."""
    named = {"provenance": packed.provenance, "config": packed.config.to_json(), "size": packed.nbytes}
    named["layouts"] = {name: weight.layout.name for name, weight in packed.weights.items()}
    named["kv"] = KV_FORMATS[kv_cache_dtype]
    return hashlib.blake2b(json.dumps(named, sort_keys=True).encode(), digest_size=IDENTITY_BYTES).digest()
