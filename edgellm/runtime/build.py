"""A network's graph, as its family says it."""

from functools import lru_cache

from edgellm.families import find_family
from edgellm.families.base import Family
from edgellm.families.network import Network
from edgellm.runtime.graph import Graph, GraphBuilder


def network_graph(network: Network) -> Graph:
    """What a step of a network computes."""
    return _build(find_family(network.family), network)


@lru_cache(maxsize=4)  # which kernels a model needs is asked before it is opened
def _build(family: Family, network: Network) -> Graph:
    builder = GraphBuilder(len(network.layers))
    family.build(network, builder)
    return builder.graph()
