"""What the worker is asked, and the line in which it waits."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from engine.config import GenerationConfig, LoadConfig
from engine.decoding import Text
from engine.generation import Generation, with_seed
from engine.job import Job
from engine.request import Prompt, TextRequest
from engine.scoring import ScoreCommand


@dataclass
class LoadCommand:
    """Replace the model."""

    job: Job
    config: LoadConfig


@dataclass
class GenerateCommand:
    """Write a text."""

    job: Job
    request: TextRequest
    # Of several texts of one request the first that starts reads the prompt for all.
    group: list[Text] | None = None

    @property
    def must_wait(self) -> bool:
        """Whether another text of the request is still reading the prompt for this one too."""
        first = self.group[0] if self.group else None
        return isinstance(first, Generation) and first.reading and not first.done


def to_write(
    asked: Sequence[tuple[Prompt, GenerationConfig]],
    new_job: Callable[[], Job],
    parent: int | None,
) -> list[list[GenerateCommand]]:
    """What the worker is asked for each prompt: a command for each of its texts."""
    now = time.perf_counter()
    commands: list[list[GenerateCommand]] = []
    for prompt, config in asked:
        count = config.num_return_sequences
        whole = TextRequest(prompt, with_seed(config), parent=parent, requested_at=now)
        group: list[Text] | None = [] if count > 1 else None
        jobs = [new_job() for _ in range(count)]
        commands.append(
            [
                GenerateCommand(job, replace(whole, job_id=job.id, sequence=number), group)
                for number, job in enumerate(jobs)
            ]
        )
    return commands


@dataclass
class MeasureCommand:
    """Measure the memory's bandwidth."""

    job: Job


Command = LoadCommand | GenerateCommand | ScoreCommand | MeasureCommand


class Line:
    """Commands in the order in which they came. Of the worker's thread alone."""

    def __init__(self) -> None:
        self._commands: deque[Command] = deque()

    def __bool__(self) -> bool:
        return bool(self._commands)

    def add(self, command: Command) -> None:
        """To the end."""
        self._commands.append(command)

    def take_all(self) -> list[Command]:
        """Everything that waits."""
        commands = list(self._commands)
        self._commands.clear()
        return commands

    def take_cancelled(self) -> list[Command]:
        """Those that were given up while they waited."""
        cancelled = [command for command in self._commands if command.job.cancelled]
        for command in cancelled:
            self._commands.remove(command)
        return cancelled

    def take_ready(self, active: int, places: int) -> Command | None:
        """The first command whose turn it is beside so many active texts; see `ready`."""
        at = self._ready(active, places)
        if at is None:
            return None
        command = self._commands[at]
        del self._commands[at]
        return command

    def ready(self, active: int, places: int) -> bool:
        """Whether a command can be dealt with now.

        A load waits until no text is active, and all that came after it waits too. Texts begin in
        order as far as there are places; one that waits for another of its request to read their
        prompt keeps its place.
        """
        return self._ready(active, places) is not None

    def _ready(self, active: int, places: int) -> int | None:
        free = places - active
        for at, command in enumerate(self._commands):
            if isinstance(command, MeasureCommand):
                return at
            if isinstance(command, LoadCommand):
                return None if active or at else at
            if free <= 0:
                return None
            if not command.must_wait:
                return at
            free -= 1
        return None
