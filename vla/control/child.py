"""Starting the controller's processes: forked from a server that has imported what they need, and has no threads."""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import threading
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

CONTEXT: Any = multiprocessing.get_context("forkserver")
PRELOAD = ["__main__", "vla.control.beside", "vla.control.recording"]


def start(target: Callable[..., None], arguments: Sequence[Any], name: str) -> tuple[BaseProcess, Any]:
    """Run `target(*arguments, connection)` in a process; gives it and our end of the connection.

    Whoever of the two dies closes the connection for the other.
    """
    CONTEXT.set_forkserver_preload(PRELOAD)
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=target, args=(*arguments, theirs), name=name, daemon=True)
    process.start()
    theirs.close()
    return process, ours


class Post:
    """Letters to a child, carried by a thread: whoever puts one never waits. `most` may lie here unsent."""

    def __init__(self, connection: Any, most: int) -> None:
        self.broken: str | None = None
        """Why nothing reaches the child any more."""
        self._connection = connection
        self._queue: queue.Queue = queue.Queue(most)
        self._thread = threading.Thread(target=self._carry, name="post", daemon=True)
        self._thread.start()

    def put(self, letter: Any) -> bool:
        """Whether there was room for it."""
        try:
            self._queue.put_nowait(letter)
        except queue.Full:
            return False
        return True

    def close(self, seconds: float) -> None:
        """That was the last letter; waits for room, so long at most. The child sees its connection end after the last."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=seconds)

    def _carry(self) -> None:
        for letter in iter(self._queue.get, None):
            try:
                if self.broken is None:
                    self._connection.send(letter)
            except OSError as error:
                self.broken = repr(error)
        self._connection.close()
