"""One call for each of many: several at once, bounded, in order, and an error of one is the others' business not."""

import threading
from collections.abc import Iterator

import pytest

from penstock.client import many
from penstock.errors import InvalidInputError, NotFoundError


def test_every_item_is_done_once_and_told_in_order() -> None:
    done: list[int] = []
    told = list(many.for_each(done.append, range(1000)))
    assert told == [(number, None) for number in range(1000)]
    assert sorted(done) == list(range(1000))


def test_several_are_under_way_at_once_and_never_more_than_there_are_workers() -> None:
    together = threading.Barrier(many.WORKERS)
    now, most, counting = [0], [0], threading.Lock()

    def call(_: int) -> None:
        with counting:
            now[0] += 1
            most[0] = max(most[0], now[0])
        together.wait(60)
        with counting:
            now[0] -= 1

    list(many.for_each(call, range(2 * many.WORKERS)))
    assert most[0] == many.WORKERS


def test_items_are_taken_as_places_become_free() -> None:
    taken = [0]

    def items() -> Iterator[int]:
        for number in range(10 * many.WINDOW):
            taken[0] = number + 1
            yield number

    told = many.for_each(lambda _: None, items())
    next(told)
    assert taken[0] <= many.WINDOW
    told.close()  # type: ignore[attr-defined]


def test_an_error_is_told_with_its_item_and_a_defect_is_raised() -> None:
    def call(number: int) -> None:
        if number == 1:
            raise NotFoundError("read 1", "no such file")
        if number == 2:
            raise InvalidInputError("read 2", "it is none")
        if number == 3:
            raise OSError(5, "Input/output error")

    told = [error for _, error in many.for_each(call, range(5))]
    assert [type(error).__name__ for error in told] == [
        "NoneType",
        "NotFoundError",
        "InvalidInputError",
        "OSError",
        "NoneType",
    ]

    def broken(_: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(many.for_each(broken, range(5)))
