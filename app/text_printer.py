"""Texts as a person reads them: streamed to standard output, what was measured on standard error.

Takes events of the worker; starts and awaits nothing.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from app.results import WrittenText, total
from engine.events import Beams, Finished, ModelInfo, Started, Token

_DIM, _RESET, _CLEAR_LINE = "\x1b[2m", "\x1b[0m", "\r\x1b[K"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_ENDINGS = {
    "length": "full length",
    "end_of_text": "end of text",
    "stop": "stop string",
    "time": "out of time",
    "context": "context full",
    "cancelled": "stopped",
}


class TextPrinter:
    """Prints the texts that continue one prompt, one after the other."""

    def __init__(self, prompt: str, count: int) -> None:
        """With `count` above 1 each text gets a header with its number."""
        self._prompt, self._count = prompt, count
        self._terminal = sys.stdout.isatty()
        self._progress = sys.stderr.isatty()
        self._number = 0
        self._begun = False  # the text under way has its header and prompt
        self._shown = 0  # characters of it
        self._in_progress = False

    def event(self, event: object) -> None:
        """Show what an event of the text under way brings; a beam's only when it has ended."""
        if isinstance(event, Started) and event.config.decoding != "beam":
            self._open()
        elif isinstance(event, Token) and event.text and self._begun:
            self._write(event.text)
            self._shown += len(event.text)
        elif isinstance(event, Beams):
            self._show_progress(event)
        elif isinstance(event, Finished):
            self._end_progress()
            if not self._begun:
                self._open(event.score)
            self._write(event.text[self._shown :])  # what could have become a stop string, too
            self._close()

    def broken_off(self) -> None:
        """The text under way came to no end."""
        self._end_progress()
        if self._begun:
            self._close()

    def _open(self, score: float | None = None) -> None:
        self._number += 1
        self._begun = True
        if self._count > 1:
            extra = "" if score is None else f", score {score:.3f}"
            print(f"--- {self._number} of {self._count}{extra} ---")
        prompt = _harmless(self._prompt) if self._terminal else self._prompt
        sys.stdout.write(f"{_DIM}{prompt}{_RESET}" if self._terminal else prompt)

    def _close(self) -> None:
        self._begun, self._shown = False, 0
        print(flush=True)

    def _write(self, text: str) -> None:
        sys.stdout.write(_harmless(text) if self._terminal else text)
        sys.stdout.flush()

    def _show_progress(self, beams: Beams) -> None:
        if self._progress:
            best = " ".join(_harmless(beams.texts[0]).split())[-50:] if beams.texts else ""
            line = f"{_CLEAR_LINE}beam search: {beams.steps} tokens ... {best}"
            print(line, end="", file=sys.stderr, flush=True)
            self._in_progress = True

    def _end_progress(self) -> None:
        if self._in_progress:
            print(_CLEAR_LINE, end="", file=sys.stderr, flush=True)
            self._in_progress = False


def summary(texts: Sequence[WrittenText], model: ModelInfo) -> str:
    """One line: how much was written, how fast, with what, and why it ended."""
    all_of_it, started = total(texts), texts[0].started
    first_ms = min(text.end.timings.ttft_s for text in texts) * 1000
    number = f"{len(texts)} texts, " if started.config.num_return_sequences > 1 else ""
    seed = f"seed {started.config.seed}, " if started.config.draws else ""
    reasons = [_ENDINGS.get(text.end.reason, text.end.reason) for text in texts]
    if len(set(reasons)) == 1:
        reasons = [r for r in reasons[:1] if r != _ENDINGS["length"]]
    line = (
        f"{number}{all_of_it.tokens} tokens in {all_of_it.seconds:.2f} s, "
        f"{all_of_it.tokens_per_s:.1f} tokens/s, first after {first_ms:.0f} ms, "
        f"{seed}{model.name} {model.precision} on {model.backend}"
    )
    return ", ".join([line, *reasons])


def _harmless(text: str) -> str:
    """Without the control characters that a terminal would obey."""
    return _CONTROL.sub("", text)
