"""The built-in pages: `/` to try a prompt, `/docs` to try the API.

They load nothing from elsewhere. FastAPI's own documentation page would fetch its scripts from the
internet, which this program does not.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from starlette.responses import Response

_FOLDER = Path(__file__).parent
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def page(name: str) -> Response:
    """A page of this folder; its own script is the only one that may run in it."""
    html, policy = _read(name)
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
    }
    return Response(html, media_type="text/html", headers=headers)


@cache
def _read(name: str) -> tuple[str, str]:
    html = (_FOLDER / name).read_text(encoding="utf-8")
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in _SCRIPT.findall(html)
    )
    return html, (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )
