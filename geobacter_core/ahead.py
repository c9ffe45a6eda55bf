"""Work that a thread does ahead of whoever uses its results."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    pool: Executor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    n_ahead: int,
    size: Callable[[Item], int] = lambda item: 1,
) -> Iterator[Result]:
    """What a function gives for each item, in the order of the items, some of which are under way meanwhile.

    Args:
        pool: Computes it.
        function: Of one item.
        items: They are taken when there is room for them.
        n_ahead: The sizes of those under way, added up, are no more than this and one item.
        size: Of an item; those of none hold nothing up.
    """
    under_way: deque[tuple[int, Future[Result]]] = deque()
    n_under_way = 0
    for item in items:
        under_way.append((size(item), pool.submit(function, item)))
        n_under_way += under_way[-1][0]
        while under_way and (n_under_way > n_ahead or under_way[0][1].done()):
            n, first = under_way.popleft()
            n_under_way -= n
            yield first.result()
    while under_way:
        yield under_way.popleft()[1].result()


def produced_ahead(produce: Callable[[], Iterator[Item]], n_ahead: int, name: str) -> Generator[Item, None, None]:
    """The items of an iterator that a thread runs through, a few ahead; it ends when the consumer does.

    Args:
        produce: Makes the iterator, in the thread. What it raises is raised here.
        n_ahead: So many items at most wait to be consumed.
        name: Of the thread.
    """
    ready: queue.Queue[Item | BaseException | None] = queue.Queue(n_ahead)
    stopped = threading.Event()

    def put(item: Item | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def run() -> None:
        try:
            for item in produce():
                if not put(item):
                    return
            put(None)
        except BaseException as problem:
            put(problem)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
