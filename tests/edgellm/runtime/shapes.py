"""Programs of models that nobody has to load: SmolLM2, and Llamas of 1 and 7 billion weights."""

from pathlib import Path

from edgellm.backends.cpu.lower import lower
from edgellm.backends.cpu.step import StepLayout
from edgellm.families.llama import FAMILY, LlamaConfig
from edgellm.families.network import Network
from edgellm.kernels.kv_formats import kv_formats
from edgellm.kernels.quants import quants
from edgellm.memory.layout import StateLayout, state_layout
from edgellm.packed.format import tensor_table
from edgellm.packed.header import PackedHeader
from edgellm.runtime.build import network_graph
from edgellm.runtime.fuse import fuse
from edgellm.runtime.graph import Graph
from edgellm.runtime.plan import Plan, StepShape, plan
from edgellm.runtime.program import Program

STEP = StepShape(rows=256, logit_rows=64, threads=2, context=2048)


def config(**shape: object) -> LlamaConfig:
    return LlamaConfig(architecture="llama", rope_scale=1.0, norm_epsilon=1e-5, **shape)  # type: ignore[arg-type]


CONFIGS = {
    "smollm2-135m": config(
        layers=30, width=576, heads=9, kv_heads=3, head_size=64, ffn_width=1536, vocabulary=49152, context=8192,
        rope_theta=1e5, rope_size=64, tied_head=True,
    ),
    "llama-1b": config(
        layers=16, width=2048, heads=32, kv_heads=8, head_size=64, ffn_width=8192, vocabulary=128256, context=131072,
        rope_theta=5e5, rope_size=64, tied_head=True,
    ),
    "llama-7b": config(
        layers=32, width=4096, heads=32, kv_heads=32, head_size=128, ffn_width=11008, vocabulary=32000, context=4096,
        rope_theta=1e4, rope_size=128, tied_head=False,
    ),
}  # fmt: skip
BODIES = {"smollm2-135m": "int4-asym-g32", "llama-1b": "int4-g32", "llama-7b": "int4-g32"}
KV_FORMATS = {"smollm2-135m": "bf16", "llama-1b": "bf16", "llama-7b": "int8"}


class Shape:
    """A model's program, and what it was made from."""

    def __init__(self, name: str) -> None:
        self.network: Network = FAMILY.network(CONFIGS[name].to_json())
        self.header = packed_header(self.network, BODIES[name])
        self.states: StateLayout = state_layout(self.network, kv_formats()[KV_FORMATS[name]])
        self.graph: Graph = fuse(network_graph(self.network))
        self.plan: Plan = plan(self.graph, STEP)
        self.step = StepLayout(STEP, len(self.states.groups))
        self.program: Program = lower(self.graph, self.plan, self.header, self.states, self.step)


def packed_header(network: Network, body: str) -> PackedHeader:
    chosen = {name: quants()["int8-g32" if name in ("embedding", "head") else body] for name in network.matrices()}
    return PackedHeader(
        path=Path("model.edgellm"), nbytes=0, network=network, quants=chosen, provenance={}, report={},
        chat_template=None, table=tensor_table(network, chosen, tokenizer_bytes=64, optional=()), data_start=0,
    )  # fmt: skip
