"""One call for each of many files, several at once: writes that wait for the disk together share its syncs."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from penstock.errors import PenstockError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

__all__ = ["for_each"]

WORKERS = 16
"""Calls under way at once: above this the syncs of a local disk are shared as well as they can be."""

WINDOW = 4 * WORKERS
"""Items taken before the first of them is done: bounds what their contents hold in memory."""

Item = TypeVar("Item")


def for_each(call: Callable[[Item], object], items: Iterable[Item]) -> Iterator[tuple[Item, Exception | None]]:
    """Calls for every item and says how it ended, in the order of the items.

    Args:
        call: called with each item, from several threads.
        items: taken as places become free; may be a generator.
    Returns:
        Each item with the error that its call ended with, or ``None``.
    Raises:
        Whatever a call raises that is neither ``OSError`` nor of Penstock; calls that have not begun are not made then.
    """
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="penstock") as pool:
        under_way: deque[tuple[Item, Future[Exception | None]]] = deque()
        try:
            for item in items:
                under_way.append((item, pool.submit(_tried, call, item)))
                if len(under_way) >= WINDOW:
                    yield _oldest(under_way)
            while under_way:
                yield _oldest(under_way)
        finally:
            for _, future in under_way:
                future.cancel()


def _oldest(under_way: deque[tuple[Item, Future[Exception | None]]]) -> tuple[Item, Exception | None]:
    item, future = under_way.popleft()
    return item, future.result()


def _tried(call: Callable[[Item], object], item: Item) -> Exception | None:
    try:
        call(item)
    except (OSError, PenstockError) as error:
        return error
    return None
