"""Stop strings in a stream of text, also across the borders of its pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes text on until one of some strings comes; holds back what may become one."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._longest = max(map(len, self._strings), default=0)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """What of the text so far is certain to stand before any stop string."""
        if not self._strings or self.found:
            return "" if self.found else text
        text = self._held + text
        places = [place for s in self._strings if (place := text.find(s)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        certain = len(text) - self._overlap(text)
        self._held = text[certain:]
        return text[:certain]

    def finish(self) -> str:
        """What was held back, where no stop string came of it."""
        held, self._held = self._held, ""
        return held

    def _overlap(self, text: str) -> int:
        """Length of the longest end of `text` with which a stop string begins."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if any(s.startswith(text[-length:]) for s in self._strings):
                return length
        return 0
