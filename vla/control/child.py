"""Starting the controller's processes: forked from a server that has imported what they need, and has no threads."""

from __future__ import annotations

import multiprocessing
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
