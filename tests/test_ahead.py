"""Work by threads, in order and a bounded number of steps ahead; and one run at a time on a folder."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from geobacter_core.ahead import in_order, produced_ahead
from geobacter_core.encoder.device import single_threads
from geobacter_core.files import only_one


def test_results_come_in_the_order_of_the_items_and_few_are_under_way():
    begun = []

    def work(item):
        begun.append(item)
        time.sleep(0.02 if item % 2 else 0.0)
        return item * item

    with ThreadPoolExecutor(4) as pool:
        results = in_order(pool, work, iter(range(20)), 3)
        assert next(results) == 0
        assert len(begun) <= 4
        assert list(results) == [item * item for item in range(1, 20)]
        assert list(in_order(pool, work, [], 3)) == []


def test_what_a_step_raises_comes_at_its_turn():
    def work(item):
        if item == 2:
            raise ValueError("no such item")
        return item

    with ThreadPoolExecutor(2) as pool:
        results = in_order(pool, work, range(5), 4)
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(ValueError, match="no such item"):
            next(results)


def test_a_producer_stays_a_few_ahead_and_ends_with_its_consumer():
    made = []

    def produce():
        for item in range(100):
            made.append(item)
            yield item

    items = produced_ahead(produce, 2, "made-up")
    assert next(items) == 0
    time.sleep(0.3)
    assert len(made) <= 4
    items.close()
    assert "made-up" not in {thread.name for thread in threading.enumerate()}


def test_threads_compute_alone_and_leave_torch_as_it_was():
    before = torch.get_num_threads()
    with single_threads(2) as pool:
        assert set(pool.map(lambda _: torch.get_num_threads(), range(8))) == {1}
    assert torch.get_num_threads() == before


def test_one_at_a_time_works_on_a_folder_and_others_wait(tmp_path):
    at_work, most = [], []

    def work(_):
        with only_one(tmp_path / "table", "another"):
            at_work.append(1)
            most.append(len(at_work))
            time.sleep(0.01)
            at_work.pop()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(12)))
    assert most == [1] * 12
    with only_one(tmp_path / "table", "another"), only_one(tmp_path / "other", "another"):
        pass


def test_items_of_no_size_hold_nothing_up():
    """Ten of them behind one that takes its time: all have begun by then, and the next long one, too, but no other."""
    let_go, begun = threading.Event(), []

    def work(item):
        begun.append(item)
        if item == 0:
            let_go.wait(10)
        return item

    with ThreadPoolExecutor(2) as pool:
        threading.Timer(0.3, let_go.set).start()
        sizes = [1, *[0] * 10, 1, 1, 1]
        results = in_order(pool, work, range(len(sizes)), 1, sizes.__getitem__)
        assert next(results) == 0
        assert sorted(begun) == list(range(12))
        assert list(results) == list(range(1, len(sizes)))
