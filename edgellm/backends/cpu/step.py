"""The step arena: the record that kernels read what is at work from (kernels/ops.py, STEP), and its arrays."""

from edgellm.kernels import ops
from edgellm.memory.buffers import ALIGNMENT
from edgellm.runtime.plan import StepShape


class StepLayout:
    """Offsets of the arrays, in bytes; the record is at 0. Each group of the KV cache has tables of its own."""

    def __init__(self, shape: StepShape, num_groups: int) -> None:
        self.table_stride = -(-shape.context // ops.KV_BLOCK)  # blocks of a sequence
        self.nbytes = 8 * len(ops.STEP.names)
        self.tokens = self._take(shape.rows * 4)
        self.positions = self._take(shape.rows * 4)
        self.sequences = self._take(shape.rows * 4)
        self.sequence_rows = self._take(shape.rows * 8)
        self.spans = self._take(shape.rows * 8)
        self.logit_rows = self._take(shape.logit_rows * 4)
        self.samplers = self._take(shape.logit_rows * 8)
        self.slots = self._take(shape.rows * 8)  # int32 [S][2]: where a sequence's state comes from, and goes to
        self.tables = [self._take(shape.rows * self.table_stride * 4) for _ in range(num_groups)]

    def _take(self, nbytes: int) -> int:
        offset = -(-self.nbytes // ALIGNMENT) * ALIGNMENT
        self.nbytes = offset + nbytes
        return offset
