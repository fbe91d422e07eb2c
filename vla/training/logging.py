"""What a training run tells: one readable line, TensorBoard, W&B where asked for, and the facts kept in training.json."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
import uuid
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from vla.spec import UserError

PACKAGES = ("torch", "numpy", "accelerate", "peft", "transformers", "diffusers", "zarr", "mujoco", "safetensors", "hydra-vla")


class Smooth:
    """Debiased moving averages of scalars, kept on the device so that a step never waits for the GPU."""

    def __init__(self, decay: float = 0.98) -> None:
        self.decay = decay
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    @torch.no_grad()
    def update(self, values: Mapping[str, Tensor | float]) -> None:
        """Take in one step's values; a name may be absent in some steps."""
        for name, value in values.items():
            value = torch.as_tensor(value).detach().float()
            before = self._sums.get(name, torch.zeros_like(value))
            self._sums[name] = before.lerp(value.to(before.device), 1 - self.decay)
            self._weights[name] = 1 - (1 - self._weights.get(name, 0.0)) * self.decay

    def values(self) -> dict[str, float]:
        """The averages as floats."""
        if not self._sums:
            return {}
        sums = torch.stack(list(self._sums.values())).tolist()
        return {name: total / self._weights[name] for name, total in zip(self._sums, sums, strict=True)}

    def state(self) -> dict[str, tuple[float, float]]:
        """What `load` needs to go on as if nothing had happened (JSON-able)."""
        return {name: (float(total), self._weights[name]) for name, total in self._sums.items()}

    def load(self, state: Mapping[str, tuple[float, float]], device: torch.device) -> None:
        self._sums = {name: torch.tensor(total, device=device) for name, (total, _) in state.items()}
        self._weights = {name: weight for name, (_, weight) in state.items()}


def line(step: int, fraction: float, losses: Mapping[str, float], lr: float, rate: float, eta: float, total: int | None) -> str:
    """One line of the log:

    step 1,200/20,000    6.0 %  loss 0.1234 (action 0.1000, ...)  lr 9.8e-04  812 windows/s  3.1 GB  ETA 0:12:31


    `rate` in windows a second, `eta` in seconds, `total` the number of steps where it is known.
    """
    parts = ", ".join(f"{name} {value:.4f}" for name, value in losses.items() if name != "loss")
    steps = f"{step:,}/{total:,}" if total else f"{step:,}"
    return (
        f"step {steps}  {100 * fraction:5.1f} %  loss {losses['loss']:.4f}{f' ({parts})' if parts else ''}"
        f"  lr {lr:.1e}  {rate:,.0f} windows/s  {memory()}  ETA {timedelta(seconds=round(eta))}"
    )


def memory() -> str:
    """The most memory used so far: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available() and (peak := torch.cuda.max_memory_allocated()):
        return f"{peak / 2**30:.1f} GB GPU"
    unit = 2**30 if sys.platform == "darwin" else 2**20  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit:.1f} GB"


class Board:
    """Scalars and pictures to TensorBoard (`out/tensorboard`), and to W&B if `wandb` (its `init` arguments) is given."""

    def __init__(self, out: Path, step: int, config: Mapping[str, Any], wandb: Mapping[str, Any] | None) -> None:
        self._wandb = None
        if wandb is not None:
            if importlib.util.find_spec("wandb") is None:
                raise UserError(
                    "trainer.wandb is set but wandb is absent: run `uv pip install wandb` or set trainer.wandb=null."
                )
            # The run's id lives beside the checkpoints, so that a resumed run goes on with the same curve.
            id_file = out / "wandb_id.txt"
            if not id_file.exists():
                id_file.write_text(uuid.uuid4().hex)
            self._wandb = importlib.import_module("wandb").init(
                id=id_file.read_text(), resume="allow", config=dict(config), dir=str(out), **wandb
            )
        # purge_step drops what an interrupted run wrote after the checkpoint from which this one goes on.
        self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(dict(values), step=step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """image: uint8 (H, W, 3)."""
        self._writer.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()
        if self._wandb:
            self._wandb.finish()


def circumstances(device: torch.device) -> dict[str, Any]:
    """What made these numbers: versions, commit and machine."""
    return {
        "versions": {"python": platform.python_version()} | {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _commit(),
        "host": {
            "cpu": cpu_name(),
            "cores": available_cores(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "system": platform.platform(),
        },
    }


def cpu_name() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [text.split(":", 1)[1].strip() for text in lines if text.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1))
    temporary.replace(path)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    here = Path(__file__).parent
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None
