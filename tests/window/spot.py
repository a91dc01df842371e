"""Where an item was drawn, for tests that click at it."""

from __future__ import annotations

import imgui

Point = tuple[float, float]


class Spot:
    """Remembers where an item was drawn."""

    def __init__(self) -> None:
        self.left = self.top = self.right = self.bottom = 0.0

    def here(self) -> None:
        self.left, self.top = imgui.get_item_rect_min()
        self.right, self.bottom = imgui.get_item_rect_max()

    @property
    def middle(self) -> Point:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2
