"""Colours behind tokens: how probable each was, or how open the choice was.

Pure. A few classes rather than a gradient: a reader can name a class and find it in the legend.
On every colour of a theme its text keeps the contrast that WCAG 2.1 AA asks for (4.5).
"""

from __future__ import annotations

import math

from app.window import theme
from app.window.theme import Rgba
from engine.step_record import StepRecord

MODES = ("off", "probability", "entropy")
UNSEEN_ALPHA = 0.35  # of the colour behind dimmed text

# Upper classes first; a class begins at its bound and holds what the one before does not.
PROBABILITY = (0.5, 0.2, 0.05, 0.01, 0.0)
ENTROPY = (0.0, 1.0, 2.0, 3.0, 4.5)  # nats, and here the classes go up
_LABELS = {
    "probability": ("over 50%", "over 20%", "over 5%", "over 1%", "less"),
    "entropy": ("under 1 nat", "over 1", "over 2", "over 3", "over 4.5"),
}
# The first class has no colour: what was to be expected stays quiet.
_RAMPS: dict[str, dict[str, tuple[str, ...]]] = {
    "dark": {
        "probability": ("33401f", "574a12", "74401a", "8a2f3f"),
        "entropy": ("1d3a40", "1f4a68", "35509a", "6a4cb0"),
    },
    "light": {
        "probability": ("e6f0c0", "fbe39a", "fbbf8c", "f49aa4"),
        "entropy": ("d3efee", "b3dcf5", "b3c0fa", "d0b0f2"),
    },
}


def shade_of(record: StepRecord, mode: str) -> int:
    """The class of a token, 0 for what was to be expected."""
    if mode == "entropy":
        return max(sum(record.entropy >= bound for bound in ENTROPY) - 1, 0)
    probability = math.exp(record.logprob)
    return next((i for i, least in enumerate(PROBABILITY) if probability >= least), 4)


def color_of(shade: int, mode: str, *, unseen: bool = False) -> Rgba | None:
    """The colour behind a token in the theme in force; None for the first class."""
    if shade == 0:
        return None
    return theme.parse(_RAMPS[theme.name()][mode][shade - 1], UNSEEN_ALPHA if unseen else 1.0)


def legend(mode: str) -> list[tuple[str, Rgba | None]]:
    """What each class means, and its colour."""
    return [(label, color_of(i, mode)) for i, label in enumerate(_LABELS[mode])]
