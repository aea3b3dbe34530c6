"""The bandwidth kernel reads every byte: its sums are those of the data."""

import numpy as np

from edgellm.kernels import ops
from edgellm.kernels.jit import Library
from edgellm.memory.buffers import address, aligned_zeros
from tests.kernels.rig import Rig


def test_sums_are_those_of_the_data(library: Library) -> None:
    data = aligned_zeros(512 * 37 // 4, np.int32)
    data[:] = np.random.default_rng(0).integers(-1000, 1000, len(data))
    sums = aligned_zeros((3, 8), np.int64)
    rig = Rig(library, np.zeros(1, np.int32), threads=3)
    rig.run("read", ops.READ, data=address(data), bytes=data.nbytes, out=address(sums))
    assert sums[:, 0].sum() == data.sum()
    assert np.count_nonzero(sums) == 3
