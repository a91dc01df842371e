"""From the worker's thread to an event loop: a job's events without a thread for each request.

The worker's thread says that a job has news; one call wakes the loop for all jobs that had any
since it last looked. What came meanwhile is handed over in one batch, so a fast text costs the
loop no more than it can take. Nothing here cancels a job: who gives up reading may still want the
text, or calls `Job.cancel`.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterator

from engine.events import TERMINAL, Event
from engine.job import Job

_Loop = asyncio.AbstractEventLoop


class _Waker:
    """Sets asyncio events of one loop from other threads, many in one call."""

    def __init__(self, loop: _Loop) -> None:
        self._loop = weakref.ref(loop)  # the loop is this object's key
        self._due: deque[asyncio.Event] = deque()  # both ends are atomic
        self._called = False

    def wake(self, news: asyncio.Event) -> None:
        """Have `news` set soon. Any thread."""
        self._due.append(news)
        if self._called:
            return
        self._called = True
        loop = self._loop()
        try:
            if loop is not None:
                loop.call_soon_threadsafe(self._set)
        except RuntimeError:  # the loop is closed: nobody reads any more
            self._due.clear()

    def _set(self) -> None:
        self._called = False  # first, so that what is added from now on calls again
        while self._due:
            self._due.popleft().set()


_wakers: weakref.WeakKeyDictionary[_Loop, _Waker] = weakref.WeakKeyDictionary()


def _news(job: Job, *, at_end: bool) -> asyncio.Event:
    """An event of the running loop that is set when the job has something to say."""
    loop = asyncio.get_running_loop()
    waker = _wakers.setdefault(loop, _Waker(loop))
    news = asyncio.Event()
    job.listen(lambda: waker.wake(news), at_end=at_end)
    return news


async def events_of(job: Job, *, pause_s: float = 0.0) -> AsyncIterator[list[Event]]:
    """The job's events as they come, in batches, none empty; the last one ends the last batch.

    After a batch the next one is at least `pause_s` seconds away, so that a fast text comes in
    fewer and larger ones. A job has one reader at a time.
    """
    news = _news(job, at_end=False)
    try:
        while True:
            news.clear()  # before looking, so that nothing is missed
            over = job.done
            batch = job.drain()
            if batch:
                yield batch
            if over or (batch and isinstance(batch[-1], TERMINAL)):
                return
            if not batch:
                await news.wait()
            elif pause_s:
                await asyncio.sleep(pause_s)
    finally:
        job.listen(None)


async def all_events_of(job: Job) -> list[Event]:
    """All events that nobody has read yet, when the job has ended.

    The loop is woken only once, so this is what a request that does not stream should use.
    """
    news = _news(job, at_end=True)
    try:
        if not job.done:
            await news.wait()
        return job.drain()
    finally:
        job.listen(None)
