"""Worker processes: results in order, errors of tasks and of workers, and an end that leaves no process behind."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from training.parallel import IN_PROCESS, PRELOADED, WorkerLostError, WorkerPool, available_cores

SLEEP_S = 600


def test_results_come_in_the_order_in_which_tasks_were_handed_in_wherever_they_ran() -> None:
    with WorkerPool(2) as pool:
        tasks = [pool.submit(divmod, number, 3) for number in range(20)]
        assert [task.result() for task in tasks] == [divmod(number, 3) for number in range(20)]
        assert pool.submit(os.getpid).result() != os.getpid()


def test_one_process_is_this_one_and_a_task_runs_once() -> None:
    with WorkerPool(1) as pool:
        task = pool.submit(list, "ab")
        assert pool.submit(os.getpid).result() == os.getpid()
        assert task.result() is task.result()
    assert IN_PROCESS.submit(os.getpid).result() == os.getpid()


def test_by_default_there_is_a_worker_for_each_core_that_may_be_used() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)


def test_the_modules_that_workers_are_forked_with_exist() -> None:
    assert all(importlib.import_module(name) for name in PRELOADED)  # a missing one would be skipped in silence


def test_a_task_raises_what_its_function_raised() -> None:
    with WorkerPool(2) as pool:
        task = pool.submit(int, "many")
        with pytest.raises(ValueError, match="invalid literal for int"):
            task.result()


def test_a_worker_that_is_killed_is_a_clear_error() -> None:
    with pytest.raises(WorkerLostError, match="a worker process ended before its task did"), WorkerPool(2) as pool:
        pool.submit(signal.raise_signal, signal.SIGKILL).result()


def sleep_and_stop() -> None:
    """What Ctrl-C does while all workers are at work."""
    with WorkerPool(2) as pool:
        pool.submit(os.getpid).result()
        for _ in range(4):
            pool.submit(time.sleep, SLEEP_S)
        raise KeyboardInterrupt


def test_an_exception_ends_workers_at_once() -> None:
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        sleep_and_stop()
    assert time.monotonic() - start < SLEEP_S / 2


WITH_WORKERS = """
import os, time
from training.parallel import WorkerPool
with WorkerPool(2) as pool:
    tasks = [pool.submit(os.getpid) for _ in range(20)]
    print(*{task.result() for task in tasks}, flush=True)
    time.sleep(600)
"""


def test_workers_end_with_a_process_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-P", "-c", WITH_WORKERS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = [psutil.Process(int(number)) for number in process.stdout.readline().split()]
        process.kill()
    assert workers
    _, alive = psutil.wait_procs(workers, timeout=300)
    assert alive == []
