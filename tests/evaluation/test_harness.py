"""The harness's own runner plays our chains against vla-serve, and finds what vla-evaluate finds."""

from pathlib import Path

import anyio
import numpy as np
import pytest
import vla_eval
import yaml
from hydra import compose, initialize_config_module
from served import command

from vla.evaluation.harness import Chains
from vla.evaluation.run import run
from vla.spec import UserError

ROOT = Path(__file__).parents[2]

CHECKPOINT = str(ROOT / "checkpoints" / "gr1_small")
RULE = "+override.gripper_rule=threshold"  # nothing is drawn: the harness sends no seeds
SMALL = ["env.world.cameras.static=[64,64]", "env.world.cameras.wrist=[64,64]"]


def test_its_runner_finds_what_vla_evaluate_finds(tmp_path):
    with initialize_config_module("conf", version_base="1.3"):
        asked = [
            f"checkpoint={CHECKPOINT}",
            RULE,
            "chains=4:6",
            "workers=1",
            "videos=0",
            "out=unused",
            "cameras=as_env",
            *SMALL,
        ]
        ours = run(compose("evaluate", asked))[0]["chains"]
    config = yaml.safe_load((ROOT / "benchmarks" / "vla_eval.yaml").read_text())
    with command(f"checkpoint={CHECKPOINT}", RULE, f"hydra.run.dir={tmp_path / 'notes'}") as (_, port):
        changes = {"params": {"chains": "4:6", "overrides": SMALL}}
        theirs = vla_eval.run(
            config,
            server_url=f"ws://127.0.0.1:{port}/vla-eval",
            output_dir=tmp_path,
            docker=False,
            benchmark_overrides=changes,
        )
    episodes = [task["episodes"] for task in theirs[0]["tasks"]]
    assert [len(e) for e in episodes] == [1, 1]
    for (episode,), chain in zip(episodes, ours, strict=True):
        assert episode["metrics"]["completed_subtasks"] == chain["solved"]
        assert episode["metrics"]["success"] == (chain["solved"] == 5)
        assert episode["steps"] == sum(attempt["steps"] for attempt in chain["attempts"])
    assert sum(chain["solved"] for chain in ours) > 0


@pytest.fixture(scope="module")
def chains():
    made = Chains(chains=2, overrides=SMALL, send_wrist_image=False, send_state=False)
    yield made
    made.cleanup()


def test_a_server_is_sent_what_it_asks_for(chains):
    anyio.run(chains.start_episode, chains.get_tasks()[1])
    seen = anyio.run(chains.get_observation)
    assert set(seen) == {"images", "task_description"}
    assert set(seen["images"]) == {"static"}
    assert seen["images"]["static"].shape == (64, 64, 3)
    assert seen["task_description"] == chains.benchmark.instruction(chains.chains[1].tasks[0])
    assert chains.get_metadata() == {"max_steps": 1800}
    np.testing.assert_array_equal(chains.get_hold_action(None)["actions"], chains.world.holding()[0])


@pytest.mark.parametrize("action", [np.zeros(6), np.full(7, np.nan)])
def test_an_action_that_does_not_fit_is_named(chains, action):
    chains._task = chains.get_tasks()[0]
    with pytest.raises(UserError, match="7 finite numbers are needed"):
        chains.step({"actions": action})


def test_mistakes_are_told():
    with pytest.raises(UserError, match="names has front but the cameras are static, wrist"):
        Chains(chains=1, names={"front": "rgb"})
    with pytest.raises(UserError, match="outside 0:1000"):
        Chains(chains="999:1001")
