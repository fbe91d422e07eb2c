"""Work spread over processes: each gets a share, and results come back one by one as they are made."""

from __future__ import annotations

import multiprocessing
import os
import queue
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vla.spec import UserError
from vla.training.logging import available_cores

Work = Callable[[Any], Iterator[Any]]


def processes(wanted: int, most: int) -> int:
    """How many processes to start: `wanted`, 0 for one per core, but no more than `most`. UserError for fewer than 0."""
    if wanted < 0:
        raise UserError(f"workers is {wanted}: give a number of processes, or 0 for one per core.")
    return min(wanted or available_cores(), most)


def spread(work: Work, shares: Sequence[Any]) -> Iterator[Any]:
    """Yield what `work(share)` yields for each share, in the order of making; one process per share, this one if only one.

    `work` is a module's function and everything that crosses is picklable. Each process keeps to one thread of torch and
    BLAS. An error in one process ends them all; a UserError stays a UserError.
    """
    if len(shares) == 1:
        yield from work(shares[0])
        return
    context = multiprocessing.get_context("spawn")  # forked children would share GL and thread state
    results = context.Queue(maxsize=64)
    threads = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update(dict.fromkeys(threads, "1"))
    processes = [context.Process(target=_child, args=(work, share, results), daemon=True) for share in shares]
    try:
        for process in processes:
            process.start()
        yield from _collect(processes, results)
        for process in processes:
            process.join(timeout=30)  # what ends by itself leaves no semaphores behind
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
        for name, value in threads.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def _collect(processes: Sequence[Any], results: Any) -> Iterator[Any]:
    running = len(processes)
    while running:
        try:
            kind, value = results.get(timeout=1.0)
        except queue.Empty:
            dead = [p for p in processes if p.exitcode not in (None, 0)]
            if dead:
                raise RuntimeError(
                    f"a worker process ended with status {dead[0].exitcode}, perhaps for lack of memory"
                ) from None
            continue
        if kind == "result":
            yield value
        elif kind == "end":
            running -= 1
        elif kind == "mistake":
            raise UserError(value)
        else:
            raise RuntimeError(f"a worker process failed:\n{value}")


def _child(work: Work, share: Any, results: Any) -> None:
    try:
        for value in work(share):
            results.put(("result", value))
        results.put(("end", None))
    except UserError as error:
        results.put(("mistake", str(error)))
    except KeyboardInterrupt:
        pass
    except BaseException:
        results.put(("fault", traceback.format_exc()))
