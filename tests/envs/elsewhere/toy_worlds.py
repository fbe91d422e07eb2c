"""Worlds of toy_far.py in processes of their own."""

import contextlib
import sys
from pathlib import Path

import numpy as np

from envs.elsewhere import Elsewhere

TOY = str(Path(__file__).parent / "toy_far.py")
PUSH = np.array([[1.0, 0.0], [-0.5, 0.0]])


@contextlib.contextmanager
def worlds(num_worlds=2, python=sys.executable, adapter=TOY, **changes):
    settings = {"name": "toy", "tasks": ["left", "right", "lost"], "cameras": {"static": (4, 6)}, **changes}
    world = Elsewhere(adapter=adapter, python=python, num_worlds=num_worlds, **settings)
    try:
        yield world
    finally:
        world.close()


def trajectory(world, steps, actions=PUSH):
    return np.array([world.step(actions)[0]["observation.state"] for _ in range(steps)])
