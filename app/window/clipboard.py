"""Clean text, and a clipboard that survives large and broken contents.

pyimgui 2.0.0 hands Dear ImGui a pointer into a Python object that may already be freed, so a large
paste crashes. `Clipboard.for_imgui` therefore keeps the last bytes alive itself.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

log = logging.getLogger(__name__)

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufeff\ufffe\uffff]")


def clean_text(text: str) -> str:
    r"""`text` fit for any widget, file and tokenizer.

    Line ends become `\n` (form feed and vertical tab too), pairs of surrogates become the
    character they mean, and NUL, lone surrogates, byte-order marks and other control characters
    are removed. Tabs stay.
    """
    if text.isprintable():
        return text
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x0b", "\n")
    text = text.replace("\x0c", "\n").replace("\x85", "\n").replace("\u2028", "\n")
    text = text.replace("\u2029", "\n")
    if not _CONTROL.search(text):
        return text
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")
    return _CONTROL.sub("", text)


def clean_bytes(raw: bytes) -> str:
    """Bytes from another program as clean text; what is not UTF-8 becomes U+FFFD."""
    return clean_text(raw.decode("utf-8", "replace"))


class Clipboard:
    """Get and set text through two functions of the platform; failures give empty text."""

    def __init__(
        self, read: Callable[[], bytes | str | None], write: Callable[[str], None]
    ) -> None:
        self._read = read
        self._write = write
        self._alive = b""

    def get(self) -> str:
        """The clipboard's text, cleaned; "" if it holds none."""
        try:
            raw = self._read()
        except Exception as error:
            log.warning("The clipboard could not be read: %s", error)
            return ""
        if raw is None:
            return ""
        return clean_bytes(raw) if isinstance(raw, bytes) else clean_text(raw)

    def set(self, text: str) -> None:
        """Put `text`, cleaned, on the clipboard."""
        try:
            self._write(clean_text(text))
        except Exception as error:
            log.warning("The clipboard could not be set: %s", error)

    def for_imgui(self) -> bytes:
        """The text as UTF-8 that stays alive until the next call, as Dear ImGui needs it."""
        self._alive = self.get().encode("utf-8")
        return self._alive


def _memory_clipboard() -> Clipboard:
    held = [""]

    def write(text: str) -> None:
        held[0] = text

    return Clipboard(lambda: held[0], write)


_current = _memory_clipboard()


def current() -> Clipboard:
    """The clipboard of the window being drawn; without a window, one in memory."""
    return _current


def set_current(clipboard: Clipboard | None) -> None:
    """Make `clipboard` the one that widgets use; None gives a fresh one in memory."""
    global _current
    _current = clipboard if clipboard is not None else _memory_clipboard()
