"""One simulator in a process of its own, in another interpreter: started, asked, and ended. See far/server.py."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from envs.elsewhere.far import server
from vla.spec import Spec, UserError

GRACE = 5.0
"""Seconds by which a process that was told to stop, or that says itself that it hangs, may be late."""
OWN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
"""Environment variables that speak of this interpreter."""
CALM = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "LP_NUM_THREADS": "1",
    "MUJOCO_GL": "egl",
    "PYOPENGL_PLATFORM": "egl",
}
"""One thread a process, and pictures without a display, unless the user says otherwise."""


class Gone(Exception):
    """The process crashed, hung or raved, and is ended; says which, in words that follow on "world 3 of x"."""


class Process:
    """Starts the simulator `adapter` (a file) under the interpreter `python`; nothing is said to it yet."""

    def __init__(self, python: Path, adapter: Path) -> None:
        here, there = socket.socketpair()
        self._memory_file = tempfile.TemporaryFile(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)  # noqa: SIM115
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # a file, so that whoever talks much is not blocked
        handed = (there.fileno(), self._memory_file.fileno())
        command = [str(python), "-I", str(Path(server.__file__)), str(adapter), *map(str, handed)]
        environment = CALM | {name: value for name, value in os.environ.items() if name not in OWN}
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=self._said, stderr=self._said, env=environment, pass_fds=handed
            )
        except OSError as error:
            raise UserError(f"the interpreter {python} cannot be started ({error}): correct `python`.") from error
        finally:
            there.close()
        self._link = here
        self.pid = self._process.pid
        self.views: dict[str, np.ndarray] = {}
        self.spec = Spec()
        self.offers: frozenset[str] = frozenset()

    def open(self, request: Mapping[str, Any]) -> None:
        """Send what opens the world; `opened` waits for the reply."""
        self.send({"call": "open", "protocol": server.PROTOCOL, **request})

    def opened(self) -> None:
        """Take in what the world says of itself: `spec`, `offers`, and `views`, the arrays of its observation in memory."""
        reply = self.receive()
        try:
            if reply["protocol"] != server.PROTOCOL:
                raise ValueError(f"protocol {reply['protocol']}, this side speaks {server.PROTOCOL}")
            self.spec = Spec.from_dict(reply["spec"])
            self.offers = frozenset(reply["offers"])
            placed, size = server.layout(reply["spec"], "expert" in self.offers)
            if os.fstat(self._memory_file.fileno()).st_size != size:
                raise ValueError(f"its memory is not of {size} bytes")
            self.views = server.views(placed, mmap.mmap(self._memory_file.fileno(), size))
        except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
            self.kill()
            raise Gone(f"does not describe itself as it should ({type(error).__name__}: {error})") from error

    def send(self, request: Mapping[str, Any]) -> None:
        """Send a request; `receive` has to follow before the next."""
        self._asked = request
        with contextlib.suppress(OSError):  # where it has gone, `receive` finds out how
            server.send(self._link, request)

    def receive(self) -> dict[str, Any]:
        """The reply. Raises Gone where none comes, and UserError where the simulator says that it cannot."""
        call, limit = self._asked["call"], self._asked["limit"]
        try:
            reply = server.receive(self._link, time.monotonic() + limit + GRACE)
        except TimeoutError:
            self.kill()
            raise Gone(f"did not answer {call} within {limit:g} s and was killed") from None
        except EOFError:
            raise Gone(self._how_it_ended(call, limit)) from None
        except ValueError as error:
            self.kill()
            raise Gone(f"answered {call} with {error} and was killed") from error
        if "error" in reply:
            raise UserError(f"refuses {call} ({reply['error']})")
        return reply

    def _how_it_ended(self, call: str, limit: float) -> str:
        try:
            status = self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.kill()
            return f"closed the connection during {call} and was killed"
        self._said.seek(0)
        said = self._said.read().decode("utf-8", "replace")
        if "Timeout (" in said:
            places = re.findall(r"most recent call first\):\n\s*(File .*)", said[said.rindex("Timeout (") :])
            return f"did not answer {call} within {limit:g} s and was ended" + (f" (it was at {places[-1]})" if places else "")
        words = [line.strip() for line in said.splitlines() if line.strip()][-1:]
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return f"{how} during {call}" + "".join(f" (its last words: {line[:300]})" for line in words)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def part(self) -> None:
        """Close the connection, which tells the process to end; `close` waits for that."""
        self._link.close()

    def close(self) -> None:
        """End the process, by force where it does not end by itself, and give back what was shared with it."""
        self.part()
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.kill()
        self.views = {}
        self._memory_file.close()
        self._said.close()
