"""Where a person stops the robot and talks to it: signals, a file, the keyboard.

Ctrl-C, SIGTERM, the file        stop
Enter                            stop
a sentence, Enter                follow it from now on
y, Enter / n, Enter              the instruction is done / has failed: on to the next
t, Enter                         a person takes over, or gives back (vla/control/takeover.py)
"""

from __future__ import annotations

import os
import queue
import select
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Desk:
    """A context in which signals only leave word; what was there before comes back afterwards. For the main thread.

    stop_file: stops as soon as it exists; one from before is removed. keyboard: a file descriptor, None for no keyboard.
    commands: lines that are obeyed at once, by whoever asks what was typed. taken: whether a person drives the arm now.
    """

    def __init__(self, stop_file: str | Path, keyboard: int | None = 0) -> None:
        self._file, self._keyboard = Path(stop_file), keyboard
        self._ended = threading.Event()
        self._typed: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reason: str | None = None
        self._before: dict[Any, Any] = {}
        self.commands: dict[str, Callable[[], None]] = {}
        self.taken = False

    def __enter__(self) -> Self:
        self._file.unlink(missing_ok=True)
        for name in STOP_SIGNALS:
            self._before[name] = signal.signal(name, self._signalled)
        self._reader = threading.Thread(target=self._read, name="keyboard", daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._reader.join()
        for name, handler in self._before.items():
            signal.signal(name, handler)

    def stopped(self) -> str | None:
        """Why the run shall end, if it shall."""
        if self._reason is None and self._file.exists():
            self._reason = f"file {self._file}"
        return self._reason

    def typed(self) -> str | None:
        """The next line that was typed and is no command, without its end."""
        try:
            line = self._typed.get_nowait()
        except queue.Empty:
            return None
        if line not in self.commands:
            return line
        self.commands[line]()
        return None

    def _signalled(self, number: int, frame: Any) -> None:
        self._reason = signal.Signals(number).name

    def _in_background(self) -> bool:
        """Whether the terminal is somebody else's now: reading from it would stop this process."""
        fd = self._keyboard
        return fd is not None and os.isatty(fd) and os.tcgetpgrp(fd) != os.getpgrp()

    def _read(self) -> None:
        """Lines as they come, without ever being caught in a read that nobody ends."""
        rest = b""
        while self._keyboard is not None and not self._ended.is_set():
            if self._in_background():
                self._ended.wait(0.1)
                continue
            if not select.select([self._keyboard], [], [], 0.1)[0]:
                continue
            if not (piece := os.read(self._keyboard, 4096)):
                return  # end of file: nobody is there
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                if not line.strip():
                    self._reason = self._reason or "the Enter key"
                self._typed.put(line.decode(errors="replace").strip())
