"""What happens when a text fills the context, by `SamplingParams.context_policy`.

error    a prompt is refused where it does not fit together with the answer asked for
stop     a prompt is refused where it does not fit alone; the answer ends where the context is full, by "length"
shift    nothing is refused or ends; when there is one token more than fits, older ones leave:

             [ first context_keep | dropped         | newest half of the context, less context_keep ]

         What is left is computed again, as a fresh prompt, and `Usage.num_dropped_tokens` counts what left.
         Recurrent states cannot forget, so such models refuse it.
"""

from edgellm.engine.params import SamplingParams
from edgellm.errors import ContextLengthError, OptionError
from edgellm.families.network import Network


class Context:
    """The context of a loaded model: a text of more than `size` tokens has to be shifted before its next step."""

    def __init__(self, size: int, network: Network) -> None:
        self.size = size
        self._network = network

    def check(self, num_prompt_tokens: int, params: SamplingParams) -> None:
        """Errors: ContextLengthError for a prompt that does not fit, OptionError for a policy that the model lacks."""
        if params.context_policy == "shift":
            if self._network.is_recurrent:
                raise OptionError(
                    f"context_policy 'shift' drops tokens of a text, which the recurrent state of a "
                    f"{self._network.family} model cannot forget; choose 'stop' or 'error'"
                )
            return
        wanted = params.max_tokens if params.context_policy == "error" else None
        # The answer's last token is never computed, so it needs no room
        if num_prompt_tokens <= self.size and num_prompt_tokens + (wanted or 1) <= self.size + 1:
            return
        remedy = "shorten the prompt, ask for fewer max_tokens, choose another context_policy"
        if self.size < self._network.context:
            remedy += f", or load the model with a larger context (up to {self._network.context})"
        raise ContextLengthError(num_prompt_tokens, self.size, remedy, num_wanted_tokens=wanted)

    def answer_limit(self, num_prompt_tokens: int, params: SamplingParams) -> int | None:
        """Tokens that an answer has at most; None for any number."""
        if params.context_policy == "shift":
            return params.max_tokens
        room = self.size - num_prompt_tokens + 1
        return room if params.max_tokens is None else min(params.max_tokens, room)

    def shifted(self, tokens: list[int], params: SamplingParams) -> tuple[int, int]:
        """Which tokens leave: from one index up to another."""
        keep = min(params.context_keep, self.size // 4)
        newest = max(self.size // 2, 1) - keep
        return keep, len(tokens) - newest
