"""Pictures for a person: the first batch as the policy gets it (most mistakes in data show there before any number does), and
what the policy imagines beside what came."""

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


def foresight_picture(policy: Any, batch: Mapping[str, Any], samples: int = 6) -> np.ndarray:
    """For the first samples of a batch, one a row, and each camera: the frame now, the one imagined, and the one that came.

    policy: meets vla.policy.Policy and Imagining; it is shown the batch's frames in order, as in a rollout, so that the
    picture also says whether training and rollout see alike. Returns uint8 (H, W, 3).
    """
    samples = min(samples, len(batch[TASK]))
    cameras = [key.removeprefix(FUTURE_PREFIX) for key in batch if key.startswith(FUTURE_PREFIX)]
    shown = {key: _array(value)[:samples] for key, value in batch.items() if key.startswith("observation.")}
    memory = policy.begin(range(samples))
    for t in range(shown[IMAGE_PREFIX + cameras[0]].shape[1]):
        memory = policy.remember({**{k: v[:, t] for k, v in shown.items()}, TASK: batch[TASK][:samples]}, memory)
    imagined = policy.foresee(memory)
    rows = []
    for i in range(samples):
        tiles = [_text(textwrap.wrap(f'"{batch[TASK][i]}"', 34), width=200)]
        for camera in (camera for camera in cameras if camera in imagined):
            tiles.append(_tile(shown[IMAGE_PREFIX + camera][i, -1], f"{camera} now"))
            tiles.append(_tile(imagined[camera][i], "imagined"))
            tiles.append(_tile(_array(batch[FUTURE_PREFIX + camera])[i, -1], f"{policy.foresight_steps} steps later"))
        rows.append(np.concatenate(tiles, axis=1))
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


def _text(lines: Sequence[str], width: int = TEXT) -> np.ndarray:
    canvas = Image.new("RGB", (width, FRAME + 16), "white")
    ImageDraw.Draw(canvas).text((6, 1), "\n".join(lines), fill="black", font=ImageFont.load_default(9), spacing=1)
    return np.asarray(canvas)


def _words(batch: Mapping[str, Any], sample: int) -> list[str]:
    lines = textwrap.wrap(f'"{batch[TASK][sample]}"', 95)
    if STATE in batch:
        lines.append("state  " + " ".join(f"{value:+.2f}" for value in _array(batch[STATE])[sample, -1]))
    if ACTION in batch:
        actions, inside = _array(batch[ACTION])[sample, -1], _array(batch[f"{ACTION}.mask"])[sample, -1]
        for k in range(min(len(actions), 8)):
            note = "" if inside[k] else "  (past the end: not trained)"
            lines.append(f"action[{k}]  " + " ".join(f"{value:+.2f}" for value in actions[k]) + note)
    return lines


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
