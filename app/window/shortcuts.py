"""Every keyboard shortcut, once: what F1 shows and what the window obeys.

Text widgets consume what they use first; the shortcuts see what is left over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from app.window import inputs
from app.window.inputs import MOD_CTRL, MOD_SHIFT, InputQueue


@dataclass(frozen=True)
class Shortcut:
    """`action` is carried out by the window; with an empty one the text widgets do it."""

    keys: str
    help: str
    action: str = ""
    codes: tuple[tuple[int, int], ...] = ()  # (key, modifiers)


_CTRL_SHIFT = MOD_CTRL | MOD_SHIFT

SHORTCUTS = (
    Shortcut("Enter", "Generate: write on from the prompt"),
    Shortcut("Ctrl+Enter, Shift+Enter", "New line in the prompt"),
    Shortcut("Esc", "Stop writing; the text so far stays", "escape", ((inputs.KEY_ESCAPE, 0),)),
    Shortcut(
        "Ctrl+Space",
        "Continue from here: the output becomes the prompt",
        "continue",
        ((inputs.KEY_SPACE, MOD_CTRL),),
    ),
    Shortcut("Ctrl+R", "Again, with a new seed", "again", ((inputs.KEY_R, MOD_CTRL),)),
    Shortcut(
        "Ctrl+Z, Ctrl+Y",
        "Undo and redo: typing, texts, branches and edits, in their order",
        "undo",
        ((inputs.KEY_Z, MOD_CTRL),),
    ),
    Shortcut("", "", "redo", ((inputs.KEY_Y, MOD_CTRL), (inputs.KEY_Z, _CTRL_SHIFT))),
    Shortcut("F2", "Edit the output; Ctrl+Enter takes it over", "edit", ((inputs.KEY_F2, 0),)),
    Shortcut("Ctrl+C", "Copy the selection of the prompt or of the output"),
    Shortcut("Ctrl+A", "Select all of the prompt or of the output"),
    Shortcut(
        "Ctrl+plus, Ctrl+minus",
        "Larger and smaller",
        "zoom_in",
        (
            (inputs.KEY_EQUAL, MOD_CTRL),
            (inputs.KEY_EQUAL, _CTRL_SHIFT),
            (inputs.KEY_KP_ADD, MOD_CTRL),
        ),
    ),
    Shortcut(
        "", "", "zoom_out", ((inputs.KEY_MINUS, MOD_CTRL), (inputs.KEY_KP_SUBTRACT, MOD_CTRL))
    ),
    Shortcut(
        "Ctrl+0",
        "Zoom back to 100 %",
        "zoom_reset",
        ((inputs.KEY_0, MOD_CTRL), (inputs.KEY_KP_0, MOD_CTRL)),
    ),
    Shortcut("F1", "This list", "help", ((inputs.KEY_F1, 0),)),
)


def listed() -> list[tuple[str, str]]:
    """Keys and their help, for the overlay."""
    return [(shortcut.keys, shortcut.help) for shortcut in SHORTCUTS if shortcut.keys]


def run(queue: InputQueue, actions: dict[str, Callable[[], object]]) -> None:
    """Carry out the shortcuts pressed and not used by a widget; KeyError for a missing action."""
    for shortcut in SHORTCUTS:
        for key, mods in shortcut.codes:
            while queue.take(key, mods):
                actions[shortcut.action]()
