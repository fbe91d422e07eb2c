"""vla-evaluate plays LeRobot's policies on our chains and reports them like any other."""

import json
import os
import subprocess
import sys

import pytest
from lerobot_folders import dataset, train


@pytest.mark.parametrize("kind", ["act", "diffusion"])
def test_vla_evaluate(kind, tmp_path):
    data = dataset(tmp_path / "data")
    policy = train(kind, data, tmp_path / kind)
    command = [
        sys.executable, "-m", "vla.commands.evaluate", "policy=lerobot", f"policy.path={policy}", f"policy.data={data}",
        "chains=1", "execute=8", "workers=1", "videos=0", f"out={tmp_path / 'out'}", f"hydra.run.dir={tmp_path / 'hydra'}",
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "out/results.json").read_text())
    assert result["settings"]["policy"] == f"{kind} of LeRobot, {kind}"
    assert len(result["settings"]["weights_sha256"]) == 64
    assert result["settings"]["cameras"] == {"static": [32, 32], "wrist": [32, 32]}
    assert [c["attempts"][0]["steps"] for c in result["chains"]] == [360]
    assert (tmp_path / "out/report.html").stat().st_size > 1000
