"""A policy for the toy arm that does what the instruction says: behave, or misbehave."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from toy_arm import SPEC

from vla.spec import PLAN, TASK


class ToyPolicy:
    """Chunks whose dx counts up within the chunk and dy counts chunks, both in hundredths."""

    def __init__(self, hz: float = 50.0, horizon: int = 12, history: bool = False):
        self.spec = replace(SPEC, control_hz=hz)
        self.horizon, self.history = horizon, history

    def begin(self, seeds):
        return {"asked": np.zeros(len(seeds), int), "seen": np.zeros(len(seeds), int)}

    def remember(self, observation, memory):
        return {**memory, "seen": memory["seen"] + 1}

    def act(self, observation, memory):
        sentence = observation[TASK][0]
        if sentence == "raise" and memory["asked"][0] == 2:
            raise RuntimeError("weights of cheese")
        if sentence == "hang" and memory["asked"][0] == 2:
            time.sleep(3600)
        chunk = np.zeros((1, self.horizon, 3), np.float32)
        chunk[0, :, 0] = np.arange(self.horizon) / 100
        chunk[0, :, 1] = (memory["asked"][0] % 50) / 100
        chunk[0, :, 2] = memory["seen"][0] / 10_000
        if memory["asked"][0] % 3 == 2:
            chunk[0, 1:] = {"nan": np.nan, "wild": 5.0}.get(sentence, chunk[0, 1:])
        return chunk, {**memory, "asked": memory["asked"] + 1, "seen": memory["seen"] + 1}


class Continuing(ToyPolicy):
    """dx counts on from the plan that it is shown."""

    continues = True

    def act(self, observation, memory):
        chunk, memory = super().act(observation, memory)
        plan = observation.get(PLAN, np.zeros((1, 0, 3)))
        if plan.shape[1]:
            chunk[0, :, 0] = plan[0, 0, 0] + np.arange(self.horizon) / 100
        return chunk, memory


class Unbuildable:
    def __init__(self):
        raise ValueError("no such weights")


class NeverReady:
    """Is loaded for longer than anybody waits, and says so in the working folder."""

    def __init__(self):
        Path("building").touch()
        time.sleep(3600)


class Imagining(ToyPolicy):
    """Sees ahead: pictures as bright as the number of the chunk that they came with."""

    foresight_steps = 3

    def foresee(self, memory):
        return {"static": np.full((1, 2, 2, 3), memory["asked"][0], np.uint8)}


class HundredCommands:
    """A rule for sentences of one word: "one" is done when the arm was commanded a hundred times, others never."""

    def __init__(self, world):
        self.world = world

    def begin(self, sentence):
        self.sentence = sentence
        return "" if " " in sentence else f"go_{sentence}"

    def solved(self):
        return self.sentence == "one" and len(self.world.log) > 100
