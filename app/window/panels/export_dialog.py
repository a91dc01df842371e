"""Where to write the text, and as what; never over an existing file unasked."""

from __future__ import annotations

from pathlib import Path

import imgui

from app.window import export, inputs, widgets
from app.window.clipboard import clean_text
from app.window.export import FileExistsAlreadyError
from app.window.records import Output
from app.window.theme import px
from app.window.ui import Ui, overlay
from engine.errors import EngineError

_FORMATS = (".txt: the text", ".json: text, settings, seed, timings and records")


class ExportDialog:
    """The path typed so far and what came of it."""

    def __init__(self) -> None:
        self._output = Output()
        self._path = ""
        self._serial = 0  # a focused field ignores changes by the program: a new name renews it
        self._suffix = ".txt"
        self._error = ""
        self._may_replace = False
        self._busy = False

    def open(self, ui: Ui) -> None:
        """Show the dialog for the text in the output view."""
        self._output = ui.state.output
        self._error, self._may_replace, self._busy = "", False, False
        self._suggest(ui)
        ui.overlay = "export"

    def _suggest(self, ui: Ui) -> None:
        output, suffix = self._output, self._suffix

        def suggested(path: Path) -> None:
            self._path = str(path)
            self._serial += 1

        ui.session.background.submit(
            "export path", lambda: export.default_path(output, suffix), suggested, self._failed
        )

    def draw(self, ui: Ui) -> None:
        with overlay(ui, "export", "Export the text", 620) as is_open:
            if not is_open:
                return
            with widgets.item_width(-1):
                index = export.FORMATS.index(self._suffix)
                changed, index = widgets.combo("Format", _FORMATS, index)
                if changed:
                    self._change_suffix(ui, export.FORMATS[index])
                ui.mark("export.format")
                widgets.label("File")
                path = imgui.input_text(f"##file{self._serial}", self._path, 4096)[1]
                ui.mark("export.path")
            if clean_text(path) != self._path:
                self._path, self._may_replace, self._error = clean_text(path), False, ""
            if self._error:
                widgets.small(self._error, "bad")
            imgui.dummy(0, px(4))
            label = "Replace the file" if self._may_replace else "Export"
            reason = None if self._path.strip() and not self._busy else "Type a file name first."
            with widgets.disabled(reason):
                pressed = widgets.primary_button(label, px(160), px(36))
            ui.mark("export.write")
            entered = inputs.current().take(inputs.KEY_ENTER)
            if (entered or pressed) and reason is None:
                self._write(ui)

    def _change_suffix(self, ui: Ui, suffix: str) -> None:
        before, self._suffix = self._suffix, suffix
        self._may_replace = False
        if self._path.endswith(before):
            self._path = self._path.removesuffix(before) + suffix
            self._serial += 1
        elif not self._path:
            self._suggest(ui)

    def _write(self, ui: Ui) -> None:
        path, output, suffix = Path(self._path.strip()), self._output, self._suffix
        if path.suffix.lower() in export.FORMATS:
            suffix = path.suffix.lower()
        overwrite, self._busy = self._may_replace, True
        text_of = ui.session.token_text if ui.session.tokens_known else None

        def written(path: Path) -> None:
            ui.say(f"written: {path.name}", 6.0)
            if ui.overlay == "export":
                ui.overlay = ""

        ui.session.background.submit(
            "export",
            lambda: export.write(path, export.render(output, suffix, text_of), overwrite=overwrite),
            written,
            self._failed,
        )

    def _failed(self, error: Exception) -> None:
        self._busy = False
        self._error = str(error) if isinstance(error, EngineError) else f"failed: {error}"
        self._may_replace = isinstance(error, FileExistsAlreadyError)
