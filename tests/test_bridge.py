"""A job's events in an event loop: all of them, in order, without a thread for each reader."""

from __future__ import annotations

import asyncio
import threading

from app.server.bridge import all_events_of, events_of
from engine.events import Cancelled, Event, Prefill
from engine.job import Job

MOST_S = 30


def play(job: Job, count: int) -> threading.Thread:
    """Publishes from another thread, as the worker does, and returns it started."""

    def run() -> None:
        for number in range(count):
            job.put(Prefill(job.id, number, count))
        job.put(Cancelled(job.id))

    thread = threading.Thread(target=run)
    thread.start()
    return thread


async def read(job: Job, pause_s: float = 0.0) -> tuple[list[Event], int]:
    events: list[Event] = []
    batches = 0
    async for batch in events_of(job, pause_s=pause_s):
        assert batch
        events += batch
        batches += 1
    return events, batches


def expected(job: Job, count: int) -> list[Event]:
    return [*(Prefill(job.id, n, count) for n in range(count)), Cancelled(job.id)]


def test_all_events_of_many_jobs_arrive_in_order_beside_each_other() -> None:
    async def main() -> None:
        jobs = [Job(number) for number in range(20)]
        readers = [asyncio.create_task(read(job, 0.001 * (job.id % 3))) for job in jobs]
        await asyncio.sleep(0)
        threads = [play(job, 300) for job in jobs]
        for job, reader in zip(jobs, readers, strict=True):
            events, _ = await asyncio.wait_for(reader, MOST_S)
            assert events == expected(job, 300)
        for thread in threads:
            thread.join()

    asyncio.run(main())


def test_what_came_before_anybody_read_is_one_batch() -> None:
    job = Job(1)
    play(job, 50).join()
    events, batches = asyncio.run(read(job))
    assert (events, batches) == (expected(job, 50), 1)
    assert asyncio.run(read(job)) == ([], 0)  # and a second reader does not wait for ever


def test_a_busy_loop_is_woken_once_for_all_that_came_meanwhile() -> None:
    async def main() -> None:
        job = Job(1)
        reader = asyncio.create_task(read(job))
        await asyncio.sleep(0)
        play(job, 500).join()  # the loop cannot run meanwhile
        events, batches = await asyncio.wait_for(reader, MOST_S)
        assert (events, batches) == (expected(job, 500), 1)

    asyncio.run(main())


def test_who_waits_for_the_end_gets_everything_with_it() -> None:
    async def main() -> None:
        for moment in ("before", "after"):
            job = Job(1)
            if moment == "after":
                play(job, 20).join()
            waiting = asyncio.create_task(all_events_of(job))
            await asyncio.sleep(0)
            if moment == "before":
                play(job, 20)
            assert await asyncio.wait_for(waiting, MOST_S) == expected(job, 20)

    asyncio.run(main())


def test_giving_up_reading_does_not_cancel_the_job_and_another_may_go_on() -> None:
    async def main() -> None:
        job = Job(1)
        reader = asyncio.create_task(read(job))
        await asyncio.sleep(0)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        assert not job.cancelled
        play(job, 3)
        events, _ = await asyncio.wait_for(read(job), MOST_S)
        assert events == expected(job, 3)

    asyncio.run(main())


def test_a_loop_that_is_closed_does_not_harm_the_publisher() -> None:
    job = Job(1)
    loop = asyncio.new_event_loop()
    reader = events_of(job)

    async def first() -> None:
        waiting = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0)
        waiting.cancel()

    waiting = loop.create_task(read(job))
    loop.run_until_complete(first())
    waiting.cancel()
    loop.close()
    job.put(Cancelled(job.id))
    assert job.drain() == [Cancelled(1)]
