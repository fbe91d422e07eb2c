"""One run on two processes, started as a user would."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from test_commands import ROBOT, TINY, weights, write


def train(folder, out):
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "vla.commands.train"),
        *(*TINY, "data.path=robot", "data.cache=cache", "trainer.keep=9", f"out={out}"),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_train_one_policy_and_go_on_bit_by_bit(tmp_path):
    write(tmp_path / "robot", ROBOT)
    said = train(tmp_path, "whole")
    assert said.count("step 4/4  100.0 %") == 1
    assert "2 process(es)" in said
    assert "steps of 16" in said  # 8 windows on each
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for name in ("checkpoint-00000004", "last"):
        path = tmp_path / "cut" / name
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
    assert "going on from cut/checkpoint-00000002" in train(tmp_path, "cut")
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert json.loads(Path(tmp_path / "cut/last/training.json").read_text())["step"] == 4
