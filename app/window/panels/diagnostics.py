"""Versions, hardware, folders and the last errors, to read and to copy into a report."""

from __future__ import annotations

import imgui

from app.window import clipboard, fonts, widgets
from app.window.theme import px
from app.window.ui import Ui, overlay


class DiagnosticsDialog:
    """Gathers the report when it is opened."""

    def __init__(self) -> None:
        self._report: str | None = None

    def open(self, ui: Ui) -> None:
        """Show the dialog; the report is put together off the frame."""
        from app import diagnostics

        self._report = None
        ui.overlay = "diagnostics"
        ui.session.background.submit(
            "diagnostics", diagnostics.report, self._take, lambda e: self._take(f"failed: {e}")
        )

    def _take(self, report: str) -> None:
        self._report = report

    def draw(self, ui: Ui) -> None:
        with overlay(ui, "diagnostics", "Diagnostics", 760, 560) as is_open:
            if not is_open:
                return
            report = self._report
            if report is None:
                widgets.small("Looking ...")
                return
            if widgets.button("Copy", px(96)):
                clipboard.current().set(report)
                ui.say("diagnostics copied")
            ui.mark("diagnostics.copy")
            imgui.same_line()
            widgets.small("For a bug report. Read it before you send it.")
            with (
                widgets.child("report", 0, 0, padding=(12, 8), background="bg"),
                fonts.use("mono"),
            ):
                for line in report.splitlines():
                    imgui.text_wrapped(fonts.show(line))
