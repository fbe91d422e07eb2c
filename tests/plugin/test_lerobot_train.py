"""lerobot-train, unmodified and as a process: it finds the plug-in, trains, evaluates on the way and saves for both worlds."""

import json

import pytest
from lerobot_folders import dataset
from tiny_plugin import EPISODES, TINY, run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two steps of lerobot-train with evaluation in the playtable after the second."""
    folder = tmp_path_factory.mktemp("trained")
    data = dataset(folder / "tiny")
    said = run(
        "lerobot-train", "--policy.type=gr1", f"--policy.changes={json.dumps(TINY['gr1'])}", "--policy.device=cpu",
        "--policy.push_to_hub=false", "--dataset.repo_id=local/tiny", f"--dataset.root={data}", "--steps=2", "--batch_size=2",
        "--num_workers=0", "--log_freq=1", "--env_eval_freq=2", "--eval.n_episodes=2", "--eval.batch_size=2",
        "--eval.use_async_envs=false", f"--output_dir={folder / 'out'}", *EPISODES,
    )  # fmt: skip
    return folder / "out", said


def test_lerobot_train(trained):
    out, said = trained
    assert "arm" in said  # the loss's parts are in the log
    assert "'n_episodes': 2" in said  # and the evaluation on the way
    saved = {file.name for file in (out / "checkpoints/last/pretrained_model").iterdir()}
    assert {"config.json", "model.safetensors", "policy_preprocessor.json", "train_config.json"} <= saved
    assert {"config.yaml", "spec.json", "training.json"} <= saved


def test_vla_evaluate_takes_what_lerobot_train_saved(trained, tmp_path):
    checkpoint = trained[0] / "checkpoints/last/pretrained_model"
    run("vla-evaluate", f"checkpoint={checkpoint}", "chains=1", "workers=1", "videos=0", f"out={tmp_path}")
    result = json.loads((tmp_path / "results.json").read_text())
    assert result["settings"]["cameras"] == {"static": [32, 32], "wrist": [32, 32]}
    assert len(result["chains"][0]["attempts"]) == 1
