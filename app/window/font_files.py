"""Reading font files: their names and which characters they cover.

Only the `cmap` and `name` tables are read, with bounds checks by `struct`; a damaged file counts
as covering nothing. Source: the OpenType specification 1.9, chapters `cmap`, `name` and `otff`.
"""

from __future__ import annotations

import bisect
import os
import struct
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

FONT_SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")

# Tried in this order before all others: broad, well hinted, and drawable without colour tables.
_PREFERRED = (
    "notosanscjk",
    "notosansmonocjk",
    "sourcehansans",
    "droidsansfallback",
    "wqy-",
    "unifont",
    "msyh",
    "yugoth",
    "malgun",
    "meiryo",
    "simsun",
    "hiragino",
    "pingfang",
    "applesdgothic",
    "notoemoji",
    "symbola",
    "seguisym",
    "seguiemj",
    "applesymbols",
    "notosanssymbols",
    "dejavusans.",
    "freesans.",
    "notosans-regular",
    "notosans",
)


class FontFile:
    """One face of a font file. OSError or struct.error are turned into empty coverage."""

    def __init__(self, path: Path, number: int = 0) -> None:
        self.path = path
        self.number = number
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.family = ""
        self.style = ""
        self.drawable = False  # has outlines that stb_truetype can draw
        try:
            with path.open("rb") as file:
                self._read(file)
        except (OSError, struct.error, UnicodeDecodeError, ValueError):
            self._starts, self._ends = [], []
            self.drawable = False

    def covers(self, code: int) -> bool:
        """Whether the face maps this code point to a glyph."""
        at = bisect.bisect_right(self._starts, code) - 1
        return at >= 0 and code <= self._ends[at]

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Inclusive ranges of covered code points, ascending."""
        return list(zip(self._starts, self._ends, strict=True))

    def _read(self, file: object) -> None:
        read = _Reader(file)
        start = 0
        if read.at(0, 4) == b"ttcf":
            (count,) = struct.unpack(">I", read.at(8, 4))
            if self.number >= count:
                raise ValueError("no such face")
            (start,) = struct.unpack(">I", read.at(12 + 4 * self.number, 4))
        (count,) = struct.unpack(">H", read.at(start + 4, 2))
        tables: dict[bytes, tuple[int, int]] = {}
        directory = read.at(start + 12, 16 * count)
        for i in range(count):
            tag, _, offset, length = struct.unpack_from(">4sIII", directory, 16 * i)
            tables[tag] = (offset, length)
        self.drawable = b"glyf" in tables or b"CFF " in tables
        if b"name" in tables:
            self._read_names(read.at(*tables[b"name"]))
        if b"cmap" in tables:
            ranges = _merge(_cmap_ranges(read.at(*tables[b"cmap"])))
            self._starts = [first for first, _ in ranges]
            self._ends = [last for _, last in ranges]

    def _read_names(self, table: bytes) -> None:
        _, count, strings = struct.unpack_from(">HHH", table)
        found: dict[int, str] = {}
        for i in range(count):
            platform, encoding, _, name, length, offset = struct.unpack_from(
                ">HHHHHH", table, 6 + 12 * i
            )
            if platform == 3 and encoding in (0, 1, 10) and name in (1, 2, 16, 17):
                raw = table[strings + offset : strings + offset + length]
                found.setdefault(name, raw.decode("utf-16-be"))
        self.family = found.get(16, found.get(1, ""))
        self.style = found.get(17, found.get(2, ""))


class _Reader:
    def __init__(self, file: object) -> None:
        self._file = file

    def at(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)  # type: ignore[attr-defined]
        data: bytes = self._file.read(length)  # type: ignore[attr-defined]
        if len(data) < length:
            raise ValueError("the file ends early")
        return data


def _cmap_ranges(table: bytes) -> Iterator[tuple[int, int]]:
    (count,) = struct.unpack_from(">H", table, 2)
    best: tuple[int, int] | None = None
    for i in range(count):
        platform, encoding, offset = struct.unpack_from(">HHI", table, 4 + 8 * i)
        rank = {(3, 10): 3, (0, 4): 2, (0, 6): 2, (3, 1): 1, (0, 3): 1}.get((platform, encoding))
        if rank is not None and (best is None or rank > best[0]):
            best = (rank, offset)
    if best is None:
        return
    offset = best[1]
    (kind,) = struct.unpack_from(">H", table, offset)
    if kind == 12:
        (groups,) = struct.unpack_from(">I", table, offset + 12)
        for i in range(groups):
            first, last, glyph = struct.unpack_from(">III", table, offset + 16 + 12 * i)
            if first <= last <= 0x10FFFF:
                yield (first if glyph else first + 1), last
    elif kind == 4:
        yield from _format_4(table, offset)


def _format_4(table: bytes, offset: int) -> Iterator[tuple[int, int]]:
    (doubled,) = struct.unpack_from(">H", table, offset + 6)
    segments = doubled // 2
    ends = struct.unpack_from(f">{segments}H", table, offset + 14)
    starts = struct.unpack_from(f">{segments}H", table, offset + 16 + doubled)
    deltas = struct.unpack_from(f">{segments}H", table, offset + 16 + 2 * doubled)
    offsets_at = offset + 16 + 3 * doubled
    offsets = struct.unpack_from(f">{segments}H", table, offsets_at)
    for i, (first, last) in enumerate(zip(starts, ends, strict=True)):
        if first > last or first == 0xFFFF:
            continue
        if offsets[i] == 0:
            # The one code that maps to glyph 0 here is not covered.
            missing = (0x10000 - deltas[i]) & 0xFFFF
            if first <= missing <= last:
                if missing > first:
                    yield first, missing - 1
                if missing < last:
                    yield missing + 1, last
            else:
                yield first, last
            continue
        for code in range(first, last + 1):
            at = offsets_at + 2 * i + offsets[i] + 2 * (code - first)
            if at + 2 <= len(table) and struct.unpack_from(">H", table, at)[0]:
                yield code, code


def _merge(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if first > last:
            continue
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def to_ranges(codes: Iterable[int]) -> list[tuple[int, int]]:
    """Code points as ascending inclusive ranges."""
    return _merge((code, code) for code in codes)


@lru_cache(maxsize=512)
def face(path: Path, number: int = 0) -> FontFile:
    """A font file's face, read once."""
    return FontFile(path, number)


def families(folder: Path) -> dict[str, dict[str, Path]]:
    """Drawable fonts under `folder`: family name to style name (`Regular`, `Bold`) to file."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(_font_paths(folder)):
        font = face(path)
        if font.drawable and font.family:
            found.setdefault(font.family, {}).setdefault(font.style or "Regular", path)
    return found


def _font_paths(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        for name in names:
            if name.lower().endswith(FONT_SUFFIXES):
                yield Path(root) / name


def system_folders() -> list[Path]:
    """Where this operating system keeps its fonts."""
    home = Path.home()
    if sys.platform == "win32":
        windows = Path(os.environ.get("WINDIR", r"C:\Windows"))
        return [windows / "Fonts", home / "AppData/Local/Microsoft/Windows/Fonts"]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share")
    return [Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), data / "fonts"]


@lru_cache(maxsize=1)
def system_paths() -> tuple[Path, ...]:
    """The system's font files, the most useful ones first."""

    def rank(path: Path) -> tuple[int, int, str]:
        name = path.name.lower()
        for i, prefix in enumerate(_PREFERRED):
            if name.startswith(prefix):
                plain = 0 if "regular" in name or "-" not in name else 1
                return i, plain, name
        return len(_PREFERRED), 0, name

    return tuple(sorted((p for f in system_folders() for p in _font_paths(f)), key=rank))


def find_fallbacks(
    codes: Iterable[int], paths: Iterable[Path] | None = None
) -> dict[Path, frozenset[int]]:
    """Which font file draws which of `codes`; codes that no font covers are left out."""
    missing = set(codes)
    found: dict[Path, frozenset[int]] = {}
    for path in system_paths() if paths is None else paths:
        if not missing:
            break
        font = face(path)
        if not font.drawable:
            continue
        here = frozenset(code for code in missing if font.covers(code))
        if here:
            found[path] = here
            missing -= here
    return found
