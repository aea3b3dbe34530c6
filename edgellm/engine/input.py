"""From what a user asks to a request of the engine, checked."""

from collections.abc import Sequence as Seq

import numpy as np

from edgellm.backends.base import Runner
from edgellm.engine.constrain import Constrainer
from edgellm.engine.context import Context
from edgellm.engine.detokenizer import Detokenizer
from edgellm.engine.draft import DraftModel
from edgellm.engine.masks import Masks
from edgellm.engine.params import SamplingParams
from edgellm.engine.request import Request
from edgellm.engine.speculate import Controller, CostModel, LookupProposer, Proposer, SessionTexts
from edgellm.errors import OptionError
from edgellm.families.network import Network
from edgellm.inspect.probe import Probe
from edgellm.tokenizer import Tokenizer


class InputProcessor:
    """Makes the requests of one model. For any number of threads."""

    def __init__(
        self, network: Network, tokenizer: Tokenizer, runner: Runner, costs: CostModel, *,
        context: Context, draft: DraftModel | None, max_unread: int, masks_beside_steps: bool,
    ) -> None:  # fmt: skip
        """A request with `max_unread` pieces that nobody has read computes no more."""
        self.session = SessionTexts()
        self._network = network
        self._tokenizer = tokenizer
        self._runner = runner
        self._costs = costs
        self.context = context
        self._draft = draft
        self._max_unread = max_unread
        self._masks_beside_steps = masks_beside_steps
        self._constrainer = Constrainer(tokenizer)

    def process(self, prompt: list[int], params: SamplingParams, *, priority: int, probe: Probe | None) -> Request:
        """Errors: OptionError, ContextLengthError, GrammarError."""
        self.check_prompt(prompt)
        self.context.check(len(prompt), params)
        if probe is not None:
            probe.check(self._network)
        beyond = [token for token in params.stop_token_ids if token >= self._network.vocabulary]
        if beyond:
            last = self._network.vocabulary - 1
            raise OptionError(f"stop_token_ids {beyond[0]} is not a token of the vocabulary, 0..{last}")
        breakers = self._breakers(params.dry_sequence_breakers) if params.dry_multiplier else []
        matcher = self._constrainer.matcher(params.constraint, prompt[-1]) if params.constraint else None
        limit = self.context.answer_limit(len(prompt), params)
        detokenizer = Detokenizer(self._tokenizer, params, previous=prompt[-1], limit=limit)
        masks = None
        if matcher is not None or params.min_tokens:
            masks = Masks(
                matcher, self._tokenizer.vocabulary_size, beside=self._masks_beside_steps,
                end_token_ids=detokenizer.stop_token_ids, min_tokens=params.min_tokens,
            )  # fmt: skip
        return Request(
            prompt, params, self._runner.sampler(params, prompt, breakers), detokenizer,
            context=self.context, controller=Controller(self._proposers(), self._costs, params.speculation),
            matcher=matcher, masks=masks, priority=priority, probe=probe, max_unread=self._max_unread,
        )  # fmt: skip

    def check_prompt(self, ids: Seq[int]) -> None:
        """Errors: OptionError for no tokens, and for what is none."""
        if not ids:
            raise OptionError("the prompt is empty; give at least one token")
        vocabulary = self._network.vocabulary
        bad = [token for token in ids if not isinstance(token, int | np.integer) or not 0 <= token < vocabulary]
        if bad:
            raise OptionError(f"token {bad[0]!r} is not an id of the vocabulary, 0..{vocabulary - 1}")

    def _proposers(self) -> list[Proposer]:
        lookup = LookupProposer(self.session)
        return [lookup] if self._draft is None else [lookup, self._draft.proposer()]

    def _breakers(self, parts: Seq[str | int]) -> list[int]:
        """Token ids of DRY's sequence breakers."""
        ids: list[int] = []
        for part in parts:
            found = [part] if isinstance(part, int) else self._tokenizer.ids_containing(part)
            if not found:
                raise OptionError(f"dry_sequence_breakers: no token contains {part!r}; give a part of it, or token ids")
            ids += found
        return ids
