"""Numbers as a person reads them: seconds, counts, rates (bytes: `engine.memory`)."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """0.0123 -> `12 ms`, 3.21 -> `3.2 s`, 75 -> `1 min 15 s`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.1f} ms" if seconds < 0.00995 else f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def count(number: int) -> str:
    """12345 -> `12,345`."""
    return f"{number:,}"


def parameters(number: int) -> str:
    """124439808 -> `124M`, 1557611200 -> `1.56B`."""
    if number >= 999_500_000:
        return f"{number / 1e9:.2f}B"
    if number >= 9_950_000:
        return f"{number / 1e6:.0f}M"
    if number >= 999_500:
        return f"{number / 1e6:.1f}M"
    return f"{number / 1e3:.0f}k" if number >= 1000 else str(number)


def rate(tokens_per_s: float) -> str:
    """Tokens per second with a fixed number of significant places: `151.8`, `9.42`, `-`."""
    if tokens_per_s <= 0:
        return "-"
    if tokens_per_s >= 1000:
        return f"{tokens_per_s:,.0f}"
    return f"{tokens_per_s:.1f}" if tokens_per_s >= 10 else f"{tokens_per_s:.2f}"


def plural(number: int, word: str) -> str:
    """1 `token`, 2 `tokens`."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def sentence(text: str) -> str:
    """An error's or a warning's line with a capital at its beginning."""
    return text[:1].upper() + text[1:]
