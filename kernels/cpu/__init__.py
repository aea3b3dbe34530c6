"""Kernels for processors. Importable only where compile.py has selected a target."""

from collections.abc import Callable


def entry_points() -> dict[str, Callable[..., None]]:
    """What the unit "core" exports, by name: operations, epilogues, and the team's walk."""
    from edgellm.kernels.cpu import embed, norm, quantize_rows, read, team
    from edgellm.kernels.cpu.attention import attend
    from edgellm.kernels.cpu.matmul import epilogues, product
    from edgellm.kernels.cpu.sampling import sample

    return {
        "add": epilogues.add,
        "attend": attend.attend,
        "combine": attend.combine,
        "embed": embed.embed,
        "follow": team.follow,
        "lead": team.lead,
        "norm": norm.norm,
        "product": product.product,
        "quantize": quantize_rows.quantize,
        "read": read.read,
        "sample": sample.sample,
        "store": epilogues.store,
        "swiglu": epilogues.swiglu,
    }
