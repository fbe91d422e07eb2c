"""vla-evaluate asks a server of its own accord: the same checkpoint gives the same chains, action for action."""

import sys
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_module
from omegaconf import open_dict
from served import command

import envs.playtable
from vla.checkpoint import save_checkpoint
from vla.evaluation.long_horizon import evaluate
from vla.evaluation.run import build_policy, run
from vla.executor import RecedingHorizon

sys.path.append(str(Path(__file__).parents[1] / "policies" / "gr1"))
from short_chains import ShortChains
from small_gr1 import config as small
from small_gr1 import policy as small_policy

SIZES = {"static": [20, 20], "wrist": [12, 12]}
CHAINS = range(3)


class Actions:
    """Keeps what was done in a chain."""

    imagines = False

    def __init__(self):
        self.rows = []

    def step(self, observation, action, imagined):
        self.rows.append(action)


def composed(*overrides):
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("evaluate", ["chains=3", "workers=1", "videos=0", "execute=2", "out=unused", *overrides])
    with open_dict(config):
        config.env.benchmark = {"_target_": "short_chains.ShortChains"}
    config.env.world.num_worlds, config.env.world.cameras = 2, SIZES
    return config


def played(config):
    """Chain -> (tasks done, every action of it)."""
    world, policy = envs.playtable.make("D", 2, cameras=SIZES), build_policy(config)
    kept = {}
    results = evaluate(
        world, policy, ShortChains(), CHAINS, RecedingHorizon(2), record=lambda n, chain, done: kept.setdefault(n, Actions())
    )
    solved = {result["chain"]: result["solved"] for result in results}
    world.close()
    return {number: (solved[number], np.stack(kept[number].rows)) for number in CHAINS}


def test_a_server_gives_the_same_chains_as_its_checkpoint_here(tmp_path):
    world = envs.playtable.make("D", 1, cameras=SIZES)
    checkpoint = save_checkpoint(tmp_path / "tiny", small_policy(world.vla_spec, history=3), small(history=3), {"step": 0})
    world.close()
    here = composed(f"checkpoint={checkpoint}")
    with command(f"checkpoint={checkpoint}", f"hydra.run.dir={tmp_path / 'notes'}") as (_, port):
        there = composed("policy=remote", f"policy.url=ws://127.0.0.1:{port}")
        far, near = played(there), played(here)
        for number in CHAINS:
            assert far[number][0] == near[number][0]
            np.testing.assert_array_equal(far[number][1], near[number][1])
        assert sum(solved for solved, _ in near.values()) > 0
        commands = [run(config)[0]["chains"] for config in (there, here)]  # as vla-evaluate does it, in a process of its own
    assert commands[0] == commands[1]
    assert [chain["solved"] for chain in commands[0]] == [near[number][0] for number in CHAINS]
