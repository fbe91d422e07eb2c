"""The first batch as the policy gets it, drawn for a person: most mistakes in data show here before any number does."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vla.spec import ACTION, IMAGE_PREFIX, STATE, TASK

FUTURE_PREFIX = "future.images."
FRAME = 128
TEXT = 560
MOST_FRAMES = 4


def batch_picture(batch: Mapping[str, Any], samples: int = 6) -> np.ndarray:
    """Draw the first samples of a batch, one a row: frames of each camera, future frames, instruction, state and actions.

    A camera's frames are its last ones in time order, at most 4. Returns uint8 (H, W, 3).
    """
    rows = [_row(batch, i) for i in range(min(samples, len(batch[TASK])))]
    return np.concatenate(rows)


def _row(batch: Mapping[str, Any], sample: int) -> np.ndarray:
    tiles = []
    for prefix in (IMAGE_PREFIX, FUTURE_PREFIX):
        for key in (key for key in batch if key.startswith(prefix)):
            frames = _array(batch[key])[sample]
            for t in range(max(0, len(frames) - MOST_FRAMES), len(frames)) if prefix == IMAGE_PREFIX else [len(frames) - 1]:
                tiles.append(_tile(frames[t], f"{key.removeprefix('observation.').replace('images.', '')}[{t}]"))
    return np.concatenate([*tiles, _text(_words(batch, sample))], axis=1)


def _tile(frame: np.ndarray, label: str) -> np.ndarray:
    canvas = Image.new("RGB", (FRAME + 4, FRAME + 16), "white")
    canvas.paste(Image.fromarray(frame).resize((FRAME, FRAME), Image.Resampling.NEAREST), (0, 14))
    ImageDraw.Draw(canvas).text((1, 1), label, fill="black", font=ImageFont.load_default(10))
    return np.asarray(canvas)


def _text(lines: Sequence[str]) -> np.ndarray:
    canvas = Image.new("RGB", (TEXT, FRAME + 16), "white")
    ImageDraw.Draw(canvas).text((6, 1), "\n".join(lines), fill="black", font=ImageFont.load_default(9), spacing=1)
    return np.asarray(canvas)


def _words(batch: Mapping[str, Any], sample: int) -> list[str]:
    lines = textwrap.wrap(f'"{batch[TASK][sample]}"', 95)
    if STATE in batch:
        lines.append("state  " + " ".join(f"{value:+.2f}" for value in _array(batch[STATE])[sample, -1]))
    if ACTION in batch:
        actions, inside = _array(batch[ACTION])[sample, -1], _array(batch[f"{ACTION}.mask"])[sample, -1]
        lines += [
            f"action[{k}]  " + " ".join(f"{value:+.2f}" for value in actions[k]) + ("" if inside[k] else "  (not trained: past the end)")
            for k in range(min(len(actions), 8))
        ]
    return lines


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
