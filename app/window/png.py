"""Writes a PNG file with the standard library alone."""

from __future__ import annotations

import struct
import zlib


def encode_png(pixels: bytes, width: int, height: int) -> bytes:
    """RGB bytes, bottom row first as OpenGL reads them, as a PNG file."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    stride = 3 * width
    rows = b"".join(
        b"\0" + pixels[row * stride : (row + 1) * stride] for row in reversed(range(height))
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows, 6))
        + chunk(b"IEND", b"")
    )
