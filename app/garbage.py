"""Keeps the garbage collector away from what stays for good.

A full collection looks at every object: with the libraries of a server and a model in memory that
stops all threads for 0.15 to 0.19 s (measured), again and again while requests come and go. What
lives as long as the program need not be looked at.
"""

from __future__ import annotations

import gc


def settle() -> None:
    """Clear away what is garbage now and leave the rest out of later collections.

    To be called when a model has been loaded. What was set aside before is looked at again, so
    that a model which was replaced goes.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
