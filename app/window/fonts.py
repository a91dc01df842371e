"""The fonts of the window: roles, sizes, and characters added when a text needs them.

The atlas starts with Latin, Greek, Cyrillic, punctuation and arrows. Text that needs more is
announced with `show` or `FontSet.need`; a thread looks for system fonts that have it, and the
window rebuilds the atlas between two frames. What no font has is shown as a box.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imgui

from app.window import font_files

log = logging.getLogger(__name__)

FONTS_FOLDER = Path(__file__).resolve().parents[2] / "assets" / "fonts"
UI_FAMILY, MONO_FAMILY = "Inter", "JetBrains Mono"
DEFAULT_TEXT_FAMILY, DEFAULT_TEXT_SIZE = UI_FAMILY, 19.0
MIN_TEXT_SIZE, MAX_TEXT_SIZE = 10.0, 48.0
BOX = "\u25a1"

BASE_RANGES = (
    (0x0020, 0x02FF),  # Latin, phonetic extensions, modifiers
    (0x0300, 0x036F),  # combining marks
    (0x0370, 0x052F),  # Greek, Cyrillic
    (0x1E00, 0x1EFF),  # Latin extended additional
    (0x2000, 0x206F),  # punctuation
    (0x20A0, 0x20BF),  # currency
    (0x2100, 0x214F),  # letterlike
    (0x2190, 0x21FF),  # arrows
    (0x2200, 0x22FF),  # mathematical operators
    (0x25A0, 0x25FF),  # geometric shapes
    (0x2713, 0x2717),  # ticks and crosses
    (0xFFFD, 0xFFFD),
)
_BASIC_LATIN = ((0x0020, 0x00FF), (0x2000, 0x206F), (0x2190, 0x2193), (0x25A0, 0x25A1))


@dataclass(frozen=True)
class Role:
    """What a font is for. `family` None is the one the user chose; `size` in pixels at scale 1."""

    family: str | None
    weight: str
    size: float
    complete: bool = True  # draws any text, not only the program's own words


ROLES: dict[str, Role] = {
    "ui": Role(UI_FAMILY, "Regular", 16.0),
    "ui_bold": Role(UI_FAMILY, "SemiBold", 16.0),
    "small": Role(UI_FAMILY, "Regular", 14.0),
    "caption": Role(UI_FAMILY, "SemiBold", 12.5, complete=False),
    "text": Role(None, "Regular", 0.0),
    "mono": Role(MONO_FAMILY, "Regular", 14.0),
    "hero": Role(MONO_FAMILY, "Regular", 28.0, complete=False),
}
_WEIGHTS = {
    "SemiBold": ("SemiBold", "Semi Bold", "DemiBold", "Bold", "Medium"),
    "Regular": ("Regular", "Book", "Roman", "Normal"),
}
_INVISIBLE = frozenset(
    [0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF, 0x00AD, *range(0xFE00, 0xFE10)]
    + list(range(0x200E, 0x2010))
    + list(range(0x202A, 0x202F))
    + list(range(0x2066, 0x206A))
    + list(range(0xE0100, 0xE01F0))
)


class FontSet:
    """All fonts of one Dear ImGui context.

    Call `build` outside a frame, then refresh the renderer's texture. `dirty` says that a rebuild
    would add characters; `generation` counts builds, for caches of widths.
    """

    def __init__(
        self,
        text_family: str = DEFAULT_TEXT_FAMILY,
        text_size: float = DEFAULT_TEXT_SIZE,
        folder: Path = FONTS_FOLDER,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self.generation = 0
        self.scale = 1.0
        self._folder = folder
        self._families = font_files.families(folder)
        self._text_family = text_family
        self._text_size = text_size
        self._on_ready = on_ready
        self._fonts: dict[str, Any] = {}
        self._ranges: list[Any] = []  # Dear ImGui reads them until the atlas is built
        self._advances: dict[str, Advances] = {}
        self._known: set[int] = set()  # in the atlas of every complete role
        self._wanted: set[int] = set()
        self._extra: set[int] = set()  # of the program's own fonts, beyond BASE_RANGES
        self._fallbacks: dict[Path, set[int]] = {}
        self._hopeless: set[int] = set()
        self._lock = threading.Lock()
        self._search: threading.Thread | None = None
        self._rebuild = True

    @property
    def families(self) -> list[str]:
        """Names of the families a user can choose for the text."""
        return sorted(self._families) or [DEFAULT_TEXT_FAMILY]

    @property
    def text_family(self) -> str:
        return self._text_family

    @property
    def text_size(self) -> float:
        """Size of the text role in pixels at scale 1."""
        return self._text_size

    def choose(self, family: str, size: float) -> None:
        """Set the text's family and size; takes effect with the next build."""
        size = min(max(size, MIN_TEXT_SIZE), MAX_TEXT_SIZE)
        if (family, size) != (self._text_family, self._text_size):
            self._text_family, self._text_size = family, size
            self._rebuild = True

    @property
    def dirty(self) -> bool:
        """A build would change something."""
        return self._rebuild

    # -- building ---------------------------------------------------------------------------

    def build(self, scale: float = 1.0, framebuffer_scale: float = 1.0) -> None:
        """Fill the current context's atlas for `scale` (content scale times zoom).

        `framebuffer_scale` is framebuffer pixels per window unit (2 on a Mac's display): glyphs
        are drawn that much larger and scaled back, so that they stay sharp.
        """
        io = imgui.get_io()
        atlas = io.fonts
        atlas.clear()
        io.font_global_scale = 1.0 / framebuffer_scale
        # Glyphs of large fonts fill a square atlas better than a tall one.
        atlas.texture_desired_width = 2048 if scale * framebuffer_scale > 1.25 else 1024
        self._fonts, self._ranges, self._advances = {}, [], {}
        self._known = set()
        self.scale = scale
        with self._lock:
            self._rebuild = False
            for role_name, role in ROLES.items():
                self._add_role(atlas, role_name, role, scale * framebuffer_scale)
        self.generation += 1

    def _add_role(self, atlas: Any, name: str, role: Role, scale: float) -> None:
        path = self.path(role.family or self._text_family, role.weight)
        size = float(max(6, round((role.size or self._text_size) * scale)))
        if path is None:
            self._fonts[name] = atlas.add_font_default()
            self._known |= set(range(0x20, 0x100))
            return
        own = font_files.face(path)
        ranges = list(BASE_RANGES if role.complete else _BASIC_LATIN)
        if role.complete:
            ranges += font_files.to_ranges(self._extra)
        mono = role.family == MONO_FAMILY
        config = imgui.FontConfig(
            oversample_h=1 if mono else (3 if size < 24 else 2), pixel_snap_h=mono
        )
        try:
            self._fonts[name] = atlas.add_font_from_file_ttf(
                str(path), size, config, self._glyphs(ranges)
            )
        except imgui.ImGuiError as error:
            log.error("The font %s could not be loaded: %s", path, error)
            self._fonts[name] = atlas.add_font_default()
            return
        if not role.complete:
            return
        lacking = {c for first, last in ranges for c in range(first, last + 1)}
        here = {c for c in lacking if own.covers(c)}
        self._known = self._known & here if self._known else here
        lacking -= here
        for other, codes in self._merged_fonts(path, lacking):
            merge = imgui.FontConfig(merge_mode=True, oversample_h=1)
            atlas.add_font_from_file_ttf(
                str(other), size, merge, self._glyphs(font_files.to_ranges(codes))
            )
        for codes in self._fallbacks.values():
            self._known |= codes

    def _merged_fonts(self, path: Path, lacking: set[int]) -> list[tuple[Path, set[int]]]:
        """Fonts that complete one role: the program's own others, then the system's."""
        merged: list[tuple[Path, set[int]]] = []
        for family in (UI_FAMILY, MONO_FAMILY):
            other = self.path(family, "Regular")
            if other is None or other == path:
                continue
            font = font_files.face(other)
            codes = {c for c in lacking if font.covers(c)}
            if codes:
                merged.append((other, codes))
                lacking = lacking - codes
                self._known |= codes
        merged += [(other, set(codes)) for other, codes in self._fallbacks.items()]
        return merged

    def _glyphs(self, ranges: list[tuple[int, int]]) -> Any:
        glyphs = imgui.GlyphRanges([bound for pair in ranges for bound in pair] + [0])
        self._ranges.append(glyphs)
        return glyphs

    def path(self, family: str, weight: str = "Regular") -> Path | None:
        """The file of a family in the nearest weight there is; the UI family for unknown ones."""
        styles = self._families.get(family) or self._families.get(UI_FAMILY)
        if not styles:
            styles = next(iter(self._families.values()), None)
            if not styles:
                return None
        for style in (*_WEIGHTS.get(weight, (weight,)), *_WEIGHTS["Regular"]):
            if style in styles:
                return styles[style]
        return next(iter(styles.values()))

    # -- use ---------------------------------------------------------------------------------

    def get(self, role: str) -> Any:
        """The font of a role, for `imgui.push_font`; KeyError for an unknown role."""
        return self._fonts[role]

    def advances(self, role: str) -> Advances:
        """Widths of single characters in a role, measured once each (inside a frame)."""
        if role not in self._advances:
            self._advances[role] = Advances(self, role)
        return self._advances[role]

    def need(self, text: str) -> None:
        """Announce text about to be shown; what the atlas lacks is looked for."""
        if text.isascii():
            return
        codes = {ord(c) for c in set(text)} - self._known
        codes = {c for c in codes if c >= 0x20 and c not in _INVISIBLE}
        if not codes:
            return
        with self._lock:
            codes -= self._hopeless
            for held in self._fallbacks.values():
                codes -= held
            codes -= self._extra | self._wanted
            if not codes:
                return
            self._wanted |= codes
            if self._search is None or not self._search.is_alive():
                self._search = threading.Thread(target=self._find, name="fonts", daemon=True)
                self._search.start()

    def _find(self) -> None:
        """Thread: find fonts for the wanted characters, then ask for a rebuild."""
        while True:
            with self._lock:
                codes = set(self._wanted)
                if not codes:
                    self._search = None
                    return
            own = [p for family in self._families for p in [self.path(family)] if p]
            ours = {c for c in codes if any(font_files.face(p).covers(c) for p in own)}
            found = font_files.find_fallbacks(codes - ours)
            with self._lock:
                self._wanted -= codes
                self._extra |= ours
                for path, covered in found.items():
                    self._fallbacks.setdefault(path, set()).update(covered)
                gone = codes - ours - {c for covered in found.values() for c in covered}
                self._hopeless |= gone
                changed = gone != codes
                self._rebuild = self._rebuild or changed
            if changed:
                self._on_ready()

    def wait(self, timeout: float = 10.0) -> None:
        """Wait until the search for characters is over (tests and screenshots)."""
        search = self._search
        if search is not None:
            search.join(timeout)

    def drawable(self, text: str) -> str:
        """`text` with a box for each character the atlas lacks, without invisible characters."""
        if text.isascii():
            return text
        known = self._known
        codes = {ord(c) for c in set(text)} - known
        if not codes:
            return text
        return text.translate({c: "" if c in _INVISIBLE else BOX for c in codes if c >= 0x20})


class Advances(dict[str, float]):
    """Character to its width in window units; measured on first use, inside a frame."""

    def __init__(self, fonts: FontSet, role: str) -> None:
        super().__init__()
        self._fonts_set = fonts
        self._role = role
        self.generation = fonts.generation

    def __missing__(self, character: str) -> float:
        shown = self._fonts_set.drawable(character)
        width = 0.0
        if shown and shown not in "\r\n":
            # Dear ImGui rounds a text's width up to a whole number, so measure many at once.
            with imgui.font(self._fonts_set.get(self._role)):
                width = (imgui.calc_text_size(shown * 1000).x - 0.5) / 1000
            if abs(width - round(width)) < 0.001:
                width = float(round(width))
        self[character] = width
        return width


_current: FontSet | None = None


def set_current(fonts: FontSet | None) -> None:
    """Make `fonts` the set that `use` and the widgets take."""
    global _current
    _current = fonts


def current() -> FontSet:
    """The font set in force; RuntimeError before the window or a test has set one."""
    if _current is None:
        raise RuntimeError("no fonts yet: call fonts.set_current first")
    return _current


def use(role: str) -> AbstractContextManager[Any]:
    """`with fonts.use("mono"):` draws in that role's font."""
    if _current is None:
        return nullcontext()
    context: AbstractContextManager[Any] = imgui.font(_current.get(role))
    return context


def show(text: str) -> str:
    """User text fit to be handed to a widget: announced, and boxes for what cannot be drawn."""
    if text.isascii() or _current is None:
        return text
    _current.need(text)
    return _current.drawable(text)
