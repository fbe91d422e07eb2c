"""What every converter does with files it did not write."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path


class Fault(Exception):
    """What is wrong with one file, or with one place in it. The rest is converted."""


def inside(folder: str | Path, name: str) -> Path:
    """`folder/name`, or a Fault if the name climbs out of the folder."""
    plain = os.path.normpath(name)
    if os.path.isabs(plain) or plain.split(os.sep)[0] == os.pardir or "\0" in name:
        raise Fault(f"the name {name!r} climbs out of its folder")
    return Path(folder) / plain


def in_order[T, R](work: Callable[[T], R], jobs: Iterable[T], threads: int) -> Iterator[R]:
    """`work` of each job, in the jobs' order, with a few results waiting. Threads suffice: FFmpeg decodes outside the GIL."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for job in jobs:
                waiting.append(pool.submit(work, job))
                if len(waiting) >= 4 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
