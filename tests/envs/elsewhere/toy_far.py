"""A far world small enough to reason about: a point that actions push, with as many ways to go wrong as tests ask for.

The start decides x unless it is given, the task where to. Runs in any Python that has NumPy, without gymnasium.
"""

import os
import signal
import time

import numpy as np


class World:
    action_kind = "relative_pose"
    control_hz = 10
    frame = "line"
    state = (("x", "m"), ("steps", "1"))
    environment_state = (("goal", "m"),)
    action = (("dx", "1", -1, 1), ("spare", "1", -1, 1))

    def __init__(self, cameras, wrong=None, at=None, flag=None, shape=2, length=50):
        self.sizes, self.wrong, self.at, self.flag, self.shape, self.length = cameras, wrong, at, flag, shape, length
        self.drawn = 0
        if wrong == "open":
            raise ValueError("no such table")

    def reset(self, seed, task, x=None):
        if task == "lost":
            raise ValueError("there is no task 'lost'")
        self.x, self.steps, self.goal = float(np.random.default_rng(seed).random()), 0, {"left": -1.0, "right": 2.0}[task]
        if x is not None:
            self.x = x[0]
        self.success = False

    def step(self, action):
        self.steps += 1
        if self.steps == self.at:
            self.go_wrong()
        self.x += 0.1 * float(np.clip(action[0], -1, 1))
        self.success = abs(self.x - self.goal) < 0.05
        return -abs(self.x - self.goal), self.success, self.steps >= self.length

    def go_wrong(self):
        """In the way asked for; with a flag, a file, only where it does not exist yet, so that it happens once."""
        if self.flag:
            if os.path.exists(self.flag):
                return
            open(self.flag, "w").close()
        if self.wrong == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.wrong == "exit":
            print("the table fell over")
            raise SystemExit(7)
        elif self.wrong == "hang":
            time.sleep(3600)
        elif self.wrong == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif self.wrong == "raise":
            raise ZeroDivisionError("by nothing")
        elif self.wrong == "forget":
            self.x += 5
            os.kill(os.getpid(), signal.SIGKILL)

    def observe(self):
        return {"observation.state": np.array([self.x, self.steps][: self.shape]), "observation.environment_state": [self.goal]}

    def told(self):
        return {"steps": self.steps}

    def expert(self):
        return np.clip([(self.goal - self.x) / 0.1, 0], -1, 1)

    def draw(self, camera):
        self.drawn += 1
        return np.full((*self.sizes[camera], 3), self.steps, np.uint8)

    def save(self):
        return np.array([self.x, self.steps]).tobytes()

    def restore(self, saved):
        self.x, steps = np.frombuffer(saved)
        self.steps = int(steps)
