"""Graphs that no family would write, of everything that a GraphBuilder knows."""

import random
from pathlib import Path

from edgellm.families.network import Rope
from edgellm.kernels.ops import HEAD, Record
from edgellm.runtime.graph import Graph, GraphBuilder, KernelCall, Value

WIDTH, HEADS, HEAD_SIZE, LAYERS = 64, 2, 32, 3
ROPE = Rope(1e4, HEAD_SIZE)
CALL = KernelCall("mine", Path("mine.py"), Record(*HEAD, "x", "y", "out"), twin=lambda x, y: x + y)


def random_graph(seed: int) -> Graph:
    """Layers of operations on values that are still there, then logits and a sample."""
    rng, g = random.Random(seed), GraphBuilder(LAYERS)
    alive = [g.embed("embedding", WIDTH)]
    for number in range(LAYERS):
        with g.layer(number):
            for at in range(rng.randrange(1, 12)):
                _grow(rng, g, alive, f"part{at}")
            del alive[: len(alive) - 6]
    last = g.select(rng.choice(alive))
    g.sample(g.product(g.norm(last, "norm", 1e-5), "head", 320))
    return g.graph()


def _grow(rng: random.Random, g: GraphBuilder, alive: list[Value], name: str) -> None:
    """One thing more, all of one width; what something is added to is gone."""
    x, y = rng.choice(alive), rng.choice(alive)
    match rng.choice(["norm", "product", "product", "swiglu", "rotate", "attention", "mlp", "kernel", "add", "branch"]):
        case "norm":
            alive.append(g.norm(x, f"{name}.norm", 1e-5))
        case "product":
            alive.append(g.product(x, f"{name}.{rng.choice('ab')}", WIDTH))
        case "swiglu":
            alive.append(g.swiglu(x, y))
        case "rotate":
            alive.append(g.rotate(x, rng.choice([ROPE, None]), HEAD_SIZE, scale=0.5))
        case "attention":
            h = g.norm(x, f"{name}.norm", 1e-5)
            q, k, v = (g.product(h, f"{name}.{which}", WIDTH) for which in "qkv")
            q, k = g.rotate(q, ROPE, HEAD_SIZE, scale=0.5), g.rotate(k, ROPE, HEAD_SIZE)
            alive.append(g.attend(q, k, v, heads=HEADS, kv_heads=HEADS, head_size=HEAD_SIZE, window=None))
        case "mlp":
            alive.append(
                g.product(g.swiglu(*(g.product(x, f"{name}.{w}", WIDTH) for w in ("gate", "up"))), name, WIDTH)
            )
        case "kernel":
            alive.append(g.kernel("mine", CALL, WIDTH, x=x, y=y))
        case "add" if x != y:
            alive.remove(x)
            alive.append(g.add(x, y))
        case "branch":  # side by side: what is computed first is added last
            first, second = g.product(x, f"{name}.a", WIDTH), g.product(x, f"{name}.b", WIDTH)
            if rng.random() < 0.5:
                alive.append(g.norm(x, f"{name}.norm", 1e-5))
            alive.remove(x)
            alive.append(g.add(g.add(x, second), first))
