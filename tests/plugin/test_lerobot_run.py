"""lerobot-eval and lerobot-rollout, unmodified and as processes, with a policy of ours."""

import json

import pytest
from lerobot.policies.factory import make_pre_post_processors
from lerobot_folders import dataset
from tiny_plugin import EPISODES, made, run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """As lerobot-train leaves it."""
    folder = tmp_path_factory.mktemp("made")
    policy, meta = made(dataset(folder / "tiny"))
    policy.save_pretrained(folder / "policy")
    for processor in make_pre_post_processors(policy.config, dataset_stats=meta.stats):
        processor.save_pretrained(folder / "policy")
    return folder / "policy"


def test_lerobot_eval(checkpoint, tmp_path):
    """In processes of their own; the same seeds give the same result."""
    run(
        "lerobot-eval", f"--policy.path={checkpoint}", "--eval.n_episodes=2", "--eval.batch_size=2", f"--output_dir={tmp_path}",
        "--seed=0", *EPISODES,
    )  # fmt: skip
    overall = json.loads((tmp_path / "eval_info.json").read_text())["overall"]
    assert overall["n_episodes"] == 2
    assert len(overall["video_paths"]) == 2


def test_lerobot_rollout(checkpoint):
    said = run(
        "lerobot-rollout", "--strategy.type=base", f"--policy.path={checkpoint}", "--robot.type=playtable", "--device=cpu",
        "--robot.sizes={static: [32, 32], wrist: [32, 32]}", "--task=open the drawer", "--duration=1", "--fps=30",
        "--return_to_initial_position=false", "--play_sounds=false",
    )  # fmt: skip
    assert "error" not in said.lower()
