"""The state of a run beside its checkpoint's weights, so that the same command goes on as if it had never been killed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vla.spec import UserError
from vla.training.logging import write_json

PREFIX = "checkpoint-"
CONFIG = "config.json"
# Keys which may differ when a run goes on. The budget's length is among them: a longer run stretches the rest of the cosine.
FREE = (
    "out",
    *(f"data.{key}" for key in ("path", "mode", "memory_gb", "threads", "device")),  # the data's fingerprint is compared
    "init_from", "init_parts",  # read only at the first start
    *(
        f"trainer.{key}"
        for key in (
            "steps", "cpu_seconds", "minutes", "log_every", "save_every", "keep", "validate_every", "validation_batches",
            "picture_every", "evaluate_every", "wandb", "evaluation",
        )
    ),
)  # fmt: skip


def checkpoints(out: Path) -> list[Path]:
    """The complete checkpoints in `out`, oldest first. (A checkpoint gets its name only when it is complete.)"""
    return sorted(path for path in out.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit() and path.is_dir())


def checkpoint_folder(out: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps belongs."""
    return out / f"{PREFIX}{step:08d}"


def tidy(out: Path, keep: int) -> None:
    """Keep the newest `keep` checkpoints, link `out/last` to the newest, and clear away what a kill left half done."""
    for leftover in (*out.glob(f".{PREFIX}*"), *out.glob(f"old-{PREFIX}*")):
        shutil.rmtree(leftover)
    *old, newest = checkpoints(out)
    link = out / "last.tmp"
    link.unlink(missing_ok=True)
    link.symlink_to(newest.name)
    link.replace(out / "last")
    for folder in old[: max(0, len(old) - (keep - 1))]:
        gone = folder.with_name(f"old-{folder.name}")  # first out of the list of checkpoints, then away file by file
        folder.rename(gone)
        shutil.rmtree(gone)


def tensors(module: nn.Module, average: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copies of the weights as trained (not averaged), buffers, average and the optimizer's moments, in one flat dict."""
    flat = {f"buffer.{name}": buffer for name, buffer in module.named_buffers()}
    flat |= {f"average.{name}": value for name, value in average.items()}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            flat[f"raw.{name}"] = parameter
            flat |= {f"optimizer.{key}.{name}": value for key, value in optimizer.state.get(parameter, {}).items()}
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in flat.items()}


@torch.no_grad()
def load_tensors(
    flat: Mapping[str, Tensor], module: nn.Module, average: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> None:
    """The inverse of `tensors`."""
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    places = {"raw": parameters, "buffer": dict(module.named_buffers()), "average": average}
    for key, value in flat.items():
        kind, _, name = key.partition(".")
        if kind == "optimizer":
            moment, _, name = name.partition(".")
            # A fused AdamW keeps its step counter on the device of the parameter, as it does its moments.
            optimizer.state[parameters[name]][moment] = value.to(parameters[name].device, copy=True)
        else:
            places[kind][name].copy_(value)


def require_same_config(out: Path, config: Mapping[str, Any]) -> None:
    """Raises UserError naming the first key that differs from the config with which the run in `out` began, and both values."""
    if not (out / CONFIG).exists():
        return
    before, now = (_flat(json.loads(text)) for text in ((out / CONFIG).read_text(), json.dumps(config)))
    for key in sorted(before.keys() | now.keys()):
        if any(key == free or key.startswith(f"{free}.") for free in FREE):
            continue
        if before.get(key) != now.get(key):
            raise UserError(
                f"{key} was {before.get(key)!r} when the run in {out} began and is {now.get(key)!r} now: "
                "give the old value to go on, or another out=<folder> to begin anew."
            )


def begin(out: Path, config: Mapping[str, Any]) -> None:
    """Make the run's folder and note its config there, unless it is there already."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / CONFIG).exists():
        write_json(out / CONFIG, config)


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(config, Mapping):
        return {k: v for key, value in config.items() for k, v in _flat(value, f"{prefix}{key}.").items()}
    return {prefix[:-1]: config}
