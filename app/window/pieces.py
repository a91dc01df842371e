"""A token as a reader can tell it from others: white space and half characters made visible."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

_SIGNS = {" ": "\u00b7", "\n": "\u21b5", "\t": "\u2192", "\r": "\u240d", "\u00a0": "\u00b7"}
SPECIAL = "(end of text)"


def visible(piece: bytes) -> str:
    """The text of a token's bytes; the bytes themselves where they are only part of a character."""
    if not piece:
        return SPECIAL
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return " ".join(f"{byte:02X}" for byte in piece)
    return "".join(_SIGNS.get(c, c if c.isprintable() else "\ufffd") for c in text)


def places(pieces: Sequence[bytes], text: str) -> list[tuple[int, int]] | None:
    """Which characters of `text` each piece wrote, as (start, end); None where they do not fit.

    A character made of several pieces belongs to the last one; `text` may end early, as a stop
    string is cut off.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    found, parts, at = [], [], 0
    for number, piece in enumerate(pieces, 1):
        part = decoder.decode(piece, number == len(pieces))
        parts.append(part)
        found.append((min(at, len(text)), min(at + len(part), len(text))))
        at += len(part)
    return found if "".join(parts).startswith(text) else None
