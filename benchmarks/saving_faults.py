"""What is lost when many processes save at once, and when a save is killed.

The first runs pytest-benchmark's own storage with and without pytest-amp's keeper. The second kills
a process at random moments of a save, and reads the storage back.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from history import saved
from pytest_benchmark.storage.file import FileStorage

from pytest_amp.plugin.benchmark import Keeper
from pytest_amp.storage.index import Index
from pytest_amp.storage.saving import NUMBERED

NAME = "unversioned_20260101_120000"  # a second that all of them share


def storage(root):
    return FileStorage(str(root), SimpleNamespace(info=lambda *_: None), "machine")


def output(run_id, tests=1):
    document = saved(history_began(), tests, random.Random(run_id))
    document["amp"]["run"]["id"] = run_id
    return document


def history_began():
    from history import BEGAN

    return BEGAN


def save_plainly(root, run_id):
    storage(root).save(output(run_id), NAME)


def save_kept(root, run_id):
    session = SimpleNamespace(storage=storage(root))
    keeper = Keeper(session, {"id": run_id})
    session.storage.save(output(run_id), NAME)
    keeper.look_again()


def many(save, root, number, rounds, barrier, refused):
    for turn in range(rounds):
        barrier.wait()
        try:
            save(root, f"{number:04}{turn:04}")
        except AssertionError:
            with refused.get_lock():
                refused.value += 1


def at_once(save, processes, rounds):
    context = multiprocessing.get_context("fork")
    barrier, refused = context.Barrier(processes), context.Value("i", 0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        workers = [
            context.Process(target=many, args=(save, root, n, rounds, barrier, refused))
            for n in range(processes)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        there = set()
        for path in root.glob("*/*.json"):
            with contextlib.suppress(ValueError):
                there.add(json.loads(path.read_text())["amp"]["run"]["id"])
        return processes * rounds - len(there), refused.value


def killed(times):
    """Kills that left a whole file, a part of one, or none; and runs lost or falsely read."""
    outcome = {"whole": 0, "cut off": 0, "none": 0}
    wrong = 0
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        save_kept(root, "0" * 8)
        began = time.perf_counter()
        for warm in range(3):
            save_kept(root, f"warm{warm:04}")
        took_s = (time.perf_counter() - began) / 3
        whole = {"0" * 8, *(f"warm{each:04}" for each in range(3))}
        for number in range(times):
            before = len(list(root.glob("*/*.json")))
            run_id = f"kill{number:04}"
            process = os.fork()
            if not process:
                save_large(root, run_id)
                os._exit(0)
            time.sleep(draw.random() * 40 * took_s)
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            after = sorted(root.glob("*/*.json"))
            with Index(root) as index:
                table, warnings = index.table(), index.warnings
            read = {name for name in table.names.values() if name[:4] in ("0000", "warm", "kill")}
            run_ids = {name for name in read if len(name) == 8}
            if len(after) == before:
                outcome["none"] += 1
            elif run_ids & {run_id}:
                outcome["whole"] += 1
                whole.add(run_id)
            else:
                outcome["cut off"] += 1
                wrong += not any(path.name in text for text in warnings for path in after)
            wrong += len(whole - run_ids)
            broken = sum("is no whole JSON" in text for text in warnings)
            wrong += broken != outcome["cut off"]
        wrong += sum(NUMBERED.fullmatch(path.name) is None for path in root.glob("*/*.json"))
    return outcome, wrong


def save_large(root, run_id):
    session = SimpleNamespace(storage=storage(root))
    Keeper(session, {"id": run_id})
    session.storage.save(output(run_id, tests=40), NAME)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--kills", type=int, default=50)
    given = parser.parse_args()
    saves = given.processes * given.rounds
    print(f"{given.processes} processes saving at once, {given.rounds} rounds: {saves} runs")
    for name, save in (("pytest-benchmark alone", save_plainly), ("with pytest-amp", save_kept)):
        lost, refused = at_once(save, given.processes, given.rounds)
        print(f"  {name:<24} lost {lost} (of these {refused} ended in its AssertionError)")
    outcome, wrong = killed(given.kills)
    print(f"{given.kills} saves killed: {outcome}")
    print(f"  earlier runs lost, cut off runs used or not told of: {wrong}")


if __name__ == "__main__":
    main()
