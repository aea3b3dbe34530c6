"""Drafts for a step: what each request's controller wants, from the text itself or from the draft model."""

from collections.abc import Mapping
from collections.abc import Sequence as Seq

from edgellm.engine.constrain import Matcher
from edgellm.engine.draft import DraftModel
from edgellm.engine.request import Request


class Drafter:
    """Proposes tokens that may come next, which the step then verifies."""

    def __init__(self, model: DraftModel | None) -> None:
        self._model = model

    def draft(self, requests: Seq[Request], most: int) -> Mapping[Request, list[int]]:
        """At most `most` tokens for each of the requests; those without a draft are left out.

        The draft model computes those of all requests together.
        """
        limits = {request: min(most, request.draft_room) for request in requests if request.drafts}
        for request, limit in limits.items():
            request.controller.choose(limit)
        if self._model is not None:
            self._model.run()
        drafts = {}
        for request in limits:
            drafted = request.controller.draft()
            if drafted and request.matcher is not None:
                drafted = drafted[: _num_allowed(request.matcher, drafted)]
            if drafted:
                drafts[request] = drafted
        return drafts


def _num_allowed(matcher: Matcher, drafted: list[int]) -> int:
    """Drafted tokens before the first after which the constraint forces others: those take no draw."""
    count = matcher.validate(drafted)
    for at, token in enumerate(drafted[:count]):
        matcher.accept(token)
        if matcher.forced():
            matcher.rollback(at + 1)
            return at
    matcher.rollback(count)
    return count
