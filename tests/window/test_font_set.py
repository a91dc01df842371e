"""Roles and sizes of the window's fonts, and characters that are added on demand."""

from __future__ import annotations

from pathlib import Path

import imgui
import pytest

from app.window import font_files, fonts, theme
from app.window.font_files import FontFile, find_fallbacks, to_ranges
from app.window.fonts import BOX, ROLES, FontSet
from tests.window.headless import HeadlessImgui

INTER = next(fonts.FONTS_FOLDER.rglob("Inter-Regular.*"))


def test_every_role_has_a_font_of_its_size(headless_imgui: HeadlessImgui) -> None:
    sizes: dict[str, float] = {}

    def measure() -> None:
        for role in ROLES:
            with fonts.use(role):
                sizes[role] = imgui.get_font_size()

    headless_imgui.frame(measure)
    assert sizes == {role: float(round(ROLES[role].size or 19.0)) for role in ROLES}
    headless_imgui.rebuild(2.0)
    headless_imgui.frame(measure)
    assert sizes == {role: 2 * (ROLES[role].size or 19.0) for role in ROLES}


def test_widths_add_up_to_what_is_drawn(headless_imgui: HeadlessImgui) -> None:
    text = "The quick brown fox — “naïve” Ωμέγα 0123"

    def measure() -> tuple[float, float]:
        widths = headless_imgui.fonts.advances("text")
        with fonts.use("text"):
            return sum(widths[c] for c in text), imgui.calc_text_size(text).x

    ours, drawn = headless_imgui.frame(measure)
    assert drawn - 1.1 <= ours <= drawn + 0.1


def test_figures_of_the_mono_role_are_equally_wide(headless_imgui: HeadlessImgui) -> None:
    def widths() -> set[float]:
        advances = headless_imgui.fonts.advances("mono")
        return {advances[c] for c in "0123456789 .,"}

    found = headless_imgui.frame(widths)
    assert len(found) == 1 and found.pop() % 1 == pytest.approx(0, abs=1e-6)


def test_the_users_family_and_size_are_held_to_what_there_is(
    headless_imgui: HeadlessImgui,
) -> None:
    own = headless_imgui.fonts
    assert {"Inter", "JetBrains Mono"} <= set(own.families)
    assert not own.dirty
    own.choose("No Such Family", 500.0)
    assert own.dirty and own.text_size == fonts.MAX_TEXT_SIZE
    before = own.generation
    headless_imgui.rebuild()
    assert own.generation == before + 1 and not own.dirty


def test_characters_beyond_the_atlas_are_boxes_until_they_are_found(
    headless_imgui: HeadlessImgui, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(font_files, "system_paths", lambda: ())
    own = headless_imgui.fonts
    ours = next(
        code
        for first, last in FontFile(INTER).ranges
        for code in range(first, last + 1)
        if code > 0x2300 and code not in own._known
    )
    ready: list[int] = []
    own._on_ready = lambda: ready.append(1)
    text = f"x {chr(ours)} \U0001f9ff \u200d"
    assert own.drawable(text) == f"x {BOX} {BOX} "
    own.need(text)
    own.wait()
    assert own.dirty and ready == [1]
    headless_imgui.rebuild()
    assert own.drawable(text) == f"x {chr(ours)} {BOX} "
    own.need(text)  # what nobody has is not looked for again
    own.wait()
    assert not own.dirty and ready == [1]


def test_a_system_font_fills_in(
    headless_imgui: HeadlessImgui, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gentium = next(fonts.FONTS_FOLDER.rglob("Gentium*"))
    only_inter = tmp_path / "fonts"
    only_inter.mkdir()
    (only_inter / "Inter.otf").write_bytes(INTER.read_bytes())
    monkeypatch.setattr(font_files, "system_paths", lambda: (gentium,))
    own = FontSet(folder=only_inter)
    headless_imgui.fonts = own
    fonts.set_current(own)
    headless_imgui.rebuild()
    inter = FontFile(INTER)
    missing = next(
        code
        for first, last in FontFile(gentium).ranges
        for code in range(first, last + 1)
        if code > 0x250 and not inter.covers(code) and code not in fonts._INVISIBLE
    )
    own.need(chr(missing))
    own.wait()
    headless_imgui.rebuild()
    assert own.drawable(chr(missing)) == chr(missing)

    def widths() -> tuple[float, float]:
        advances = own.advances("text")
        with fonts.use("text"):
            unknown = imgui.calc_text_size("\U0001f9ff" * 1000).x / 1000
        return advances[chr(missing)], unknown

    width, unknown = headless_imgui.frame(widths)
    assert width != pytest.approx(unknown)


def test_without_any_font_file_the_window_still_draws(
    headless_imgui: HeadlessImgui, tmp_path: Path
) -> None:
    headless_imgui.fonts = FontSet(folder=tmp_path)
    fonts.set_current(headless_imgui.fonts)
    headless_imgui.rebuild()
    assert headless_imgui.fonts.families == [fonts.DEFAULT_TEXT_FAMILY]
    headless_imgui.frame(lambda: imgui.text(fonts.show("still there")))
    headless_imgui.frame(lambda: imgui.text(fonts.show("still there")))
    assert headless_imgui.vertices > 0


def test_coverage_is_read_from_the_file() -> None:
    inter = FontFile(INTER)
    assert (inter.family, inter.style, inter.drawable) == ("Inter", "Regular", True)
    assert all(inter.covers(ord(c)) for c in "AzÄéΩяЖ—“€")
    assert not inter.covers(0x4E2D) and not inter.covers(0x10FFFF)
    assert to_ranges([5, 3, 4, 9]) == [(3, 5), (9, 9)]


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "missing"])
def test_a_damaged_font_covers_nothing(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "font.ttf"
    whole = INTER.read_bytes()
    contents = {"empty": b"", "cut": whole[:300], "noise": b"\x00\x01\x00\x00" + b"\xff" * 500}
    if damage in contents:
        path.write_bytes(contents[damage])
    font = FontFile(path)
    assert not font.drawable and font.ranges == []
    assert font_files.families(tmp_path) == {}


def test_fallbacks_share_the_work_in_order() -> None:
    gentium = next(fonts.FONTS_FOLDER.rglob("Gentium*"))
    only_gentium = next(
        c
        for first, last in FontFile(gentium).ranges
        for c in range(first, last + 1)
        if not FontFile(INTER).covers(c)
    )
    found = find_fallbacks([65, only_gentium, 0x10FFFE], [INTER, gentium])
    assert found == {INTER: frozenset({65}), gentium: frozenset({only_gentium})}


@pytest.mark.parametrize("name", list(theme.PALETTES))
@pytest.mark.parametrize("surface", ["bg", "panel", "raised"])
def test_text_has_the_contrast_that_wcag_asks(name: str, surface: str) -> None:
    palette = {k: theme.parse(v) for k, v in theme.PALETTES[name].items()}
    for colour in ("text", "dim", "good", "warn", "bad", "info"):
        assert theme.contrast(palette[colour], palette[surface]) >= 4.5, colour
    for filling in ("accent", "accent_hover", "accent_active"):
        assert theme.contrast(palette["accent_text"], palette[filling]) >= 4.5, filling
    assert theme.contrast(palette["accent"], palette[surface]) >= 3.0
    for background in ("selection", "hover"):
        assert theme.contrast(palette["text"], palette[background]) >= 4.5


def test_contrast_is_wcags() -> None:
    black, white = theme.parse("000000"), theme.parse("ffffff")
    assert theme.contrast(black, white) == pytest.approx(21.0)
    assert theme.contrast(theme.parse("767676"), white) == pytest.approx(4.54, abs=0.01)


def test_palettes_have_the_same_names_and_unknown_themes_fall_back(
    headless_imgui: HeadlessImgui,
) -> None:
    assert set(theme.PALETTES["dark"]) == set(theme.PALETTES["light"])
    theme.apply("no such theme", 1.5)
    assert (theme.name(), theme.scale(), theme.px(5)) == ("dark", 1.5, 8.0)
    theme.apply("light")
    assert imgui.get_style().colors[imgui.COLOR_TEXT][:3] == pytest.approx(theme.color("text")[:3])
