"""Items made in another thread: the same ones in the same order, never far ahead, and no thread left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from steerlm.errors import DataError
from steerlm.training.prefetch import Prefetch


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.mark.parametrize("ahead", [1, 2, 7])
def test_items_in_their_order(ahead: int) -> None:
    items = [*range(20), None, 3]
    with Prefetch(items, ahead) as prefetch:
        assert list(prefetch) == items
    assert not workers()


def test_items_are_made_in_another_thread() -> None:
    with Prefetch(threading.get_ident() for _ in range(1)) as prefetch:
        assert list(prefetch) != [threading.get_ident()]


@pytest.mark.parametrize("error", [DataError("line 3"), KeyboardInterrupt()])
def test_an_error_comes_to_the_reader_in_its_place(error: BaseException) -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise error

    found = []
    with pytest.raises(type(error)) as caught, Prefetch(items()) as prefetch:  # noqa: PT012
        for item in prefetch:
            found.append(item)
    assert caught.value is error
    assert found == [1, 2]
    assert not workers()


def test_an_error_is_an_item_where_it_is_yielded_and_not_raised() -> None:
    error = ValueError("of a caller's own")
    with Prefetch([error]) as prefetch:
        assert list(prefetch) == [error]


@pytest.mark.parametrize("read", [0, 1, 5])
def test_the_thread_ends_with_its_reader(read: int) -> None:
    def endless() -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    with Prefetch(endless()) as prefetch:
        reader = iter(prefetch)
        assert [next(reader) for _ in range(read)] == list(range(read))
    assert not workers()


def test_a_reader_that_fails_ends_the_thread_and_keeps_its_error() -> None:
    def fails() -> Iterator[int]:
        yield 1
        raise DataError("never read")

    with pytest.raises(RuntimeError, match="the reader's"), Prefetch(fails()):
        raise RuntimeError("the reader's own")
    assert not workers()


@pytest.mark.parametrize("ahead", [1, 3])
def test_never_more_than_that_many_are_made_beforehand(ahead: int) -> None:
    """`ahead` wait to be read, and one more is made and waits for room."""
    made = 0
    room = threading.Event()

    def items() -> Iterator[int]:
        nonlocal made
        for number in range(12):
            made += 1
            if made > ahead:
                room.set()
            yield number

    with Prefetch(items(), ahead) as prefetch:
        assert room.wait(timeout=30), "nothing was made ahead of the reader"
        assert made == ahead + 1
        for read, _ in enumerate(prefetch, start=1):
            assert made <= read + ahead + 1
    assert made == 12
