"""LeRobot's own commands, unmodified, as processes, drive the simulated robot: its plug-in makes it known to them."""

import os
import subprocess
import sys
import threading
import time
import tty
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.factory import make_pre_post_processors

from envs.playtable.chains import evaluation_chains
from envs.robot.simulated.wire import Wire

SIZES = {"static": (24, 24), "wrist": (24, 24)}


@pytest.fixture(scope="module")
def start():
    """Where the hand is at first, (x, y, z)."""
    return evaluation_chains(1)[0].robot_obs[:3]


@pytest.fixture
def lerobot(tmp_path):
    """Runs a command of LeRobot with a robot in `folder`, while somebody holds the keys d and w down; gives the robot's end."""
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_LEROBOT_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}

    def run(command, folder, *arguments, keys=True):
        driven = (
            ["--teleop.type=playtable_keys", f"--teleop.terminal={os.ttyname(theirs)}", "--teleop.speed=0.2"] if keys else []
        )
        robot = ["--robot.type=playtable", f"--robot.folder={folder}", "--robot.sizes={static: [24, 24], wrist: [24, 24]}"]
        line = [str(Path(sys.executable).with_name(command)), *robot, *driven, *arguments]
        process = subprocess.Popen(
            line, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        thread = threading.Thread(target=press, args=(process, ours), daemon=True)
        thread.start()
        said = process.communicate(timeout=1800)[0].decode(errors="replace")
        thread.join()
        assert process.returncode == 0, said[-3000:]
        return Wire(folder, SIZES)

    yield run
    os.close(ours)
    os.close(theirs)


def press(process, terminal):
    while process.poll() is None:
        os.write(terminal, b"dw")
        time.sleep(0.05)


def test_teleoperate(lerobot, tmp_path, start):
    wire = lerobot("lerobot-teleoperate", tmp_path / "robot", "--fps=30", "--teleop_time_s=2")
    assert np.all(wire.newest()["state"][:2] > start[:2] + 0.05)


def test_record_and_replay(lerobot, tmp_path, start):
    data = ["--dataset.repo_id=me/play", f"--dataset.root={tmp_path / 'data'}", "--play_sounds=false"]
    wire = lerobot(
        "lerobot-record", tmp_path / "robot", *data, "--dataset.fps=30", "--dataset.num_episodes=1", "--dataset.video=false",
        "--dataset.episode_time_s=2", "--dataset.single_task=open the drawer", "--dataset.push_to_hub=false",
    )  # fmt: skip
    recorded = wire.newest()["state"]
    assert np.all(recorded[:2] > start[:2] + 0.05)
    table = pyarrow.parquet.read_table(next((tmp_path / "data").glob("data/*/*.parquet")))
    actions = np.stack(table["action"].to_numpy())
    assert actions.shape[1] == 7
    assert np.isclose(actions[:, :2], 0.2).any(0).all()
    assert np.stack(table["observation.state"].to_numpy())[0, :3] == pytest.approx(start, abs=0.02)
    wire = lerobot("lerobot-replay", tmp_path / "again", *data, "--dataset.episode=0", keys=False)
    assert wire.header["commands"] == len(actions) + 1  # and the hold at the end
    np.testing.assert_allclose(wire.newest()["state"][:2], recorded[:2], atol=0.06)


def test_rollout(lerobot, tmp_path):
    state, action = (PolicyFeature(kind, (n,)) for kind, n in ((FeatureType.STATE, 15), (FeatureType.ACTION, 7)))
    pictures = {f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, *size)) for name, size in SIZES.items()}
    config = ACTConfig(
        input_features={"observation.state": state, **pictures}, output_features={"action": action}, device="cpu",
        chunk_size=10, n_action_steps=10, dim_model=32, n_heads=2, dim_feedforward=32, n_encoder_layers=1,
        n_vae_encoder_layers=1, pretrained_backbone_weights=None, push_to_hub=False,
    )  # fmt: skip
    torch.manual_seed(0)
    ACTPolicy(config).save_pretrained(tmp_path / "act")
    for processor in make_pre_post_processors(config):
        processor.save_pretrained(tmp_path / "act")
    wire = lerobot(
        "lerobot-rollout", tmp_path / "robot", f"--policy.path={tmp_path / 'act'}", "--task=open the drawer", "--duration=2",
        "--fps=30", "--return_to_initial_position=false", "--play_sounds=false", keys=False,
    )  # fmt: skip
    assert wire.header["commands"] > 5
