"""The prompt and the text shown: typed at, replaced, taken back and edited. Part of `AppState`."""

from __future__ import annotations

import time
from collections.abc import Callable

from app.window.intents import KeepText
from app.window.model_state import ModelState
from app.window.records import Output
from app.window.text_buffer import Change
from app.window.timeline import Step, Timeline, difference, done, undone
from engine.config import LoadConfig


class DocumentState(ModelState):
    """Prompt, output, and the steps between what they were and what they are."""

    def __init__(
        self,
        *,
        selection: LoadConfig | None = None,
        prompt: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(selection=selection, clock=clock)
        self.prompt = prompt
        self.prompt_version = 0  # changes whenever the program, not the user, sets the prompt
        self.prompt_caret: int | None = None  # where the program's change ended; None: at the end
        self.output = Output()
        self.output_version = 0  # changes when the output is another text, not when it grows
        self.timeline = Timeline()
        self.editing: str | None = None  # the new text while it is edited in place
        self._awaits: Step | None = None  # a step that the next output belongs to

    def edit_prompt(self, text: str, step: int | None = None) -> None:
        """The user changed the prompt. `step` numbers the editor's steps of undo."""
        if text != self.prompt:
            self.timeline.type(self.prompt, text, self.output, step)
            self.prompt = text

    def set_prompt(self, text: str) -> None:
        """The program replaces the prompt; the editor takes it over."""
        if text != self.prompt:
            self.timeline.push(Step(difference(self.prompt, text), self.output, self.output))
        self._show_prompt(text)

    def set_output(self, output: Output) -> None:
        """Show another text, as a step of its own or as part of the one that waited for it."""
        self.finish_edit()
        step, self._awaits = self._awaits, None
        if step is not None and step is self.timeline.last:
            step.after = output
        elif output is not self.output:
            self.timeline.push(Step(None, self.output, output))
        self._show_output(output)

    def set_both(self, prompt: str, output: Output) -> None:
        """Show another text with its prompt, as one step."""
        self.finish_edit()
        change = difference(self.prompt, prompt) if prompt != self.prompt else None
        self._awaits = None
        self.timeline.push(Step(change, self.output, output))
        self._show_output(output)
        self._show_prompt(prompt)

    def await_output(self, prompt: str) -> None:
        """Replace the prompt, as one step with the output that is about to come."""
        before = self.timeline.last
        self.set_prompt(prompt)
        last = self.timeline.last
        self._awaits = last if last is not before else None

    def undo(self) -> bool:
        """Take the last step back; False if there is none."""
        self.finish_edit()
        step = self.timeline.undo()
        if step is None:
            return False
        self._awaits = None
        if step.prompt is not None:
            self._show_prompt(undone(self.prompt, step.prompt), step.prompt.reversed())
        if step.before is not step.after:
            self._show_output(step.before)
        return True

    def redo(self) -> bool:
        """Take the last undone step again; False if there is none."""
        self.finish_edit()
        step = self.timeline.redo()
        if step is None:
            return False
        if step.prompt is not None:
            self._show_prompt(done(self.prompt, step.prompt), step.prompt)
        if step.before is not step.after:
            self._show_output(step.after)
        return True

    # Editing in place: what stands between the prompt and the end of the text

    def begin_edit(self) -> bool:
        """Let the user change the text; False where there is none."""
        if not self.output.full_text:
            return False
        if self.editing is None:
            self.editing = self.output.text
        return True

    def finish_edit(self) -> bool:
        """Take the edited text over, as a step and for the history; False where nothing changed."""
        edited = self._take_edit()
        if edited is None:
            return False
        self.set_output(edited)
        self._intents.append(KeepText(edited))
        return True

    def give_up_edit(self) -> bool:
        """Back to the text as it was; redo brings the edited one again. False where it is alike."""
        edited = self._take_edit()
        if edited is None:
            return False
        self.set_output(edited)
        return DocumentState.undo(self)

    def _take_edit(self) -> Output | None:
        text, self.editing = self.editing, None
        if text is None or text == self.output.text:
            return None
        before = self.output
        return Output(prompt=before.prompt, text=text, reason="edited", edited_from=before)

    def _show_prompt(self, text: str, change: Change | None = None) -> None:
        self.prompt = text
        self.prompt_caret = change.start + len(change.inserted) if change else None
        self.prompt_version += 1

    def _show_output(self, output: Output) -> None:
        self.output = output
        self.output_version += 1
