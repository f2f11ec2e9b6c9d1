"""The queue: bounded, fair between keys, left by whoever is cancelled, empty when all is over."""

from __future__ import annotations

import asyncio
import random

import pytest

from steerlm.server.admission import Admission, Ticket
from steerlm.server.refusals import RefusedError


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def enter(admission: Admission, key: str, sequences: int = 1) -> asyncio.Task[Ticket]:
    return asyncio.ensure_future(admission.enter(key, sequences))


def assert_free(admission: Admission) -> None:
    assert (admission.running, admission.waiting) == (0, 0)


def test_no_more_run_than_may_and_the_oldest_is_next() -> None:
    async def scene() -> None:
        admission = Admission(running=2, waiting=10)
        tasks = [enter(admission, "a") for _ in range(5)]
        await settle()
        assert [task.done() for task in tasks] == [True, True, False, False, False]
        assert (admission.running, admission.waiting) == (2, 3)
        tasks[1].result().leave()
        await settle()
        assert [task.done() for task in tasks] == [True, True, True, False, False]
        for task in (tasks[0], tasks[2]):
            task.result().leave()
        await settle()
        for task in tasks[3:]:
            task.result().leave()
            task.result().leave()
        assert_free(admission)

    asyncio.run(scene())


def test_a_request_counts_by_its_sequences_and_gives_them_back_one_by_one() -> None:
    async def scene() -> None:
        admission = Admission(running=8, waiting=8)
        wide = await admission.enter("a", 6)
        second = enter(admission, "a", 4)
        await settle()
        assert not second.done()
        wide.leave(1)
        await settle()
        assert not second.done()
        wide.leave(1)
        assert (await second).sequences == 4
        assert admission.running == 8
        wide.leave(99)
        second.result().leave()
        assert_free(admission)
        with pytest.raises(RefusedError, match="9 answers in one request") as caught:
            await admission.enter("a", 9)
        assert caught.value.status == 400

    asyncio.run(scene())


def test_the_key_with_the_least_running_is_next() -> None:
    async def scene() -> None:
        admission = Admission(running=4, waiting=100)
        greedy = [enter(admission, "greedy") for _ in range(20)]
        await settle()
        modest = enter(admission, "modest")
        await settle()
        assert not modest.done()
        greedy[0].result().leave()
        await settle()
        assert modest.done()
        assert sum(task.done() for task in greedy) == 4

    asyncio.run(scene())


def test_a_wide_request_is_not_overtaken_by_narrow_ones() -> None:
    async def scene() -> None:
        admission = Admission(running=4, waiting=100)
        running = [await admission.enter("a", 1) for _ in range(4)]
        wide = enter(admission, "b", 4)
        await settle()
        narrow = [enter(admission, "a", 1) for _ in range(4)]
        for ticket in running:
            await settle()
            assert not wide.done()
            ticket.leave()
        await settle()
        assert wide.done()
        assert not any(task.done() for task in narrow)

    asyncio.run(scene())


def test_a_full_queue_refuses_with_the_time_that_it_takes() -> None:
    now = [0.0]

    async def scene() -> None:
        admission = Admission(running=1, waiting=4, clock=lambda: now[0])
        ticket = await admission.enter("a", 1)
        tasks = [enter(admission, "a") for _ in range(4)]
        await settle()
        for _ in range(3):
            now[0] += 5.0
            ticket.leave()
            await settle()
            ticket = next(task for task in tasks if task.done()).result()
            tasks = [task for task in tasks if not task.done()] + [enter(admission, "a")]
            await settle()
        with pytest.raises(RefusedError, match="the server is busy") as caught:
            await admission.enter("a", 1)
        assert caught.value.status == 429
        # Three ended in the ten seconds since the first of them did.
        assert caught.value.headers["retry-after"] == "4"

    asyncio.run(scene())


def test_who_fills_the_queue_gives_way() -> None:
    async def scene() -> None:
        admission = Admission(running=1, waiting=4)
        await admission.enter("greedy", 1)
        greedy = [enter(admission, "greedy") for _ in range(4)]
        await settle()
        modest = [enter(admission, "modest") for _ in range(2)]
        await settle()
        assert [task.done() for task in greedy] == [False, False, True, True]
        assert all(isinstance(task.exception(), RefusedError) for task in greedy[2:])
        assert not any(task.done() for task in modest)
        third = enter(admission, "modest")
        await settle()
        assert isinstance(third.exception(), RefusedError)
        assert admission.waiting == 4

    asyncio.run(scene())


def test_the_cancelled_leave_the_queue_and_make_way() -> None:
    async def scene() -> None:
        admission = Admission(running=2, waiting=10)
        ticket = await admission.enter("a", 1)
        wide, narrow = enter(admission, "a", 2), enter(admission, "a", 1)
        await settle()
        assert not narrow.done()
        wide.cancel()
        await settle()
        assert narrow.done()
        assert admission.waiting == 0
        # Cancelled in the very moment in which its turn has come.
        late = enter(admission, "a", 1)
        await settle()
        ticket.leave()
        late.cancel()
        await settle()
        narrow.result().leave()
        assert_free(admission)

    asyncio.run(scene())


def test_whatever_happens_nothing_is_lost() -> None:
    """Random arrivals, cancellations and ends; the bounds hold throughout, and all is free at the end."""

    async def client(admission: Admission, generator: random.Random, served: list[int]) -> None:
        sequences = generator.randint(1, 6)
        ticket = await admission.enter(generator.choice("abc"), sequences)
        try:
            assert admission.running <= 8
            for _ in range(sequences):
                await asyncio.sleep(generator.random() / 500)
                ticket.leave(1)
        finally:
            ticket.leave()
        served.append(sequences)

    async def scene() -> None:
        generator = random.Random(5)
        admission = Admission(running=8, waiting=40)
        served: list[int] = []
        tasks = []
        for _ in range(400):
            tasks.append(asyncio.ensure_future(client(admission, generator, served)))
            if generator.random() < 0.3:
                generator.choice(tasks).cancel()
            if generator.random() < 0.2:
                await asyncio.sleep(generator.random() / 300)
            assert admission.waiting <= 40
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert_free(admission)
        kinds = {type(end) for end in ends}
        assert kinds == {type(None), RefusedError, asyncio.CancelledError}
        assert len(served) == ends.count(None)

    asyncio.run(scene())


def test_who_waits_without_a_bound_takes_nobodys_place_in_the_queue_and_gives_way_to_nobody() -> None:
    async def scene() -> None:
        admission = Admission(running=1, waiting=1)
        first = await admission.enter("a", 1)
        unbounded = [asyncio.ensure_future(admission.enter("a", 1, bounded=False)) for _ in range(3)]
        await settle()
        waiting = enter(admission, "b")
        await settle()
        assert not any(task.done() for task in (*unbounded, waiting))
        with pytest.raises(RefusedError):
            await admission.enter("b", 1)
        assert admission.waiting == 4
        first.leave()
        for task in (*unbounded, waiting):
            (await task).leave()
        assert_free(admission)

    asyncio.run(scene())
