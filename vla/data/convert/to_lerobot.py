"""A dataset of ours as a LeRobotDataset v3 in a local folder, written by LeRobot itself.

A frame's task is the instruction of the segment that it lies in (the first of several), "" in none. What the format has no
place for goes to meta/vla.json: our Spec, and every episode's scene and segments.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a folder on this machine is all that is meant

import numpy as np
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from tqdm import tqdm

from vla.data.convert import lerobot
from vla.data.convert.report import Summary
from vla.data.store import Dataset
from vla.spec import ACTION, ENVIRONMENT_STATE, STATE, Spec, UserError, image_key

FRAMES_AT_ONCE = 64
CHECKED = 100  # frames of each camera that are read back to tell the error of a video


def convert(
    path: str | Path,
    out: str | Path,
    form: str = "video",
    codec: str = "h264",
    crf: int = 20,
    environment_state: bool = False,
) -> Summary:
    """Write the dataset at `path` to the new folder `out`, which appears when all is there.

    form: "image" keeps every pixel, as PNG; "video" is small, with its error told. codec, crf: of the video.
    environment_state: also write the privileged state, which LeRobot's policies would take as an input.
    """
    if form not in ("image", "video"):
        raise UserError(f"form is {form!r}: choose image or video.")
    dataset, folder = Dataset(path), Path(out)
    spec = dataset.spec
    if folder.exists():
        raise UserError(f"{folder} exists already: choose another out=..., or remove it.")
    if not spec.control_hz or spec.control_hz != int(spec.control_hz):
        raise UserError(f"dataset {path} has {spec.control_hz} steps a second: LeRobot wants a whole number.")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # what a killed run left
    written = LeRobotDataset.create(
        repo_id=f"local/{folder.name}",
        fps=int(spec.control_hz),
        features=_features(spec, form, environment_state),
        root=part,
        use_videos=form == "video",
        rgb_encoder=RGBEncoderConfig(vcodec=codec, crf=crf),
        streaming_encoding=form == "video",
        encoder_queue_maxsize=int((dataset.episode_ends - dataset.episode_starts).max()),  # a full queue would drop frames
    )
    with tqdm(total=dataset.num_frames, unit="frame", unit_scale=True, smoothing=0.05, desc="converting") as bar:
        for episode in range(dataset.num_episodes):
            _write_episode(written, dataset, episode, environment_state)
            bar.update(int(dataset.episode_ends[episode] - dataset.episode_starts[episode]))
    written.finalize()
    (part / lerobot.OURS).write_text(json.dumps({"spec": spec.to_dict(), "episodes": _episodes(dataset)}))
    notes = _video_errors(part, dataset) if form == "video" else []
    part.rename(folder)
    return Summary({"episodes": dataset.num_episodes, "frames": dataset.num_frames}, notes=notes)


def _vectors(spec: Spec, environment_state: bool) -> dict[str, list[str]]:
    """Names of the entries of each vector that is written."""
    chosen = {STATE: spec.state, ACTION: spec.action, ENVIRONMENT_STATE: spec.environment_state if environment_state else ()}
    return {key: [entry.name for entry in entries] for key, entries in chosen.items() if entries}


def _features(spec: Spec, form: str, environment_state: bool) -> dict[str, Any]:
    features: dict[str, Any] = {
        image_key(camera): {"dtype": form, "shape": (*size, 3), "names": ["height", "width", "channels"]}
        for camera, size in spec.cameras.items()
    }
    for key, names in _vectors(spec, environment_state).items():
        features[key] = {"dtype": "float32", "shape": (len(names),), "names": names}
    return features


def _write_episode(written: LeRobotDataset, dataset: Dataset, episode: int, environment_state: bool) -> None:
    start, end = int(dataset.episode_starts[episode]), int(dataset.episode_ends[episode])
    texts = [""] * (end - start)
    for segment in dataset.segments[dataset.segments["episode"] == episode][::-1]:
        first, last = segment["start"] - start, segment["end"] - start
        texts[first:last] = [dataset.instructions[segment["instruction"]]] * (last - first)
    vectors = {key: dataset.vectors[key] for key in _vectors(dataset.spec, environment_state)}
    for begin in range(start, end, FRAMES_AT_ONCE):
        at = np.arange(begin, min(begin + FRAMES_AT_ONCE, end))
        images = {image_key(camera): dataset.images(camera, at) for camera in dataset.spec.cameras}
        for row, frame in enumerate(at):
            picture = {key: values[row] for key, values in images.items()}
            written.add_frame(picture | {key: v[frame] for key, v in vectors.items()} | {"task": texts[frame - start]})
    written.save_episode()


def _episodes(dataset: Dataset) -> dict[str, Any]:
    episodes = {}
    for episode, (start, end) in enumerate(zip(dataset.episode_starts, dataset.episode_ends, strict=True)):
        rows = dataset.segments[dataset.segments["episode"] == episode]
        segments = [
            [int(s["start"] - start), int(s["end"] - start), dataset.tasks[s["task"]], dataset.instructions[s["instruction"]]]
            for s in rows
        ]
        episodes[str(episode)] = {"scene": dataset.scenes[episode], "length": int(end - start), "segments": segments}
    return episodes


def _video_errors(root: Path, dataset: Dataset) -> list[str]:
    """How far the first frames are from what they were, read back."""
    count = min(CHECKED, int(dataset.episode_ends[0]))
    notes = []
    for camera, frames in lerobot.first_frames(root, count).items():
        error = np.abs(frames.astype(np.int16) - dataset.images(camera, np.arange(count)))
        notes.append(
            f"video of {camera}: mean absolute error {error.mean():.2f} of 255, 99 % of the values within "
            f"{np.quantile(error, 0.99):.0f} (first {count} frames read back)"
        )
    return notes
