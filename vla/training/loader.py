"""Batches as a function of their number, prepared one ahead in a thread.

Batch k is drawn from (seed, k) alone, so that a run's place in the data is one number: nothing else needs saving, and no
batch is lost or seen twice when the run goes on after a kill.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

Batch = dict[str, Any]
AHEAD = 2


class Source(Protocol):
    """What a run trains on."""

    def batch(self, number: int) -> Batch:
        """Batch `number` (from 0, without end): the same one at every call."""
        ...


def to_device(batch: Mapping[str, Any], device: torch.device) -> Batch:
    """The batch with its tensors on `device`."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


def prefetch(source: Source, start: int, stride: int, device: torch.device) -> Generator[Batch]:
    """Batches start, start + stride, ... on `device`, read by a thread while the caller works on an earlier one.

    An exception of the source is raised here. The thread ends when the iterator is closed.
    """
    ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=AHEAD)
    stop = threading.Event()

    def work() -> None:
        number = start
        while not stop.is_set():
            try:
                item: Batch | BaseException = source.batch(number)
                if device.type == "cuda":
                    item = {k: v.pin_memory() if _on_cpu(v) else v for k, v in item.items()}
            except BaseException as error:
                item = error
            while not stop.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if isinstance(item, BaseException):
                return
            number += stride

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield to_device(item, device)
    finally:
        stop.set()
        thread.join(timeout=10)


def _on_cpu(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cpu"
