"""A world under Pythons that are older than ours, each in a virtual environment made for the test."""

import os
import signal
import subprocess
from pathlib import Path

import msgpack
import numpy as np
import pytest
from toy_worlds import trajectory, worlds


@pytest.fixture(scope="module", params=["3.8", "3.9", "3.10"])
def other_python(request, tmp_path_factory):
    """A virtual environment of another Python with nothing but NumPy and msgpack."""
    folder = tmp_path_factory.mktemp("python") / "venv"
    found = [*Path.home().glob(f".pyenv/versions/{request.param}.*/bin/python")]
    python = str(found[0]) if found else request.param
    for command in (
        ["uv", "venv", "--quiet", "--no-python-downloads", "--python", python, str(folder)],
        ["uv", "pip", "install", "--quiet", "--python", str(folder), "numpy", "msgpack"],
    ):
        try:
            made = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"no Python {request.param} with NumPy here: {error}")
        if made.returncode:
            pytest.skip(f"no Python {request.param} with NumPy here: {made.stderr.strip()[-300:]}")
    return str(folder / "bin" / "python")


def test_another_python(other_python):
    with worlds(python=other_python) as there, worlds() as here:
        for each in (there, here):
            each.reset(seed=1, options={"task": np.array([0, 1])})
        np.testing.assert_array_equal(trajectory(there, 5), trajectory(here, 5))
        assert msgpack.unpackb(there.save()[0])["task"] == "left"
        os.kill(there._processes[0].pid, signal.SIGKILL)
        np.testing.assert_array_equal(trajectory(there, 2), trajectory(here, 2))
