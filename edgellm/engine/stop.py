"""Where a streamed text ends: stop texts are found across pieces, and never shown in part."""


class StopFinder:
    """Feed text, get what is safe to show."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.found: str | None = None  # the stop text

    def feed(self, text: str) -> str:
        """Text before the first stop text, without an end that may be the beginning of one."""
        if not self._stops:
            return text
        self._held += text
        places = [(place, stop) for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            first, self.found = min(places)
            shown = self._held[:first]
            self._held = ""
            return shown
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return shown

    def flush(self) -> str:
        """What was held back: the text ended without a stop text."""
        shown = self._held
        self._held = ""
        return shown

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins the stop text."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
