import threading

import pytest

from biasreg.inference.stages import overlapped, timed


def add(text):
    return lambda item: f"{item}{text}"


def test_each_item_passes_the_three_stages_in_order():
    outcomes = list(overlapped("abc", add(1), add(2), add(3)))
    assert [(outcome.item, outcome.result, outcome.error) for outcome in outcomes] == [
        (item, f"{item}123", None) for item in "abc"
    ]


@pytest.mark.parametrize("workers", [(1, 1), (3, 2)])
def test_no_item_is_lost_or_done_twice(workers):
    outcomes = list(overlapped(range(50), lambda x: x, lambda x: x, lambda x: x, workers))
    assert sorted(outcome.result for outcome in outcomes) == list(range(50))


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_an_error_ends_its_own_item_alone(stage):
    def fail(item):
        if item == 1:
            raise ValueError("one is none")
        return item

    stages = [fail if number == stage else (lambda item: item) for number in range(3)]
    outcomes = {outcome.item: outcome for outcome in overlapped(range(3), *stages)}
    assert [outcomes[item].result for item in range(3)] == [0, None, 2]
    assert str(outcomes[1].error) == "one is none"


def test_the_stages_of_different_items_run_at_the_same_time():
    together = threading.Barrier(3, timeout=20)  # breaks unless three stages wait at once

    def meet(item, stage):
        if item + stage == 2:  # the third stage of the first item, the second of the second, the first of the third
            together.wait()
        return item

    stages = [lambda item, stage=stage: meet(item, stage) for stage in range(3)]
    assert all(outcome.error is None for outcome in overlapped(range(3), *stages))


def test_what_is_under_way_does_not_grow_with_the_batch():
    under_way, most = set(), []

    def begin(item):
        under_way.add(item)
        most.append(len(under_way))
        return item

    def end(item):
        under_way.discard(item)

    for _ in overlapped(range(100), begin, lambda item: item, end):
        pass
    assert max(most) <= 6


def test_items_are_taken_as_there_is_room():
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    next(overlapped(items(), add(1), add(2), add(3)))
    assert len(taken) <= 6


def test_an_interruption_begins_nothing_new_and_finishes_what_is_under_way():
    begun, ended = [], []

    def run(item):
        if item == 1:
            raise KeyboardInterrupt
        return item

    with pytest.raises(KeyboardInterrupt):
        list(overlapped(range(100), lambda item: begun.append(item) or item, run, ended.append))
    assert len(begun) <= 5
    assert ended == [0]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("prepare", "finish"))]


def test_time_is_noted_by_stage():
    seconds = {}
    with timed(seconds, "a"):
        pass
    assert 0 <= seconds["a"] < 1
