"""A model fetched from the hub as a job: its progress and its end as events."""

from __future__ import annotations

import threading
from collections.abc import Callable

from engine.events import Cancelled, Downloaded, Event, Loading
from engine.job import Job, failure


def run_download(job: Job, name: str, publish: Callable[[Job, Event], None]) -> None:
    """Loading ..., then Downloaded, Failed or Cancelled. In the thread that calls it."""
    from engine import catalog
    from engine.download import download

    def progress(done: int, total: int) -> None:
        fraction = done / total if total else None
        publish(job, Loading(job.id, name, "downloading", fraction))

    try:
        download(catalog.find(name), progress, job._cancelled)
    except Exception as error:
        if job.cancelled:
            publish(job, Cancelled(job.id))
        else:
            publish(job, failure(job, error, f"downloading {name}"))
    else:
        publish(job, Downloaded(job.id, name))


def start_download(job: Job, name: str, publish: Callable[[Job, Event], None]) -> None:
    """`run_download` on a thread of its own."""
    threading.Thread(
        target=run_download, args=(job, name, publish), name=f"download-{name}", daemon=True
    ).start()
