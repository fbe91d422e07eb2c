"""A dataset of ours as a folder in CALVIN's format; see calvin.py for what lies there.

What came from CALVIN gets its numbers, frame numbers and annotations back bit for bit. What was collected here is numbered
scene by scene from 0; its numbers are the float32 of the dataset, and `actions` are the poses that the hand had a frame later.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from tqdm import tqdm

from vla.data.convert.calvin import CAMERAS, EMBEDDING, FRAME, NUMBER, OURS, RECORDING, frame_file
from vla.data.convert.files import inside
from vla.data.convert.originals import FOLDER
from vla.data.convert.report import Summary
from vla.data.store import Dataset, Part
from vla.parallel import spread
from vla.spec import ACTION, STATE, Spec, UserError

FRAMES_AT_ONCE = 64
STEP = np.array([0.02] * 3 + [0.05] * 3)  # metres and radians of a full relative action


@dataclass(frozen=True)
class Share:
    """Runs of frames for one process: where they are, [start, end) in the part, and their numbers in the folder."""

    out: str
    runs: list[tuple[str, int, int, np.ndarray]]


def convert(path: str | Path, out: str | Path, workers: int = 0) -> Summary:
    """Write the dataset at `path` as one split of CALVIN's, with `workers` processes (0: one per core).

    Frames whose files are there already are not written again, so a killed conversion goes on.
    """
    dataset, folder = Dataset(path), Path(out)
    _check_spec(dataset.spec, dataset.path)
    folder.mkdir(parents=True, exist_ok=True)
    exact = all(FOLDER in part.group for part in dataset.parts)
    numbers = _numbers(dataset, exact)
    recordings = _recordings(dataset, numbers, exact)
    _write_tables(folder, dataset, numbers, recordings, exact)
    here = {entry.name for entry in os.scandir(folder)}
    runs, total = _runs(dataset, numbers, here), dataset.num_frames
    left = sum(end - start for _, start, end, _ in runs)
    count = min(workers or len(os.sched_getaffinity(0)), len(runs))
    with tqdm(total=total, initial=total - left, unit="frame", unit_scale=True, smoothing=0.05, desc="converting") as bar:
        for frames in spread(_work, [Share(str(out), runs[k::count]) for k in range(count)]) if runs else ():
            bar.update(frames)
    notes = [] if exact else ["the dataset did not come from CALVIN: its annotations have no sentence embeddings"]
    if not (folder / ".hydra/merged_config.yaml").exists():
        notes.append(
            "there is no .hydra/merged_config.yaml, from which CALVIN's evaluation builds its world: copy a genuine one"
        )
    return Summary({"recordings": len(recordings), "frames": total, "annotations": len(dataset.segments)}, notes=notes)


def _check_spec(spec: Spec, path: str) -> None:
    lengths = {STATE: len(spec.state), ACTION: len(spec.action), "scene_obs": len(spec.environment_state)}
    if not set(CAMERAS) <= set(spec.cameras) or list(lengths.values()) != [15, 7, 24] or spec.action_kind != "relative_pose":
        raise UserError(
            f"dataset {path} has cameras {sorted(spec.cameras)}, {lengths} and {spec.action_kind} actions: CALVIN's format "
            f"wants the cameras {sorted(CAMERAS)}, 15, 7 and 24 numbers and relative_pose."
        )


def _original(part: Part, name: str) -> np.ndarray:
    count = len(part.segment_columns[0]) if name in (NUMBER, EMBEDDING) else part.frames
    return np.asarray(cast(zarr.Array, part.group[f"{FOLDER}/{name}"])[:count])


def _numbers(dataset: Dataset, exact: bool) -> np.ndarray:
    """The frame number in CALVIN's folder of each of our frames, int64 (F,)."""
    if exact:
        return np.concatenate([_original(part, FRAME) for part in dataset.parts])
    numbers, at = np.empty(dataset.num_frames, np.int64), 0
    for episode in sorted(range(dataset.num_episodes), key=lambda e: dataset.scenes[e]):  # scene_info knows only ranges
        start, end = dataset.episode_starts[episode], dataset.episode_ends[episode]
        numbers[start:end] = np.arange(at, at + end - start)
        at += end - start
    return numbers


def _recordings(dataset: Dataset, numbers: np.ndarray, exact: bool) -> np.ndarray:
    """First and last frame number of each recording, int64 (N, 2)."""
    if exact:
        owner = np.concatenate([_original(part, RECORDING) for part in dataset.parts])
    else:
        owner = np.repeat(np.arange(dataset.num_episodes), dataset.episode_ends - dataset.episode_starts)
    order = np.argsort(numbers)
    numbers, owner = numbers[order], owner[order]
    begins = np.flatnonzero((np.diff(numbers, prepend=-2) != 1) | (np.diff(owner, prepend=-1) != 0))
    return np.stack([numbers[begins], numbers[np.append(begins[1:], len(numbers)) - 1]], axis=1)


def _write_tables(folder: Path, dataset: Dataset, numbers: np.ndarray, recordings: np.ndarray, exact: bool) -> None:
    np.save(folder / "ep_start_end_ids.npy", recordings)
    np.save(folder / "ep_lens.npy", recordings[:, 1] - recordings[:, 0] + 1)
    first = dataset.provenance[0]
    scenes = first["conversion"]["scenes"] if exact else {}
    for scene, start, end in zip(dataset.scenes, dataset.episode_starts, dataset.episode_ends, strict=True):
        if scene and not exact:
            low, high = scenes.get(scene, (numbers[start], 0))
            scenes[scene] = [int(min(low, numbers[start])), int(max(high, numbers[end - 1]))]
    if scenes:
        np.save(folder / "scene_info.npy", np.array({f"calvin_scene_{s}": ends for s, ends in scenes.items()}, dtype=object))
    for name, text in first.get("texts", {}).items() if exact else ():
        file = inside(folder, name)
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    rows = dataset.segments
    places = np.concatenate([_original(part, NUMBER) for part in dataset.parts]) if exact else numbers[rows["start"]]
    order = np.argsort(places, kind="stable")
    language: dict[str, Any] = {
        "ann": [dataset.instructions[rows["instruction"][i]] for i in order],
        "task": [dataset.tasks[rows["task"][i]] for i in order],
    }
    if exact and all(f"{FOLDER}/{EMBEDDING}" in part.group for part in dataset.parts):
        language["emb"] = np.concatenate([_original(part, EMBEDDING) for part in dataset.parts])[order][:, None]
    starts = numbers[rows["start"]]
    windows = [(int(starts[i]), int(starts[i] + rows["end"][i] - rows["start"][i])) for i in order]
    name = first["conversion"]["language"] if exact else "lang_annotations"
    file = inside(folder, f"{name}/auto_lang_ann.npy")
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, np.array({"language": language, "info": {"episodes": [], "indx": windows}}, dtype=object))


def _runs(dataset: Dataset, numbers: np.ndarray, here: set[str]) -> list[tuple[str, int, int, np.ndarray]]:
    """Neighbouring frames of one episode, at most FRAMES_AT_ONCE, that lack at least one file."""
    runs, offset = [], 0
    for part in dataset.parts:
        for begin, end in zip(np.concatenate(([0], part.ends)), part.ends, strict=False):
            for start in range(begin, end, FRAMES_AT_ONCE):
                stop = min(start + FRAMES_AT_ONCE, int(end))
                chosen = numbers[offset + start : offset + stop]
                if any(frame_file(n) not in here for n in chosen):
                    runs.append((part.path, start, stop, chosen))
        offset += part.frames
    return runs


def _work(share: Share) -> Iterator[int]:
    """Write one process's frames; yields how many, run by run."""
    parts: dict[str, Part] = {}
    for path, start, end, numbers in share.runs:
        if path not in parts:
            parts[path] = Part(path)
        part = parts[path]
        arrays = {key: part.readers[camera].read(np.arange(start, end)) for camera, key in CAMERAS.items()}
        arrays |= _exact_arrays(part, start, end) if FOLDER in part.group else _made_arrays(part, start, end)
        for row, number in enumerate(numbers):
            _write_frame(Path(share.out) / frame_file(number), {key: values[row] for key, values in arrays.items()})
        yield end - start


def _exact_arrays(part: Part, start: int, end: int) -> dict[str, np.ndarray]:
    group = cast(zarr.Group, part.group[FOLDER])
    names = [name for name, _ in group.arrays() if name not in (FRAME, RECORDING, NUMBER, EMBEDDING)]
    return {name: np.asarray(cast(zarr.Array, group[name])[start:end]) for name in names}


def _made_arrays(part: Part, start: int, end: int) -> dict[str, np.ndarray]:
    arrays = {key: part.vectors[name][start:end].astype(np.float64) for name, key in OURS.items()}
    hand, commands = part.vectors[STATE].astype(np.float64), arrays["rel_actions"]
    last = part.ends[np.searchsorted(part.ends, start, side="right")] - 1
    after = np.minimum(np.arange(start, end) + 1, last)
    arrays["actions"] = hand[after][:, [*range(6), 14]]
    if end - 1 == last:  # nothing was seen after it: where the hand was sent
        arrays["actions"][-1] = [*(hand[last, :6] + commands[-1, :6] * STEP), commands[-1, 6]]
    return arrays


def _write_frame(file: Path, arrays: dict[str, np.ndarray]) -> None:
    part = file.with_name(f".{file.name}")
    with part.open("wb") as handle:
        np.savez_compressed(handle, **cast(Any, arrays))
    part.replace(file)
