"""Undo and redo over everything that happens to the prompt and the output, as one sequence in time.

Pure. A step knows what changed of the prompt and which output gave way to which; outputs are
shared, not copied, so that what still arrives for one of them is there when it is shown again.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.window.records import Output
from app.window.text_buffer import Change

MAX_STEPS = 2000
MAX_WEIGHT = 150_000_000  # about as many bytes
RECORD_WEIGHT = 2500  # of one token's record


@dataclass
class Step:
    """From one state of prompt and output to the next."""

    prompt: Change | None
    before: Output
    after: Output
    typed: int | None = None  # the editor's step that it belongs to; None for the program's own

    @property
    def weight(self) -> int:
        """What it takes to keep the step, roughly in bytes."""
        change, output = self.prompt, self.after
        weight = 200 + (len(change.removed) + len(change.inserted) if change else 0)
        if output is not self.before:
            weight += len(output.text) + len(output.prompt) + 100 * len(output.token_ids)
            weight += RECORD_WEIGHT * len(output.records)
        return weight


class Timeline:
    """Steps that can be taken back, and those that were and can be taken again."""

    def __init__(self) -> None:
        self._past: list[Step] = []
        self._future: list[Step] = []

    @property
    def can_undo(self) -> bool:
        return bool(self._past)

    @property
    def can_redo(self) -> bool:
        return bool(self._future)

    @property
    def last(self) -> Step | None:
        """The step that undo would take back."""
        return self._past[-1] if self._past else None

    def push(self, step: Step) -> None:
        """A new step; what had been taken back is gone."""
        self._future.clear()
        self._past.append(step)
        self._forget_oldest()

    def type(self, before: str, after: str, output: Output, step: int | None) -> None:
        """The user changed the prompt; what belongs to one step of the editor is one step here."""
        self._future.clear()
        last = self.last
        if step is not None and last is not None and last.typed == step and last.prompt:
            before = undone(before, last.prompt)
            last.prompt = difference(before, after)
            return
        self.push(Step(difference(before, after), output, output, step))

    def undo(self) -> Step | None:
        """Take the last step back; None if there is none."""
        if not self._past:
            return None
        step = self._past.pop()
        for ended in (step, *self._past[-1:]):
            ended.typed = None  # what is typed next begins anew
        self._future.append(step)
        return step

    def redo(self) -> Step | None:
        """Take the last undone step again; None if there is none."""
        if not self._future:
            return None
        step = self._future.pop()
        self._past.append(step)
        return step

    def _forget_oldest(self) -> None:
        weight = sum(step.weight for step in self._past)
        while len(self._past) > 1 and (weight > MAX_WEIGHT or len(self._past) > MAX_STEPS):
            weight -= self._past.pop(0).weight


def difference(old: str, new: str) -> Change:
    """The smallest single change that makes one text the other."""
    start = _alike(old, new)
    room = min(len(old), len(new)) - start
    end = _alike(old[::-1][:room], new[::-1][:room]) if room else 0
    return Change(start, old[start : len(old) - end], new[start : len(new) - end])


def done(text: str, change: Change) -> str:
    """The text after a change."""
    return text[: change.start] + change.inserted + text[change.end :]


def undone(text: str, change: Change) -> str:
    """The text before a change."""
    return done(text, change.reversed())


def _alike(first: str, second: str) -> int:
    """How many characters two texts have in common at their beginning."""
    low, high = 0, min(len(first), len(second))
    if first[:high] == second[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle
    return low
