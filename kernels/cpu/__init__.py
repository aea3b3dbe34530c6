"""Kernels for processors. Importable only where compile.py has selected a target."""

from collections.abc import Callable


def entry_points() -> dict[str, Callable[..., None]]:
    """What the compiled library exports, by name."""
    from edgellm.kernels.cpu import attention, embed, matmul, norm, read, sample, team

    return {
        "attend": attention.attend,
        "combine": attention.combine,
        "embed": embed.embed,
        "follow": team.follow,
        "lead": team.lead,
        "matmul": matmul.matmul,
        "norm": norm.norm,
        "read": read.read,
        "sample": sample.sample,
    }
