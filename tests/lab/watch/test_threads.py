"""The record of operators follows a step into other threads, and leaves them again."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as modes

from pytest_amp.lab.watch.operators import OpRecord

BF16 = torch.bfloat16
PRODUCT = 2 * 3 * 8 * 4  # FLOPs of (3, 8) with (8, 4)
A, B = torch.ones(3, 8), torch.ones(8, 4)


def region(**more):
    return torch.autocast("cpu", dtype=BF16, **more)


def product():
    return A @ B


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as pool:
        pool.submit(int).result()
        yield pool


@contextmanager
def recorded():
    record = OpRecord()
    with record.watching():
        yield record


def rows(record, op="aten::mm"):
    return [row for row in record.operators().rows if row.op == op]


def started(work):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def line_of(row):
    file, _, line = row.location.rpartition(":")
    assert Path(file).name == Path(__file__).name
    return Path(file).read_text("utf-8").splitlines()[int(line) - 1].strip()


@pytest.mark.parametrize("start", ["thread", "pool"])
def test_work_in_another_thread_is_counted_and_lacks_the_region(pool, start) -> None:
    with recorded() as record, region():
        started(product) if start == "thread" else pool.submit(product).result()
    assert record.operators().flops_by_dtype == {"float32": PRODUCT}
    [row] = rows(record)
    assert (row.lacks_autocast, row.autocast, line_of(row)) == (True, False, "return A @ B")


def test_a_region_of_the_threads_own_counts_there_alone(pool) -> None:
    inside, ended = threading.Event(), threading.Event()

    def work():
        with region():
            product()
            inside.set()
            ended.wait()

    with recorded() as record:
        done = pool.submit(work)
        inside.wait()
        product()
        ended.set()
        done.result()
    assert record.operators().flops_by_dtype == {"bfloat16": PRODUCT, "float32": PRODUCT}
    assert {(row.dtype, row.autocast) for row in rows(record)} == {
        ("bfloat16", True),
        ("float32", False),
    }
    assert not any(row.lacks_autocast for row in rows(record))


def test_nothing_is_lacking_in_a_region_that_is_switched_off_or_without_one(pool) -> None:
    def off():
        with region(enabled=False):
            product()

    with recorded() as record:
        with region():
            pool.submit(off).result()
        pool.submit(product).result()
    assert [row.lacks_autocast for row in rows(record)] == [False, False]
    assert [row.chosen for row in rows(record)] == [True, False]


def test_what_a_thread_hands_on_is_followed_too(pool) -> None:
    with recorded() as record, region():
        pool.submit(lambda: pool.submit(product).result()).result()
    assert [row.lacks_autocast for row in rows(record)] == [True]


def test_without_a_line_in_the_thread_it_is_the_line_that_gave_the_work(pool) -> None:
    layer = nn.Linear(8, 4, bias=False)
    with recorded() as record, region():
        pool.submit(layer, A).result()
    [row] = rows(record)
    assert (row.module, line_of(row)) == ("Linear", "pool.submit(layer, A).result()")


def test_a_module_that_a_waiting_thread_calls_is_counted() -> None:
    layer, given, done = nn.Linear(8, 4, bias=False), queue.Queue(), queue.Queue()

    def work():
        while given.get():
            done.put(layer(A))

    threading.Thread(target=work, daemon=True).start()
    with recorded() as record, region():
        given.put(True)
        done.get()
    given.put(False)
    assert [row.lacks_autocast for row in rows(record)] == [True]


def test_the_mode_is_left_when_the_work_is_done(pool) -> None:
    with ThreadPoolExecutor(1) as fresh:  # its thread is started by what is submitted
        with recorded():
            assert len(pool.submit(modes).result()) == 1
            assert len(fresh.submit(modes).result()) == 1
        assert pool.submit(modes).result() == []
        assert fresh.submit(modes).result() == []


def test_a_thread_that_outlives_the_step_is_no_longer_recorded() -> None:
    over = threading.Event()

    def work():
        over.wait()
        product()

    with recorded() as record:
        thread = threading.Thread(target=work)
        thread.start()
    over.set()
    thread.join()
    assert rows(record) == []
    assert not torch.utils._python_dispatch.is_in_torch_dispatch_mode()


def test_threads_of_others_are_left_alone() -> None:
    begin, seen = threading.Event(), []

    def others():
        begin.wait()
        started(lambda: seen.append(modes()))

    thread = threading.Thread(target=others)
    thread.start()
    with recorded():
        begin.set()
        thread.join()
    assert seen == [[]]


def test_modules_of_several_threads_are_not_mixed_up(pool) -> None:
    both = threading.Barrier(2)

    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 4, bias=False)

        def forward(self, x):
            both.wait()  # both are in the midst of this call
            out = self.inner(x)
            both.wait()
            return out.mul(2)

    model = nn.ModuleDict({"a": Slow(), "b": Slow()})
    model.forward = lambda x: list(pool.map(lambda each: each(x), model.values()))
    with recorded() as record:
        model(A)
    assert {row.module for row in rows(record, "aten::mm")} == {"a.inner", "b.inner"}
    assert {row.module for row in rows(record, "aten::mul")} == {"a", "b"}


def test_what_threads_draw_has_no_order_to_compare(pool) -> None:
    with recorded() as record:
        pool.submit(torch.rand, 4).result()
        torch.rand(4)
    assert len(record.operators().draws) == 1


def test_a_threads_error_is_its_own(pool) -> None:
    def broken():
        return A @ A

    with recorded() as record, pytest.raises(RuntimeError, match="shapes"):
        pool.submit(broken).result()
    assert pool.submit(modes).result() == []
    assert rows(record) == []
