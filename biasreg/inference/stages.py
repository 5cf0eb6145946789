"""The stages of a registration: timed each, and overlapped over the pairs of a batch."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Note the wall time of a block.

    Args:
        seconds: Where it is noted.
        stage: Under which name.
    """
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 4)


class Outcome(NamedTuple, Generic[Item, Result]):
    """What has become of an item: a result, or an error."""

    item: Item
    result: Result | None
    error: Exception | None


def overlapped(
    items: Iterable[Item],
    prepare: Callable[[Item], Any],
    run: Callable[[Any], Any],
    finish: Callable[[Any], Result],
    workers: tuple[int, int] = (1, 1),
) -> Iterator[Outcome[Item, Result]]:
    """Do three things to each item, to several items at once, so that a batch takes as long as its slowest stage.

    `run` is called in this thread, for one item after the other; the other two in threads of their own. No more items
    are under way than threads, and one waiting at each stage: memory does not grow with the number of items. An
    exception ends its own item alone; a `KeyboardInterrupt` waits for what is under way and begins nothing new.

    Args:
        items: What to work on; taken one by one, as there is room.
        prepare: First stage, of an item; its result goes to the second.
        run: Second stage.
        finish: Third stage.
        workers: Threads of the first and of the third stage.

    Yields:
        One outcome per item, as they are done, about in the order of the items.
    """
    first = ThreadPoolExecutor(workers[0], thread_name_prefix="prepare")
    last = ThreadPoolExecutor(workers[1], thread_name_prefix="finish")
    finishing = deque[tuple[Item, Future]]()
    try:
        for item, prepared in _ahead(items, prepare, first, workers[0]):
            try:
                finishing.append((item, last.submit(finish, run(prepared.result()))))
            except Exception as error:
                yield Outcome(item, None, error)
            while finishing and (len(finishing) > workers[1] or finishing[0][1].done()):
                yield _outcome(*finishing.popleft())
        while finishing:
            yield _outcome(*finishing.popleft())
    finally:
        for executor in (first, last):
            executor.shutdown(cancel_futures=True)


def _ahead(
    items: Iterable[Item], function: Callable[[Item], Any], executor: ThreadPoolExecutor, count: int
) -> Iterator[tuple[Item, Future]]:
    """Give each item with its call's future, `count` more calls being under way."""
    submitted = deque[tuple[Item, Future]]()
    for item in items:
        submitted.append((item, executor.submit(function, item)))
        if len(submitted) > count:
            yield submitted.popleft()
    while submitted:
        yield submitted.popleft()


def _outcome(item: Item, future: "Future[Result]") -> Outcome[Item, Result]:
    try:
        return Outcome(item, future.result(), None)
    except Exception as error:
        return Outcome(item, None, error)
