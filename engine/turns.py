"""Who of the active texts takes part in the next pass."""

from __future__ import annotations

from collections.abc import Sequence

from engine.backends.base import Backend
from engine.fast_path import ManySteps
from engine.generation import PREFILL_CHUNK, Generation, Writing
from engine.job import Job

Entry = tuple[Job, Writing]


def apart(backend: Backend, going: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Texts that can go on with many steps in one call, and those that need a step for each."""
    if not isinstance(backend, ManySteps):
        return [], list(going)
    fast = [entry for entry in going if isinstance(entry[1], Generation) and entry[1].fast]
    return fast, [entry for entry in going if entry not in fast]


def due(going: Sequence[Entry]) -> list[Entry]:
    """Who takes part in a single step: all that write, and of those that read what makes one chunk.

    So many long prompts at once delay the texts being written, and a cancellation, no more than
    one does. A text's own chunks stay the same, for backends whose rounding depends on them.
    """
    taking, room = [], PREFILL_CHUNK
    for job, writing in going:
        if writing.reading:
            tokens = sum(len(ids) for _, ids in writing.work())
            if room < tokens:
                room = 0  # in turn: a short prompt does not overtake
                continue
            room -= tokens
        taking.append((job, writing))
    return taking
