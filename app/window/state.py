"""What the window shows, as plain data: `AppState.apply(event)` and the user's actions.

Imports no imgui and knows neither the worker nor the disk. Actions leave intents behind
(`take_intents`), which the session carries out; it then names the job it started
(`bind_load`, `bind_download`, `bind_generation`). An event counts only when it carries the id of
the job that is current for its kind, so a job that was replaced can never write into the view of
its successor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from app.window.intents import RunDuel, StopDuel
from app.window.model_state import MAX_BANNERS as MAX_BANNERS
from app.window.model_state import ModelStatus as ModelStatus
from app.window.text_state import SAMPLE_S as SAMPLE_S
from app.window.text_state import GenerationStatus as GenerationStatus
from app.window.text_state import TextState
from engine.config import GenerationConfig, LoadConfig
from engine.events import Bandwidth, Event, Failed, Finished, Loaded

SETTLED_S = 0.1  # of decoding before a whole text's rate is worth showing


class AppState(TextState):
    """Everything the panels draw from. Used from the window's thread only.

    The halves are `ModelState` and `TextState`; here they meet: whose event it is, and how near
    the text shown comes to what the memory can stream.
    """

    @property
    def read_rate(self) -> float:
        """Bytes of weights per second that decoding the text shown reads; 0 if not known."""
        model, timings = self.output.model, self.output.timings
        if model is None or (self.running and timings.decode_s < SETTLED_S):
            return 0.0
        return model.read_bytes * timings.decode_tokens_per_s

    @property
    def of_ceiling(self) -> float | None:
        """The part of the memory's bandwidth that reading the weights takes, or None if not known.

        Above 1 the bandwidth was measured while the machine was busy.
        """
        if not self.ceiling.bytes_per_s or not self.read_rate or self.output.model != self.model:
            return None
        return self.read_rate / self.ceiling.bytes_per_s

    @property
    def wants_bandwidth(self) -> bool:
        """Whether a text of the model in memory has ended that the bandwidth is to follow."""
        ceiling, output = self.ceiling, self.output
        return (
            not self.running
            and ceiling.job is None
            and not ceiling.problem
            and (ceiling.doubted or not ceiling.bytes_per_s)
            and output.model is not None
            and output.model == self.model
            and self.read_rate > 0
            and output.job != ceiling.asked_after
        )

    # The duel

    @property
    def why_not_duel(self) -> str:
        """The reason why a duel cannot begin now; empty when it can."""
        return self.why_not_write or ("The model is being loaded." if self.load else "")

    def start_duel(self, wanted: Sequence[tuple[str, GenerationConfig]]) -> bool:
        """Write on from the prompt in several ways at once, each with its label."""
        if self.why_not_duel or not wanted:
            return False
        self.stop_duel()
        self.duel.begin(self.prompt, wanted)
        self._intents.append(RunDuel(self.prompt, tuple(config for _, config in wanted)))
        return True

    def stop_duel(self) -> bool:
        """Stop all texts of the duel; what is there stays."""
        if not self.duel.running:
            return False
        if not self.duel.stopping:
            self.duel.stopping = True
            self._intents.append(StopDuel())
        return True

    def request_load(self, config: LoadConfig | None = None) -> None:
        """As TextState; a duel is stopped."""
        self.stop_duel()
        super().request_load(config)

    def bind_bandwidth(self, job: int) -> None:
        self.ceiling.job = job
        self.ceiling.asked_after = self.output.job

    # Events

    def apply_all(self, events: Iterable[Event]) -> None:
        for event in events:
            self.apply(event)

    def apply(self, event: Event) -> bool:
        """Take one event in; False when it belongs to no current job and was dropped."""
        known = self.duel.apply(event) or self.lanes.apply(event)
        if self.load is not None and event.job_id == self.load.job:
            self._apply_load(self.load, event)
            return True
        if event.job_id == self.generation_job:
            self._apply_generation(event)
            return True
        for name, download in self.downloads.items():
            if event.job_id == download.job:
                self._apply_download(name, download, event)
                return True
        if event.job_id == self.ceiling.job:
            self._apply_bandwidth(event)
            return True
        if isinstance(event, Loaded):  # its cancel came too late: it is in memory all the same
            self._take_model(event.model)
        self._apply_retired(event)
        return known

    def _apply_bandwidth(self, event: Event) -> None:
        ceiling = self.ceiling
        ceiling.job = None
        if isinstance(event, Bandwidth):
            # Other programs can only make it look slower than it is.
            ceiling.bytes_per_s = max(ceiling.bytes_per_s, event.bytes_per_s)
            ceiling.doubted = False
            self._check_ceiling()
        elif isinstance(event, Failed):
            ceiling.problem = event.message  # a figure less, and no reason for a banner

    def _check_ceiling(self) -> None:
        """Doubt a ceiling that a whole text has exceeded."""
        if (self.of_ceiling or 0.0) > 1.0:
            self.ceiling.doubted = True

    def _end(self, event: Finished) -> None:
        super()._end(event)
        self._check_ceiling()
