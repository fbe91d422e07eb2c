"""Simulators in other interpreters as one vector world: N processes at once, each with one world.

A process that crashes, hangs or raves is told of in one sentence and started anew, and its world is brought to where it was:
put into the episode's start and shown the same actions again. Whether that gives the same state is checked. More than
`restarts` of them in one episode are an error.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from envs.elsewhere.far.server import ENVIRONMENT_STATE, STATE
from envs.elsewhere.process import Gone, Process
from vla.spec import IMAGE_PREFIX, UserError

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LIMITS = {"open": 300.0, "reset": 120.0, "step": 60.0}


@dataclass(frozen=True)
class State:
    """What a benchmark sees of a world: its task, whether it was solved since the reset, and whether the episode has ended."""

    task: str
    success: bool
    ended: bool


@dataclass
class _Past:
    """How a world came to where it is: the request that started its episode, and the actions since."""

    start: dict[str, Any]
    actions: list[list[float]] = field(default_factory=list)
    restarts: int = 0


class Elsewhere(VectorEnv):
    """N worlds of the simulator `name`, each with one task at a time.

    adapter: a file in envs/elsewhere/far without its ending, or the path of another. python: the interpreter that has the
    simulator; a relative path begins at this checkout, where `make worlds` puts it. tasks: the tasks' names, to which the
    reset option `task` counts. cameras: name -> (height, width). options: the adapter's own. versions: package -> the version
    that must be there. limits: seconds for the requests "open", "reset" (and restore) and "step" (and all others).
    """

    INSTALL = "make worlds NAME={}"
    """The command that makes the interpreter."""
    AT: Mapping[str, int] = {}
    """Further reset options, which the adapter's reset takes: name -> how many numbers for each world."""

    def __init__(
        self,
        name: str,
        adapter: str,
        python: str,
        tasks: Sequence[str],
        num_worlds: int = 1,
        cameras: Mapping[str, tuple[int, int]] | None = None,
        options: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
        limits: Mapping[str, float] | None = None,
        restarts: int = 3,
        scene: Sequence[str] = (),
    ) -> None:
        self.name, self.tasks, self.num_envs, self.restarts = name, tuple(tasks), num_worlds, restarts
        self._processes: list[Process] = []
        if num_worlds < 1 or not self.tasks:
            raise UserError(f"{name} has num_worlds={num_worlds} and {len(self.tasks)} tasks: give at least one of each.")
        self.scenes = tuple((scene or [name])[i % max(len(scene), 1)] for i in range(num_worlds))
        self.limits = LIMITS | dict(limits or {})
        self._install = self.INSTALL.format(name)
        self._python, self._adapter = _interpreter(name, python, self._install), _adapter(adapter)
        sizes = {camera: [int(side) for side in size] for camera, size in (cameras or {}).items()}
        self._request = {"limit": self.limits["open"], "cameras": sizes, "options": dict(options or {})}
        self._request["versions"] = dict(versions or {})
        self._open()
        self.vla_spec, self.offers = self._processes[0].spec, self._processes[0].offers
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": [], "render_fps": self.vla_spec.control_hz}
        self._make_spaces()
        self._buffers = {
            name: np.zeros((num_worlds, *view.shape), view.dtype) for name, view in self._processes[0].views.items()
        }
        self._seen = np.ones(num_worlds, bool)
        self._rngs = [np.random.default_rng([0, i]) for i in range(num_worlds)]
        self._tasks = np.zeros(num_worlds, int)
        self._outcomes: list[dict[str, Any]] = [{"success": False, "terminated": False, "truncated": False}] * num_worlds
        self._past: list[_Past | None] = [None] * num_worlds
        self.faults: list[str] = []

    def _open(self) -> None:
        """Start all processes at once. What goes wrong here would go wrong again: nothing is tried twice."""
        try:
            for _ in range(self.num_envs):
                self._processes.append(Process(self._python, self._adapter))
            for n, process in enumerate(self._processes):
                process.open(self._opening(n))
            for process in self._processes:
                process.opened()
        except (Gone, UserError) as error:
            self.close_extras()
            raise UserError(
                f"world {self.name!r} under {self._python} cannot be opened: it {error}. "
                f"Mend env.world, or that environment (`{self._install}` builds it anew)."
            ) from error

    def _opening(self, n: int) -> dict[str, Any]:
        """The request that opens world n."""
        return self._request

    def _make_spaces(self) -> None:
        box, spec = gymnasium.spaces.Box, self.vla_spec
        views = self._processes[0].views
        self.single_observation_space = gymnasium.spaces.Dict(
            {
                name: box(0, 255, view.shape, np.uint8)
                if name.startswith(IMAGE_PREFIX)
                else box(-np.inf, np.inf, view.shape, np.float32)
                for name, view in views.items()
            }
        )
        low, high = (np.array([getattr(entry, side) for entry in spec.action], np.float32) for side in ("low", "high"))
        self.single_action_space = box(low, high, dtype=np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start episodes.

        options: `task` (N,) counts in `tasks` (0 where missing); `start` (N,) whole numbers that choose the start, where
        missing drawn from the world's seed; `reset_mask` (N,) restricts to some worlds; those of `AT`, (N, how many).
        """
        options = dict(options or {})
        known = ("task", "start", *self.AT, "reset_mask")
        if unknown := set(options) - set(known):
            raise UserError(f"unknown reset option {min(unknown)!r}: use {', '.join(known[:-1])} or {known[-1]}.")
        rows = np.flatnonzero(self._mask(options.get("reset_mask", np.ones(self.num_envs, bool))))
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int | np.integer) else seed
        if seeds is not None and len(seeds) != self.num_envs:
            raise UserError(f"reset has {len(seeds)} seeds: give one number, or one for each of the {self.num_envs} worlds.")
        for n in rows if seeds is not None else ():
            if seeds[n] is not None:  # type: ignore[index]
                self._rngs[n] = np.random.default_rng(int(seeds[n]))  # type: ignore[index]
        tasks = self._whole("task", options.get("task", np.zeros(self.num_envs)), len(self.tasks), rows)
        starts = self._whole("start", options["start"], 2**31, rows) if "start" in options else None
        at = {name: self._numbers(name, options[name], count) for name, count in self.AT.items() if name in options}
        requests = {}
        for n in rows.tolist():
            self._tasks[n] = tasks[n]
            number = int(starts[n]) if starts is not None else int(self._rngs[n].integers(2**31))
            start = {"call": "reset", "limit": self.limits["reset"], "seed": number, "task": self.tasks[tasks[n]]}
            start["at"] = {name: values[n].tolist() for name, values in at.items()}
            self._past[n] = _Past(start)
            requests[n] = {**start, "draw": bool(self._seen[n])}
        self._ask(requests)
        return self._observation(), {}

    def _mask(self, values: Any) -> np.ndarray:
        mask = np.asarray(values)
        if mask.shape != (self.num_envs,) or mask.dtype.kind not in "biuf":
            raise UserError(f"a mask has shape {mask.shape}: give one True or False for each world, ({self.num_envs},).")
        return mask.astype(bool)

    def _whole(self, name: str, values: Any, end: int, rows: np.ndarray) -> np.ndarray:
        numbers = np.asarray(values)
        wrong = numbers.shape != (self.num_envs,) or numbers.dtype.kind not in "iuf"
        if wrong or not all(0 <= x < end and x == int(x) for x in numbers[rows].tolist()):
            raise UserError(f"reset option {name} is {values}: give {self.num_envs} whole numbers from 0 to {end - 1}.")
        return numbers.astype(np.int64)

    def _numbers(self, name: str, values: Any, count: int) -> np.ndarray:
        numbers, wanted = np.asarray(values, np.float64), (self.num_envs, count)
        if numbers.shape != wanted or not np.isfinite(numbers).all():
            raise UserError(f"reset option {name} has shape {numbers.shape}: give one row of finite numbers a world, {wanted}.")
        return numbers

    def step(self, actions: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One control step under actions (N, A); UserError if not finite. An episode that has ended stands still.

        infos: `success` (N,), whether the task was solved since the reset.
        """
        actions = np.asarray(actions, np.float64)
        wanted = (self.num_envs, len(self.vla_spec.action))
        if actions.shape != wanted:
            raise UserError(f"actions have shape {actions.shape}: give {wanted}.")
        if not np.isfinite(actions).all():
            world, entry = np.argwhere(~np.isfinite(actions))[0]
            name = self.vla_spec.action[entry].name
            raise UserError(f"action of world {world} is {actions[world, entry]} at {name}: give finite numbers.")
        limit = self.limits["step"]
        self._ask(
            {
                n: {"call": "step", "limit": limit, "action": actions[n].tolist(), "draw": bool(self._seen[n])}
                for n in range(self.num_envs)
            }
        )
        for n in range(self.num_envs):
            self._begun(n).actions.append(actions[n].tolist())
        rewards = np.array([outcome["reward"] for outcome in self._outcomes], np.float64)
        terminated, truncated, success = (
            np.array([outcome[kind] for outcome in self._outcomes], bool) for kind in ("terminated", "truncated", "success")
        )
        return self._observation(), rewards, terminated, truncated, {"success": success}

    def look(self, mask: np.ndarray) -> None:
        """Render only where `mask` (N,) is True from now on; elsewhere the last picture repeats."""
        self._seen = self._mask(mask)

    def observe(self, mask: np.ndarray) -> dict[str, np.ndarray]:
        """The observation of this instant, rendered now where `mask` (N,) is True."""
        if self.vla_spec.cameras:
            drawn = np.flatnonzero(self._mask(mask)).tolist()
            self._ask({n: {"call": "draw", "limit": self.limits["step"]} for n in drawn})
        return self._observation()

    def states(self, rows: Sequence[int] | None = None) -> list[State]:
        """What a benchmark sees, for all worlds or for those in `rows`."""
        return [
            State(self.tasks[self._tasks[n]], o["success"], o["terminated"] or o["truncated"])
            for n in (range(self.num_envs) if rows is None else rows)
            for o in [self._outcomes[n]]
        ]

    def save(self) -> list[bytes]:
        """Each world whole; UserError where the simulator does not offer it."""
        if "save" not in self.offers:
            raise UserError(
                f"{self.name} cannot save its worlds: use reset with `start`, which repeats an episode's beginning."
            )
        replies = self._ask({n: {"call": "save", "limit": self.limits["step"]} for n in range(self.num_envs)})
        return [replies[n]["saved"] for n in range(self.num_envs)]

    def restore(self, saved: Sequence[bytes]) -> dict[str, np.ndarray]:
        """Continue from what `save()` gave, in this or another process; returns the observation."""
        if "save" not in self.offers or len(saved) != self.num_envs:
            raise UserError(f"{len(saved)} saved worlds of {self.name}: give the {self.num_envs} that its save() gave.")
        start = {"call": "restore", "limit": self.limits["reset"]}
        self._past = [_Past({**start, "saved": blob}) for blob in saved]
        replies = self._ask({n: {**start, "saved": blob, "draw": bool(self._seen[n])} for n, blob in enumerate(saved)})
        for n, reply in replies.items():
            self._tasks[n] = self.tasks.index(reply["task"])
        return self._observation()

    def _ask(self, requests: Mapping[int, Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
        """Send each world its request, all at once; their replies, with what they observed put into the buffers."""
        for n in requests:
            self._begun(n)
        for n, request in requests.items():
            self._processes[n].send(request)
        replies, gone, refused = {}, {}, None
        for n in requests:
            try:
                replies[n] = self._processes[n].receive()
            except Gone as fault:
                gone[n] = fault
            except UserError as error:  # only after all have answered: the others must not fall out of step
                refused = UserError(f"world {n} of {self.name} {error}: mend what was asked for.")
        if refused:
            raise refused
        for n, fault in gone.items():
            replies[n] = self._revive(n, fault, requests[n])
        for n, reply in replies.items():
            if "saved" not in reply:
                self._take(n, reply, requests[n].get("draw", True))
        return replies

    def _take(self, n: int, reply: dict[str, Any], drawn: bool) -> None:
        self._outcomes[n] = reply
        for name, view in self._processes[n].views.items():
            if drawn or not name.startswith(IMAGE_PREFIX):
                self._buffers[name][n] = view

    def _revive(self, n: int, fault: Gone, request: Mapping[str, Any]) -> dict[str, Any]:
        """Start the process of world n anew, bring the world to where it was, and ask once more."""
        past = self._begun(n)
        while True:
            past.restarts += 1
            sentence = f"world {n} of {self.name} {fault}"
            self.faults.append(sentence)
            if past.restarts > self.restarts:
                raise UserError(f"{sentence}; it was started anew {self.restarts} times in this episode: mend the simulator.")
            print(f"{sentence}; it is started anew ({past.restarts} of {self.restarts})", file=sys.stderr, flush=True)
            self._processes[n].close()
            try:
                process = self._processes[n] = Process(self._python, self._adapter)
                process.open(self._opening(n))
                process.opened()
                if process.spec != self.vla_spec:
                    raise UserError(f"{sentence}, and came back as another world: restart the command.")
                if request["call"] not in ("reset", "restore"):
                    self._catch_up(n, past)
                process.send(request)
                return process.receive()
            except Gone as again:
                fault = again

    def _catch_up(self, n: int, past: _Past) -> None:
        """Play the episode of world n again up to now; UserError where it comes out differently."""
        process = self._processes[n]
        steps = [{"call": "step", "limit": self.limits["step"], "action": action} for action in past.actions]
        for request in (past.start, *steps):
            process.send({**request, "draw": False})
            process.receive()
        for name in (STATE, ENVIRONMENT_STATE):
            if name in process.views and not np.array_equal(process.views[name], self._buffers[name][n], equal_nan=True):
                raise UserError(
                    f"world {n} of {self.name} crashed, and its episode does not repeat itself after {len(past.actions)} "
                    "steps: reset it, or start the command anew."
                )

    def _begun(self, n: int) -> _Past:
        past = self._past[n]
        if past is None:
            raise UserError(f"world {n} of {self.name} was not reset yet: call reset first.")
        return past

    def _observation(self) -> dict[str, np.ndarray]:
        return {name: buffer.copy() for name, buffer in self._buffers.items()}

    def close_extras(self, **kwargs: Any) -> None:
        """End all processes."""
        for process in self._processes:
            process.part()
        for process in self._processes:
            process.close()
        self._processes.clear()


def _interpreter(name: str, python: str, install: str) -> Path:
    path = ROOT / Path(python).expanduser()  # an absolute path stays itself
    if not path.is_file():
        raise UserError(
            f"world {name!r} wants the interpreter {path}, which is not there: run `{install}`, or name the interpreter of "
            "your own environment in env.world.python."
        )
    return path


def _adapter(adapter: str) -> Path:
    path = Path(adapter).expanduser() if adapter.endswith(".py") else HERE / "far" / f"{adapter}.py"
    if not path.is_file():
        raise UserError(f"adapter {adapter!r} is not there ({path}): use one of {HERE / 'far'}, or the path of your own.")
    return path.resolve()
