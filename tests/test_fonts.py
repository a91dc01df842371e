"""The fonts that the program ships: what they cover, and that their licences lie beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.window.font_files import FontFile

FONTS = Path(__file__).parents[1] / "assets" / "fonts"
FILES = sorted([*FONTS.rglob("*.ttf"), *FONTS.rglob("*.otf")])

SCRIPTS = {
    "Latin": [*range(0x20, 0x7F), *range(0xA0, 0x132), *range(0x134, 0x149), *range(0x14A, 0x180)],
    "Greek": [c for c in range(0x384, 0x3CF) if c not in (0x38B, 0x38D, 0x3A2)],
    "Cyrillic": [c for c in range(0x401, 0x460) if c not in (0x40D, 0x450, 0x45D)],
    "punctuation": [
        0x2010,
        0x2013,
        0x2014,
        *range(0x2018, 0x201B),
        *range(0x201C, 0x201F),
        0x2022,
        0x2026,
        0x2039,
        0x203A,
    ],
}


def test_there_is_a_proportional_and_a_monospaced_family() -> None:
    assert {"inter", "jetbrains-mono"} <= {font.parent.name for font in FILES}


@pytest.mark.parametrize("font", FILES, ids=lambda font: font.name)
def test_a_font_covers_the_promised_scripts(font: Path) -> None:
    face = FontFile(font)
    missing = {
        script: [f"U+{code:04X}" for code in codes if not face.covers(code)]
        for script, codes in SCRIPTS.items()
    }
    assert not any(missing.values()), missing


@pytest.mark.parametrize("font", FILES, ids=lambda font: font.name)
def test_a_font_has_its_licence_and_is_listed(font: Path) -> None:
    licence = (font.parent / "OFL.txt").read_text(encoding="utf-8")
    assert licence.startswith("Copyright") and "SIL OPEN FONT LICENSE Version 1.1" in licence
    assert f"`{font.name}`" in (FONTS / "README.md").read_text(encoding="utf-8")
    notices = (FONTS.parents[1] / "THIRD_PARTY_NOTICES.md").read_text(encoding="utf-8")
    assert f"`assets/fonts/{font.parent.name}`" in notices


@pytest.mark.parametrize("font", FILES, ids=lambda font: font.name)
def test_imgui_draws_it(font: Path) -> None:
    """The rasteriser takes the outlines, TrueType or CFF: glyphs leave ink in the atlas."""
    imgui = pytest.importorskip("imgui")
    context = imgui.create_context()
    try:
        atlas = imgui.get_io().fonts
        ranges = imgui.core.GlyphRanges([0x41, 0x5A, 0x410, 0x42F, 0])
        handle = atlas.add_font_from_file_ttf(str(font), 18, None, ranges)
        width, height, pixels = atlas.get_tex_data_as_alpha8()
        assert handle is not None
        ink = sum(1 for value in pixels if value) / (width * height)
        assert ink > 0.02
    finally:
        imgui.destroy_context(context)
