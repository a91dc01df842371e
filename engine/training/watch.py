"""Is it going well? The course of the held-out loss, and what has been warned of already."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

_RISES = 2  # evaluations in turn above the best one


@dataclass
class Course:
    """The held-out losses so far, in nats per token; saved with every checkpoint."""

    best: float | None = None
    best_step: int = 0
    rises: int = 0  # evaluations since the best one
    warned_of_step: int | None = None
    longest_copy: int = 0

    def note(self, step: int, loss: float) -> bool:
        """Take an evaluation; whether it is the best so far."""
        if self.best is None or loss < self.best:
            self.best, self.best_step, self.rises = loss, step, 0
            return True
        self.rises += 1
        return False

    def rising(self, step: int) -> str:
        """A warning where the held-out loss has turned up, once for each turn; else nothing."""
        if self.rises < _RISES or self.warned_of_step == self.best_step:
            return ""
        self.warned_of_step = self.best_step
        if not self.best_step:
            return (
                f"the held-out loss is above what it was before training ({self.best:.4f}): the "
                "model forgets more than it learns; stop here, and take a lower learning rate, or "
                "more text"
            )
        return (
            f"the held-out loss has risen since step {self.best_step:,}, where it was "
            f"{self.best:.4f}: the model is learning the text by heart; stop here, use the "
            "checkpoint nearest to that step, or take fewer epochs or a lower learning rate"
        )

    def longer_copy(self, tokens: int) -> bool:
        """Whether a sample copies clearly more of the text than was warned of before."""
        if tokens <= 1.5 * self.longest_copy:
            return False
        self.longest_copy = tokens
        return True

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; `Course(**...)` undoes it."""
        return asdict(self)
