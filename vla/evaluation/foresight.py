"""How well a policy foresees recorded frames: against "nothing moves" on moving pixels, by SSIM, and in pictures.

    frames      ... history, now |------> now + n ------> now + 2n ------> now + 3n         n = foresight_steps
    imagined                     |------> 1       ------> 2        ------> 3

The first horizon is imagined from recorded frames. For each further one the policy begins anew on its own last picture, with
the state and the instruction that it had at `now`: nothing of the future is told to it.
"""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from vla.checkpoint import load_policy, read_checkpoint
from vla.data.store import Dataset
from vla.data.windows import Windows
from vla.evaluation import report
from vla.foresight import foresight_errors
from vla.images import resize_area, ssim
from vla.spec import ENVIRONMENT_STATE, STATE, TASK, Spec, UserError, image_key, require_match
from vla.training.logging import circumstances, write_json

BATCH = 25
TILE, LABEL = 96, 14
SUMS = ("error", "still", "pixels", "ssim", "ssim_still", "frames")
"""What adds up over windows: squared errors on moving pixels and their number, SSIM of the imagined and of the present frame
to the one that came, and the number of frames."""
NOTE = (
    "Squared error of the imagined frames over that of the guess that nothing moves, on pixels that do move: below 1 it is "
    "foresight. SSIM over whole pictures, beside that of the guess. Horizons beyond the first are imagined from the policy's "
    "own pictures."
)

Pictures = dict[str, np.ndarray]
Sums = dict[str, dict[int, np.ndarray]]


def run(config: DictConfig) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Measure what `config` (conf/foresight.yaml) says; gives the result (see `write`) and strips of pictures."""
    policy: Any = load_policy(config.checkpoint, **config.override)
    if not hasattr(policy, "foresee"):
        raise UserError(
            f"the policy of {config.checkpoint} ({type(policy).__name__}) imagines nothing: give another checkpoint."
        )
    for name in ("windows", "rounds"):
        if config[name] < 1:
            raise UserError(f"{name} is {config[name]}: give at least 1.")
    options: dict[str, Any] = OmegaConf.to_container(config.data, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    dataset = Dataset(options.pop("path"))
    absent = require_parts(policy.spec, dataset, config.blank)
    cameras = [camera for camera in policy.spec.cameras if camera in dataset.spec.cameras]
    ahead = [policy.foresight_steps * k for k in range(1, config.rounds + 1)]
    # Which windows a batch holds, and their words, depends on seed and number alone: the same for every horizon.
    needs = {"history": policy.window, "history_stride": policy.stride, "part": config.part, "seed": config.seed}  # type: ignore
    sources = [Windows(dataset, cameras, batch_size=BATCH, foresight_steps=steps, **needs, **options) for steps in ahead]
    count = min(config.windows, len(sources[0]))
    sums: Sums = {camera: {steps: np.zeros(len(SUMS)) for steps in ahead} for camera in cameras}
    strips: list[np.ndarray] = []
    with torch.no_grad(), tqdm(total=count, unit="window") as bar:
        for number in range(-(-count // BATCH)):
            rows = min(BATCH, count - number * BATCH)
            batches = [{name: value[:rows] for name, value in source.batch(number).items()} for source in sources]
            now, imagined = imagine(policy, batches[0], config.rounds)
            for steps, batch, pictures in zip(ahead, batches, imagined, strict=True):
                real = {c: fitted(batch[f"future.images.{c}"][:, -1], now[c].shape[1]) for c in cameras}
                there = batch["future.mask"][:, -1].numpy()
                for camera in cameras:
                    found = judge(pictures[camera][there], real[camera][there], now[camera][there])
                    sums[camera][steps] += found
                    batch[camera] = real[camera]
            strips += [strip(batches, now, imagined, ahead, cameras, i) for i in range(rows) if len(strips) + i < config.strips]
            bar.update(rows)
    checkpoint = read_checkpoint(config.checkpoint)
    result = {
        "title": config.title or f"Foresight of {Path(config.checkpoint).name} on {dataset.path}",
        "settings": {
            "checkpoint": str(config.checkpoint),
            "trained_steps": checkpoint.training.get("step"),
            "data": {"path": dataset.path, "digest": dataset.digest, "part": config.part, "holdout": options["holdout"]},
            "windows": count,
            "foresight_steps": policy.foresight_steps,
            "shown as blank": absent,
            "seed": config.seed,
        },
        "made": {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": " ".join(sys.argv),
            **circumstances(torch.device("cpu")),
        },
        "foresight": {c: {str(steps): table_row(total) for steps, total in of.items()} for c, of in sums.items()},
    }
    return result, strips


def require_parts(needs: Spec, dataset: Dataset, blank: bool) -> list[str]:
    """What the policy reads and the data lacks, cameras and state; UserError if there is any and it may not be `blank`."""
    if not blank:
        require_match(needs, dataset.spec, "the policy", f"dataset {dataset.path}")
    absent = [camera for camera in needs.cameras if camera not in dataset.spec.cameras]
    if len(absent) == len(needs.cameras):
        raise UserError(f"dataset {dataset.path} has none of the policy's cameras {absent}: give another.")
    return [*absent, *([STATE] if needs.state and STATE not in dataset.vectors else [])]


def imagine(policy: Any, batch: Mapping[str, Any], rounds: int) -> tuple[Pictures, list[Pictures]]:
    """What the policy sees at the last frame of each window, and what it imagines after 1 to `rounds` times its step.

    camera -> uint8 (B, size, size, 3), of the policy's own size. What the data lacks is black, or zero.
    """
    count, length = batch["frame.mask"].shape
    spec: Spec = policy.spec
    memory = policy.begin([0] * count)
    shown: dict[str, Any] = {}
    for t in range(length):
        shown = {TASK: batch[TASK]}
        for camera, size in spec.cameras.items():
            key = image_key(camera)
            shown[key] = batch[key][:, t].numpy() if key in batch else np.zeros((count, *size, 3), np.uint8)
        for name, entries in ((STATE, spec.state), (ENVIRONMENT_STATE, spec.environment_state)):
            if entries:
                shown[name] = batch[name][:, t].numpy() if name in batch else np.zeros((count, len(entries)), np.float32)
        memory = policy.remember(shown, memory)
    imagined: list[Pictures] = [policy.foresee(memory)]
    while len(imagined) < rounds:
        seen = {image_key(camera): frames for camera, frames in imagined[-1].items()}
        imagined.append(policy.foresee(policy.remember({**shown, **seen}, policy.begin([0] * count))))
    now = {c: fitted(torch.from_numpy(shown[image_key(c)]), frames.shape[1]) for c, frames in imagined[0].items()}
    return now, imagined


def fitted(frames: torch.Tensor, side: int) -> np.ndarray:
    """Frames uint8 (B, H, W, 3) at the size of imagined ones."""
    return resize_area(frames, side, side).numpy()


def judge(imagined: np.ndarray, real: np.ndarray, now: np.ndarray) -> np.ndarray:
    """SUMS over frames, all uint8 (B, H, W, 3)."""
    signed = [torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1 for x in (imagined, real, now)]
    alike = [float(ssim(x, signed[1]).sum()) if len(real) else 0.0 for x in (signed[0], signed[2])]
    return np.array([*foresight_errors(imagined, real, now), *alike, len(real)])


def table_row(sums: np.ndarray) -> dict[str, float]:
    """SUMS as `ratio`, `moving_pixels`, `ssim`, `ssim_still` and `frames`; ratios of nothing are NaN."""
    error, still, pixels, alike, alike_still, frames = map(float, sums)
    return {
        "ratio": error / still if still else float("nan"),
        "moving_pixels": pixels,
        "ssim": alike / frames if frames else float("nan"),
        "ssim_still": alike_still / frames if frames else float("nan"),
        "frames": frames,
    }


def strip(
    batches: Sequence[Mapping[str, Any]],
    now: Pictures,
    imagined: Sequence[Pictures],
    ahead: Sequence[int],
    cameras: Sequence[str],
    row: int,
) -> np.ndarray:
    """One window: a line of pictures for each camera, now and for each horizon the imagined frame above the one that came."""
    tiles = []
    for camera in cameras:
        columns = [(now[camera][row], f"{camera}, now", None, "")]
        for batch, pictures, steps in zip(batches, imagined, ahead, strict=True):
            came = batch[camera][row] if batch["future.mask"][row, -1] else None
            columns.append(
                (pictures[camera][row], f"imagined, +{steps}", came, "what came" if came is not None else "(the end)")
            )
        tiles.append(np.concatenate([np.concatenate([_tile(a, x), _tile(b, y)]) for a, x, b, y in columns], axis=1))
    words = Image.new("RGB", (tiles[0].shape[1], LABEL + 4), "white")
    ImageDraw.Draw(words).text((2, 2), batches[0][TASK][row], fill="black", font=ImageFont.load_default(11))
    return np.concatenate([np.asarray(words), *tiles])


def _tile(picture: np.ndarray | None, words: str) -> np.ndarray:
    canvas = Image.new("RGB", (TILE + 4, TILE + LABEL), "white")
    if picture is not None:
        canvas.paste(Image.fromarray(picture).resize((TILE, TILE), Image.Resampling.BICUBIC), (0, LABEL))
    ImageDraw.Draw(canvas).text((1, 1), words, fill="black", font=ImageFont.load_default(10))
    return np.asarray(canvas)


def rows(foresight: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[tuple[str, str]]:
    """(camera and horizon, what was found) in words."""
    for camera, horizons in foresight.items():
        for steps, row in horizons.items():
            yield (
                f"{camera}, {steps} steps ahead",
                f"{row['ratio']:.3f} of nothing-moves on {row['moving_pixels']:,.0f} moving pixels; SSIM {row['ssim']:.3f}, "
                f"of nothing-moves {row['ssim_still']:.3f}; {row['frames']:.0f} frames",
            )


def write(out: str, result: Mapping[str, Any], strips: Sequence[np.ndarray]) -> None:
    """Leave results.json, report.html and strips.png in `out`."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    parts = [report.section("Foresight", report.pairs(dict(rows(result["foresight"]))), NOTE)]
    if strips:
        file = io.BytesIO()
        Image.fromarray(np.concatenate(strips)).save(file, "PNG")
        (folder / "strips.png").write_bytes(file.getvalue())
        source = base64.b64encode(file.getvalue()).decode()
        note = "The first windows of the measurement, as they come: above what was imagined, below what came."
        parts.append(report.section("Pictures", f'<img alt="strips" src="data:image/png;base64,{source}">', note))
    for name in ("settings", "made"):
        parts.append(report.section(name.capitalize(), report.pairs(report.flat(result[name]))))
    (folder / "report.html").write_text(report.page(result["title"], [report.heading(result["title"]), *parts]), "utf-8")
    write_json(folder / "results.json", result)
