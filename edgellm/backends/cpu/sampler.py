"""A request's sampling state, in the form that the sample kernel reads."""

import secrets
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgellm.backends.cpu.lower import float_bits
from edgellm.backends.sampling import acting_samplers, check_tokens
from edgellm.engine.logprobs import Logprobs
from edgellm.engine.params import MAX_INT, SamplingParams
from edgellm.kernels import ops
from edgellm.memory.buffers import address, elements

WORD = {name: index for index, name in enumerate(ops.SAMPLER.names)}
CHOSEN, DRAW, MASK, MU, NEXT_MU, TEXT, TEXT_COUNT = (
    WORD[name] for name in ("chosen", "draw", "mask", "mu", "next_mu", "text", "text_count")
)


class Sampler:
    """Parameters, text so far and number of draws of one request.

    A step takes `records`, one for each row that `prepare` made ready; then the sampler is told how many to `accept`.
    """

    def __init__(
        self, params: SamplingParams, vocabulary: int, prompt: Sequence[int], breakers: Sequence[int] = ()
    ) -> None:
        """`breakers` are the tokens at which DRY's repetitions end.

        Errors: OptionError for a biased token or a breaker outside the vocabulary.
        """
        check_tokens("logit_bias", params.logit_bias, vocabulary)
        check_tokens("dry_sequence_breakers", breakers, vocabulary)
        self.seed = secrets.randbits(63) if params.seed is None else params.seed
        self._params = params
        self._vocabulary = vocabulary
        self._draw = 0
        self._drafted: list[int] = []
        self._masks: NDArray[np.int32] | None = None
        self._bias = np.array(
            [(token, np.float32(bias).view(np.int32)) for token, bias in params.logit_bias.items()], np.int32
        )
        self._breakers = _bit_mask(breakers, vocabulary)
        samplers = acting_samplers(params)
        self._chain = [ops.SAMPLERS.index(name) + 1 for name in samplers]
        self._reads_text = "penalties" in samplers or "dry" in samplers
        self._text = np.array(prompt if self._reads_text else (), np.int32)  # with room for more
        self._text_count = self._prompt_count = len(self._text)
        self._top_logprobs = -1 if params.logprobs is None else min(params.logprobs, vocabulary)
        self._records: list[_Record] = []
        self._addresses: list[int] = []
        self._add_record()

    @property
    def records(self) -> list[int]:
        """Addresses of SAMPLER records, one for each row; they hold until the next `prepare`."""
        return self._addresses[: 1 + len(self._drafted)]

    def prepare(self, drafted: Sequence[int] = (), masks: NDArray[np.int32] | None = None) -> None:
        """Make records ready for the next token and those after each drafted one: SamplerSlot.prepare."""
        while len(self._records) <= len(drafted):
            self._add_record()
        if drafted:
            self._draft(drafted)
        self._drafted = list(drafted)
        if masks is not None or self._masks is not None:
            self._mask(masks)

    def chosen(self, j: int) -> int:
        """The token that the last step chose for record j."""
        token = self._records[j].words[CHOSEN]
        assert token >= 0, token
        return token

    def logprobs(self, j: int) -> Logprobs | None:
        """Those of record j's token, where asked for; they hold until the next step."""
        return self._records[j].read_logprobs()

    def accept(self, count: int = 1) -> list[int]:
        """The tokens that the first `count` records chose; they count from now on."""
        tokens = [record.words[CHOSEN] for record in self._records[:count]]
        assert tokens[:-1] == self._drafted[: count - 1] and tokens[-1] >= 0, (tokens, self._drafted)
        self._draw += count
        first = self._records[0].words
        first[DRAW] = self._draw
        if self._params.mirostat:
            first[MU] = self._records[count - 1].words[NEXT_MU]
        if self._reads_text:
            self._write_text(tokens)
            self._text_count += count
            first[TEXT_COUNT] = self._text_count
        return tokens

    def append(self, tokens: Sequence[int]) -> None:
        """Tokens that were not chosen but given; they count as text of the answer, and take no draw."""
        if self._reads_text and tokens:
            self._write_text(tokens)
            self._text_count += len(tokens)
            self._records[0].words[TEXT_COUNT] = self._text_count

    def _draft(self, drafted: Sequence[int]) -> None:
        if self._reads_text:
            self._write_text(drafted)
        for j, record in enumerate(self._records[1 : 1 + len(drafted)], 1):
            record.words[DRAW] = self._draw + j
            record.words[TEXT_COUNT] = self._text_count + j

    def _mask(self, masks: NDArray[np.int32] | None) -> None:
        self._masks = masks
        for record in self._records:
            record.words[MASK] = 0
        if masks is not None:
            first = address(masks)
            stride = masks.strides[0]
            for j, record in enumerate(self._records[: len(masks)]):
                record.words[MASK] = first + j * stride

    def _write_text(self, tokens: Sequence[int]) -> None:
        """Behind the text, without counting them as part of it."""
        end = self._text_count + len(tokens)
        if end > len(self._text):
            self._text = np.resize(self._text, 2 * end)
            for record in self._records:
                record.words[TEXT] = address(self._text)
        self._text[self._text_count : end] = tokens

    def _add_record(self) -> None:
        record = _Record(self._vocabulary, counts=self._reads_text, top_logprobs=self._top_logprobs)
        params = self._params
        mirostat = self._params.mirostat != 0
        record.fill(
            chain=sum(code << 4 * place for place, code in enumerate(self._chain)),
            mask=0,
            bias=address(self._bias),
            bias_count=len(self._bias),
            text=address(self._text),
            text_count=self._text_count,
            prompt_count=self._prompt_count,
            repetition=float_bits(params.repetition_penalty),
            presence=float_bits(params.presence_penalty),
            frequency=float_bits(params.frequency_penalty),
            penalty_last_n=_last_n(params.penalty_last_n),
            dry_multiplier=float_bits(params.dry_multiplier),
            dry_base=float_bits(params.dry_base),
            dry_allowed_length=params.dry_allowed_length,
            dry_last_n=_last_n(params.dry_penalty_last_n),
            breakers=address(self._breakers),
            top_k=params.top_k,
            typical_p=float_bits(params.typical_p),
            top_p=float_bits(params.top_p),
            min_p=float_bits(params.min_p),
            xtc_threshold=float_bits(params.xtc_threshold),
            xtc_probability=float_bits(params.xtc_probability),
            temperature=float_bits(params.temperature),
            tau=float_bits(params.mirostat_tau) if mirostat else 0,
            eta=float_bits(params.mirostat_eta),
            mu=float_bits(2 * params.mirostat_tau),
            next_mu=0,
            follows=int(mirostat and len(self._records) > 0),
            seed=self.seed,
            draw=self._draw,
            top_logprobs=self._top_logprobs,
            chosen=-1,
            **record.arrays,
        )
        self._records.append(record)
        self._addresses.append(record.address)


class _Record:
    """The words of a record, and the arrays that the kernel works in."""

    def __init__(self, vocabulary: int, *, counts: bool, top_logprobs: int) -> None:
        self._record = np.zeros(len(WORD), np.int64)
        self.words = elements(self._record)
        self.address = address(self._record)
        size = vocabulary + ops.SAMPLER_PADDING
        # Not zeroed where it need not be: the system then commits it only as far as the kernel goes
        self._work = np.empty((4 if top_logprobs >= 0 else 3, size), np.int32)
        self._counts = np.zeros(size, np.int32) if counts else None
        self._logprobs = np.zeros(1 + 2 * top_logprobs, np.int32) if top_logprobs >= 0 else None
        self.arrays = {"raw": 0, "counts": address(self._counts), "logprobs": address(self._logprobs)}
        names = ("tokens", "keys", "weights", "raw")
        self.arrays |= {name: address(array) for name, array in zip(names, self._work, strict=False)}

    def fill(self, **values: int) -> None:
        self._record[:] = ops.SAMPLER.pack(**values)

    def read_logprobs(self) -> Logprobs | None:
        if self._logprobs is None:
            return None
        ids = self._logprobs[1::2].tolist()
        values = self._logprobs.view(np.float32)[::2].tolist()
        return Logprobs(values[0], tuple((id_, value) for id_, value in zip(ids, values[1:], strict=True) if id_ >= 0))


def _last_n(count: int) -> int:
    return MAX_INT if count < 0 else count


def _bit_mask(tokens: Sequence[int], vocabulary: int) -> NDArray[np.int32]:
    """int32 [V/32], bit i of word i/32 for token i."""
    bits = np.zeros(-(-vocabulary // 32) * 32, np.uint8)
    bits[list(tokens)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)
