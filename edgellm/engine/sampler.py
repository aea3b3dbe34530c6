"""A request's sampling state, in the form that the sample kernel reads."""

import secrets
from collections.abc import Sequence

import numpy as np

from edgellm.engine.params import SamplingParams
from edgellm.errors import OptionError
from edgellm.kernels import ops
from edgellm.memory.buffers import address, aligned_zeros
from edgellm.model.program import float_bits

PADDING = 16  # floats: the kernel weighs whole vectors


class Sampler:
    """Parameters, tokens so far and number of draws of one request."""

    def __init__(self, params: SamplingParams, vocabulary: int, prompt: Sequence[int]) -> None:
        """Errors: OptionError for a biased token outside the vocabulary."""
        outside = [token for token in params.logit_bias if token >= vocabulary]
        if outside:
            raise OptionError(f"logit_bias names token {outside[0]}, the vocabulary has {vocabulary}")
        self.seed = secrets.randbits(63) if params.seed is None else params.seed
        self._slots: dict[int, int] = {}  # token -> entry of the history
        self._history = np.zeros((0, 2), np.int32)  # token, times generated
        self._counts = any((params.repetition_penalty != 1.0, params.presence_penalty, params.frequency_penalty))
        self._bias = np.array(
            [(token, np.float32(bias).view(np.int32)) for token, bias in params.logit_bias.items()], np.int32
        )
        self._scratch = aligned_zeros(2 * (vocabulary + PADDING), np.float32)
        self._record = ops.SAMPLER.pack(
            temperature=float_bits(params.temperature),
            top_k=params.top_k,
            top_p=float_bits(params.top_p),
            min_p=float_bits(params.min_p),
            repetition=float_bits(params.repetition_penalty),
            presence=float_bits(params.presence_penalty),
            frequency=float_bits(params.frequency_penalty),
            seed=self.seed,
            draw=0,
            history=0,
            history_count=0,
            bias=address(self._bias),
            bias_count=len(self._bias),
            scratch=address(self._scratch),
            chosen=-1,
        )
        if params.repetition_penalty != 1.0:
            for token in prompt:
                self._count(token, 0)
            self._point_to_history()

    @property
    def address(self) -> int:
        return address(self._record)

    def take(self) -> int:
        """The token that the last step chose; it counts from now on."""
        token = int(self._record[ops.SAMPLER.chosen // 8])
        assert token >= 0, token
        self._record[ops.SAMPLER.draw // 8] += 1
        if self._counts:
            self._count(token, 1)
            self._point_to_history()
        return token

    def _count(self, token: int, times: int) -> None:
        slot = self._slots.setdefault(token, len(self._slots))
        if slot == len(self._history):
            grown = np.zeros((2 * slot + PADDING, 2), np.int32)
            grown[:slot] = self._history
            self._history = grown
        self._history[slot, 0] = token
        self._history[slot, 1] += times

    def _point_to_history(self) -> None:
        self._record[ops.SAMPLER.history // 8] = address(self._history)
        self._record[ops.SAMPLER.history_count // 8] = len(self._slots)
