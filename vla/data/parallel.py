"""Worker processes that end with their parent."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor

import torch


def in_order[T, R](work: Callable[[T], R], jobs: Iterable[T], processes: int) -> Iterator[R]:
    """`work` of each job in the jobs' order, done by so many processes; only a few results wait in memory at a time.

    `work` is a function of a module. The processes are fresh ones (no fork: threads and open files of the parent would be
    shared), use one thread each, and end within seconds of the parent's death, even by kill -9.
    """
    with ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=_begin_worker, initargs=(os.getpid(),)
    ) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for job in jobs:
                waiting.append(pool.submit(work, job))
                if len(waiting) >= 4 * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _begin_worker(parent: int) -> None:
    torch.set_num_threads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
