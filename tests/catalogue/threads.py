"""AMP110: work in other threads, which do not inherit autocast."""

from __future__ import annotations

import asyncio
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool

import torch
import torch.nn.functional as F
from torch import nn

from tests.catalogue.registry import faulty, healthy
from tests.catalogue.steps import batch, mlp, sgd
from tests.helpers.lab import train


def towers(arm, gathered):
    """A step with a head on two towers, whose outputs `gathered` makes from them and the inputs."""
    two, head, (x, y) = nn.ModuleList([mlp(64), mlp(64)]), nn.Linear(8, 4), batch()

    def loss_of():
        return F.cross_entropy(head(torch.cat(gathered(two, x), 1)).float(), y)

    return train(arm, sgd(two, head), loss_of)


def pool_of(arm, kind=ThreadPoolExecutor):
    pool = kind(2)
    arm.on_teardown(pool.shutdown if kind is ThreadPoolExecutor else pool.terminate)
    return pool


@faulty("AMP110")
def towers_in_a_pool_of_the_setups(arm):
    pool = pool_of(arm)
    return towers(arm, lambda two, x: list(pool.map(lambda tower: tower(x), two)))


@faulty("AMP110", dtype="float16")
def modules_that_are_the_threads_own_work(arm):
    """No line of the user's runs in the threads."""

    def gathered(two, x):
        with ThreadPoolExecutor() as pool:
            return [done.result() for done in [pool.submit(tower, x) for tower in two]]

    return towers(arm, gathered)


class Apart(threading.Thread):
    """Applies a module's first weight and keeps what comes out."""

    def __init__(self, module, x):
        super().__init__()
        self.module, self.x = module, x

    def run(self):
        self.out = F.linear(F.linear(self.x, self.module[0].weight), self.module[2].weight)


@faulty("AMP110")
def threads_of_a_class_of_their_own(arm):
    def gathered(two, x):
        threads = [Apart(tower, x) for tower in two]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [thread.out for thread in threads]

    return towers(arm, gathered)


@faulty("AMP110", dtype="float16")
def a_worker_that_waits_for_inputs(arm):
    given, done = queue.Queue(), queue.Queue()

    def work():
        while (item := given.get()) is not None:
            tower, x = item
            done.put(tower(x))

    threading.Thread(target=work, daemon=True).start()
    arm.on_teardown(lambda: given.put(None))

    def gathered(two, x):
        for tower in two:
            given.put((tower, x))
        return [done.get() for _ in two]

    return towers(arm, gathered)


@faulty("AMP110")
def towers_beside_each_other_in_asyncio(arm):
    async def both(two, x):
        return await asyncio.gather(*(asyncio.to_thread(tower, x) for tower in two))

    return towers(arm, lambda two, x: asyncio.run(both(two, x)))


@faulty("AMP110")
def towers_in_a_pool_of_multiprocessings(arm):
    pool = pool_of(arm, ThreadPool)
    return towers(arm, lambda two, x: pool.map(lambda tower: tower(x), two))


@healthy("AMP110")
def towers_that_enter_a_region_themselves(arm):
    pool = pool_of(arm)

    def gathered(two, x):
        def run(tower):
            with arm.autocast():
                return tower(x)

        return list(pool.map(run, two))

    return towers(arm, gathered)


@healthy("AMP110", dtype="float16")
def threads_that_take_the_region_along(arm):
    """As `torch.nn.parallel.parallel_apply` does."""

    def gathered(two, x):
        outs, cast = {}, torch.is_autocast_enabled("cpu")

        def run(number):
            with torch.autocast("cpu", dtype=arm.dtype, enabled=cast):
                outs[number] = two[number](x)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [outs[number] for number in range(2)]

    return towers(arm, gathered)


@healthy("AMP110")
def a_teacher_that_is_kept_in_float32(arm):
    pool, teacher = pool_of(arm), mlp()

    def taught(x):
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return teacher(x)

    def gathered(two, x):
        hint = pool.submit(taught, x)
        outs = [tower(x) for tower in two]
        return [outs[0] + 0.1 * hint.result(), outs[1]]

    return towers(arm, gathered)


@healthy("AMP110")
def batches_that_are_prepared_meanwhile(arm):
    pool = pool_of(arm)

    def prepared(x):
        return (x - x.mean(0)) / x.std(0)

    def gathered(two, x):
        ready = pool.submit(prepared, x)
        return [tower(ready.result()) for tower in two]

    return towers(arm, gathered)


@healthy("AMP110")
def metrics_that_are_handed_over_after_the_region(arm):
    pool, (model, (x, y)) = pool_of(arm), (mlp(64), batch())
    optimizer, mixing = sgd(model), torch.randn(4, 4)

    def step():
        optimizer.zero_grad()
        with arm.autocast():
            logits = model(x)
        metric = pool.submit(lambda: logits.detach().float() @ mixing)
        loss = F.cross_entropy(logits.float(), y)
        arm.scaler.scale(loss).backward()
        arm.scaler.step(optimizer)
        arm.scaler.update()
        metric.result()
        return loss

    return step
