"""From what a user asks to a request of the engine, checked."""

from collections.abc import Sequence as Seq

import numpy as np

from edgellm.engine.constrain import Constrainer
from edgellm.engine.draft import DraftModel, DraftProposer
from edgellm.engine.engine import Engine
from edgellm.engine.masks import Masks
from edgellm.engine.params import SamplingParams
from edgellm.engine.request import Request
from edgellm.engine.speculate import Controller, LookupProposer, Proposer
from edgellm.errors import ContextLengthError, OptionError
from edgellm.families.network import Network
from edgellm.inspect.probe import Probe
from edgellm.tokenizer import Tokenizer


class RequestFactory:
    """Makes the requests of one model. For any number of threads."""

    def __init__(
        self, network: Network, tokenizer: Tokenizer, engine: Engine, *, context: int, draft: DraftModel | None
    ) -> None:
        self._network, self._tokenizer, self._engine = network, tokenizer, engine
        self._context, self._draft = context, draft
        self._constrainer = Constrainer(tokenizer)

    def make(self, prompt: list[int], params: SamplingParams, *, priority: int, probe: Probe | None) -> Request:
        """Errors: OptionError, ContextLengthError, GrammarError."""
        self.check_prompt(prompt)
        if params.context_policy == "shift" and self._network.is_recurrent:
            raise OptionError(
                f"context_policy 'shift' drops tokens of a text, which the recurrent state of a {self._network.family} "
                "model cannot forget; choose 'stop' or 'error'"
            )
        self.check_room(len(prompt), params)
        if probe is not None:
            probe.check(self._network)
        breakers = self._breakers(params.dry_sequence_breakers) if params.dry_multiplier else []
        matcher = self._constrainer.matcher(params.constraint, prompt[-1]) if params.constraint else None
        beside = self._engine.leaves_a_processor
        return Request(
            prompt, params, self._engine.sampler(params, prompt, breakers), self._tokenizer,
            context=self._context,
            controller=Controller(self._proposers(), self._engine.costs, params.speculation),
            matcher=matcher, masks=Masks(matcher, self._tokenizer.vocabulary_size, beside=beside) if matcher else None,
            priority=priority, probe=probe,
        )  # fmt: skip

    def check_prompt(self, ids: Seq[int]) -> None:
        """Errors: OptionError for no tokens, and for what is none."""
        if not ids:
            raise OptionError("the prompt is empty; give at least one token")
        vocabulary = self._network.vocabulary
        bad = [token for token in ids if not isinstance(token, int | np.integer) or not 0 <= token < vocabulary]
        if bad:
            raise OptionError(f"token {bad[0]!r} is not an id of the vocabulary, 0..{vocabulary - 1}")

    def check_room(self, num_prompt_tokens: int, params: SamplingParams) -> None:
        """Errors: ContextLengthError where prompt and answer do not fit and the policy is not to go on then."""
        fits = num_prompt_tokens <= self._context
        if params.context_policy == "error":
            fits = fits and num_prompt_tokens + (params.max_tokens or 1) <= self._context + 1
        if not fits and params.context_policy != "shift":
            remedy = "shorten the prompt, ask for fewer max_tokens, choose another context_policy"
            if self._context < self._network.context:
                remedy += f", or load the model with a larger context (up to {self._network.context})"
            wanted = params.max_tokens if params.context_policy == "error" else None
            raise ContextLengthError(num_prompt_tokens, self._context, remedy, num_wanted_tokens=wanted)

    def _proposers(self) -> list[Proposer]:
        lookup = LookupProposer(self._engine.session)
        return [lookup] if self._draft is None else [lookup, DraftProposer(self._draft)]

    def _breakers(self, parts: Seq[str | int]) -> list[int]:
        """Token ids of DRY's sequence breakers."""
        ids: list[int] = []
        for part in parts:
            found = [part] if isinstance(part, int) else self._tokenizer.ids_containing(part)
            if not found:
                raise OptionError(f"dry_sequence_breakers: no token contains {part!r}; give a part of it, or token ids")
            ids += found
        return ids
