"""CALVIN's dataset (Mees et al. 2022) as one of ours: a split's folder of one .npz per frame, with its annotations.

    episode_0000000.npz ...                rgb_static, rgb_gripper, robot_obs, scene_obs, actions, rel_actions, depth_*
    ep_start_end_ids.npy                   int (N, 2): first and last frame number of each recording
    scene_info.npy                         scene -> [first, last]; only in training, covers validation too
    lang_annotations/auto_lang_ann.npy     {language: {ann, task, emb}, info: {indx: [(start, end)]}}

A recording has up to 50,000 frames, so it is cut into episodes of about `cut`, between annotations; an episode's seed is its
first frame's number. What float32 would round stays whole in `original/` (see originals.py), from which to_calvin writes
the same numbers again.
"""

from __future__ import annotations

import dataclasses
import os
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import zarr
from tqdm import tqdm

from vla.data.convert.calvin_faults import find_faults
from vla.data.convert.files import Fault, inside
from vla.data.convert.objects import load_objects
from vla.data.convert.originals import Originals
from vla.data.convert.report import Summary
from vla.data.store import Dataset
from vla.data.writer import DatasetWriter, Segment, part_path
from vla.parallel import spread
from vla.spec import ACTION, ENVIRONMENT_STATE, STATE, Spec, UserError, image_key

CAMERAS = {"static": "rgb_static", "wrist": "rgb_gripper"}
VECTORS = {"robot_obs": 15, "scene_obs": 24, "actions": 7, "rel_actions": 7}
OURS = {STATE: "robot_obs", ENVIRONMENT_STATE: "scene_obs", ACTION: "rel_actions"}
FRAME, RECORDING, NUMBER, EMBEDDING = "frame", "recording", "number", "embedding"
TEXTS = ("statistics.yaml", ".hydra/merged_config.yaml")
Formats = dict[str, tuple[tuple[int, ...], str]]


@dataclass(frozen=True)
class Annotation:
    """Frames [start, end) in which `task` was done as `text` says; `number` is its place in the file."""

    start: int
    end: int
    task: str
    text: str
    number: int


@dataclass(frozen=True)
class Piece:
    """Frames [start, end), an episode of ours unless a file in it is damaged; `recording` is the first frame of its own."""

    start: int
    end: int
    scene: str
    recording: int


@dataclass(frozen=True)
class Share:
    """What one process converts, into a part of its own."""

    folder: str
    out: str
    spec: Spec
    provenance: dict[str, Any]
    formats: Formats
    pieces: list[Piece]
    annotations: list[Annotation]
    embeddings: np.ndarray | None


def frame_file(number: int) -> str:
    return f"episode_{number:07d}.npz"


def convert(
    path: str | Path,
    out: str | Path,
    spec: Spec,
    language: str = "lang_annotations",
    scenes: Mapping[str, Sequence[int]] | None = None,
    cut: int = 1000,
    everything: bool = False,
    workers: int = 0,
) -> Summary:
    """Turn a split of CALVIN's dataset into one of ours, with `workers` processes (0: one per core).

    spec: ours but for the cameras, whose sizes come from the files. scenes: instead of scene_info.npy. everything: keep
    all other arrays of the files too (depth, touch). Damaged frames are skipped, told by name, and split their episode; run
    again it goes on with what is not there yet.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give a split of CALVIN's dataset (training or validation) as path=...")
    if cut < 1 or workers < 0:
        raise UserError(f"cut is {cut} and workers is {workers}: cut must be at least 1, and workers 0 or more.")
    skipped: dict[str, str] = {}
    recordings = read_recordings(folder, skipped)
    annotations, embeddings = read_annotations(folder, language, recordings, skipped)
    named = {s: (int(a), int(b)) for s, (a, b) in scenes.items()} if scenes else read_scenes(folder, skipped)
    formats = first_formats(folder, recordings, everything)
    spec = dataclasses.replace(spec, cameras={c: formats[k][0][:2] for c, k in CAMERAS.items()})
    settings = {"source": "calvin", "language": language, "cut": cut, "everything": everything}
    settings["scenes"] = {scene: list(ends) for scene, ends in named.items()}
    provenance = {"conversion": settings, "texts": {t: (folder / t).read_text() for t in TEXTS if (folder / t).exists()}}
    done = committed(out, settings)
    pieces = without(cut_pieces(recordings, annotations, named, cut), done)
    shares = [
        Share(str(folder), part_path(out, k), spec, provenance, formats, chosen, annotations, embeddings)
        for k, chosen in enumerate(_split(pieces, workers or len(os.sched_getaffinity(0))))
    ]
    total, before = sum(e - s for s, e in recordings), sum(e - s for s, e in done)
    if before:
        print(f"{before} of {total} frames are in {out} already")
    with tqdm(total=total, initial=before, unit="frame", unit_scale=True, smoothing=0.05, desc="converting") as bar:
        for frames, faults in spread(_work, shares) if shares else ():
            skipped |= faults
            bar.update(frames)
    written = committed(out, settings)
    if not written:
        name, fault = next(iter(skipped.items()))
        raise UserError(f"no frame of {folder} could be used (first: {name} {fault}): mend the files.")
    starts = [start for start, _ in written]
    for a in annotations:
        run = bisect_right(starts, a.start) - 1
        if run < 0 or a.end > written[run][1]:
            skipped[f"{language} {a.number}"] = "has frames that could not be used"
    dataset = Dataset(out)
    made = {"episodes": dataset.num_episodes, "frames": dataset.num_frames, "annotations": len(dataset.segments)}
    return Summary(made, skipped, find_faults(folder, dataset, recordings, annotations, named))


def read_recordings(folder: Path, skipped: dict[str, str]) -> list[tuple[int, int]]:
    """Frames [start, end) of each recording, in order; those that overlap one before are skipped."""
    name = "ep_start_end_ids.npy"
    try:
        ids = load_objects(folder / name)
    except Fault as fault:
        raise UserError(f"{folder / name} {fault}: it must say which frames there are, restore it.") from None
    if not isinstance(ids, np.ndarray) or ids.dtype.kind not in "iu" or ids.ndim != 2 or ids.shape[1] != 2 or not len(ids):
        raise UserError(f"{folder / name} does not hold whole numbers of shape (N, 2): restore it.")
    recordings: list[tuple[int, int]] = []
    for row in sorted(range(len(ids)), key=lambda i: (ids[i, 0], ids[i, 1])):
        first, last = ids[row].tolist()
        if first < 0 or last < first:
            skipped[f"{name} row {row}"] = f"is no range of frames ({first} to {last})"
        elif recordings and first < recordings[-1][1]:
            skipped[f"{name} row {row}"] = f"has frames of another row ({first} to {last})"
        else:
            recordings.append((first, last + 1))
    if not recordings:
        raise UserError(f"{folder / name} names no frames ({next(iter(skipped.values()))}): restore it.")
    return recordings


def read_scenes(folder: Path, skipped: dict[str, str]) -> dict[str, tuple[int, int]]:
    """Scene -> first and last frame number, from the split or from training beside it; {} if nothing tells."""
    for file in (folder / "scene_info.npy", folder.parent / "training" / "scene_info.npy"):
        if file.exists():
            try:
                return {_letter(str(s)): (int(first), int(last)) for s, (first, last) in load_objects(file).items()}
            except (Fault, AttributeError, TypeError, ValueError) as fault:
                skipped[str(file)] = f"tells no scenes ({fault})"
    return {}


def _letter(scene: str) -> str:
    """calvin_scene_D as D."""
    return scene.removeprefix("calvin_").removeprefix("scene_")


def read_annotations(
    folder: Path, language: str, recordings: Sequence[tuple[int, int]], skipped: dict[str, str]
) -> tuple[list[Annotation], np.ndarray | None]:
    """The annotations that lie inside a recording, and the embeddings of all in the file, (N, D) or None."""
    name = f"{language}/auto_lang_ann.npy"
    try:
        found = load_objects(inside(folder, name))
        texts, tasks = ([str(t) for t in found["language"][k]] for k in ("ann", "task"))
        windows = [(int(start), int(end)) for start, end in found["info"]["indx"]]
        if not len(texts) == len(tasks) == len(windows):
            raise Fault(f"has {len(texts)} sentences, {len(tasks)} tasks and {len(windows)} windows")
        embeddings = found["language"].get("emb")
    except Fault as fault:
        skipped[name] = str(fault)
        return [], None
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        skipped[name] = f"is not a table of annotations ({type(error).__name__}: {error})"
        return [], None
    if embeddings is not None:
        if not isinstance(embeddings, np.ndarray) or embeddings.dtype.kind != "f" or len(embeddings) != len(texts):
            skipped[f"{name} emb"] = "does not hold one row of numbers for each sentence"
            embeddings = None
        else:
            embeddings = embeddings.reshape(len(texts), -1)
    kept = []
    for number, ((start, end), task, text) in enumerate(zip(windows, tasks, texts, strict=True)):
        if start < end and any(s <= start and end <= e for s, e in recordings):
            kept.append(Annotation(start, end, task, text, number))
        else:
            skipped[f"{language} {number}"] = f"is not inside a recording (frames {start} to {end})"
    return kept, embeddings


def first_formats(folder: Path, recordings: Sequence[tuple[int, int]], everything: bool) -> Formats:
    """Shape and type of each array that is read, from the first frame that is whole."""
    fault = ""
    for number in (n for start, end in recordings for n in range(start, end)):
        try:
            arrays = _load(folder / frame_file(number), None if everything else (*CAMERAS.values(), *VECTORS))
            formats: Formats = {name: (a.shape, a.dtype.str) for name, a in arrays.items()}
            for key, length in VECTORS.items():
                if formats[key][0] != (length,) or arrays[key].dtype.kind != "f":
                    raise Fault(f"has {key} of shape {formats[key][0]} and type {arrays[key].dtype}")
            for key in CAMERAS.values():
                if len(formats[key][0]) != 3 or formats[key][0][2] != 3 or arrays[key].dtype != np.uint8:
                    raise Fault(f"has {key} of shape {formats[key][0]} and type {arrays[key].dtype}")
            return formats
        except Fault as found:
            fault = fault or f"{frame_file(number)} {found}"
    raise UserError(f"no frame of {folder} could be used (first: {fault}): give a split of CALVIN's dataset.")


def cut_pieces(
    recordings: Sequence[tuple[int, int]],
    annotations: Sequence[Annotation],
    scenes: Mapping[str, tuple[int, int]],
    cut: int,
) -> list[Piece]:
    """Recordings cut every `cut` frames or as soon after that as no annotation is cut through, and where a scene ends."""
    inner = [np.arange(a.start + 1, a.end) for a in annotations]  # a cut there would go through the annotation
    taboo = set(np.unique(np.concatenate(inner)).tolist()) if inner else set()
    begins = {first for first, _ in scenes.values()} | {last + 1 for _, last in scenes.values()}
    pieces = []
    for start, end in recordings:
        at = start
        for place in range(start + 1, end + 1):
            if place == end or place in begins or (place - at >= cut and place not in taboo):
                scene = next((s for s, (first, last) in scenes.items() if first <= at <= last), "")
                pieces.append(Piece(at, place, scene, start))
                at = place
    return pieces


def without(pieces: Iterable[Piece], done: Sequence[tuple[int, int]]) -> list[Piece]:
    """What is left of the pieces once the frames that are done are taken out."""
    left = []
    for piece in pieces:
        at = piece.start
        for start, end in sorted(done):
            if at < end and start < piece.end:
                if at < start:
                    left.append(dataclasses.replace(piece, start=at, end=start))
                at = max(at, end)
        if at < piece.end:
            left.append(dataclasses.replace(piece, start=at))
    return left


def committed(out: str | Path, settings: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Frame numbers [start, end) of each episode in all parts; UserError if those were made with other settings."""
    runs = []
    for path in sorted(Path(out).glob("part-*")):
        if not (path / "zarr.json").exists():
            continue
        group = zarr.open_group(str(path), mode="r")
        begun: Any = dict(group.attrs).get("provenance", {})
        if begun.get("conversion") != settings:
            raise UserError(f"dataset {out} was begun with {begun.get('conversion')}: choose another out=...")
        counts: Any = group.attrs.get("committed")
        if counts is None:  # killed before its arrays were there
            continue
        ends, seeds = (np.asarray(group[f"episode/{n}"][: counts["episodes"]]) for n in ("end", "seed"))  # pyright: ignore
        lengths = np.diff(ends, prepend=0)
        runs += list(zip(seeds.tolist(), (seeds + lengths).tolist(), strict=True))
    return sorted(runs)


def _split(pieces: list[Piece], workers: int) -> list[list[Piece]]:
    """Neighbouring pieces together, about the same number of frames for each process."""
    ends = np.cumsum([p.end - p.start for p in pieces])
    bounds = np.searchsorted(ends, np.arange(1, workers) * (ends[-1] / workers)) if pieces else []
    shares = np.split(np.arange(len(pieces)), bounds)
    return [[pieces[i] for i in share] for share in shares if len(share)]


def _work(share: Share) -> Iterator[tuple[int, dict[str, str]]]:
    """Convert one process's pieces; yields (frames done, faults) piece by piece."""
    vectors = share.embeddings
    whole = {name: form for name, form in share.formats.items() if name not in CAMERAS.values()}
    number: Formats = {NUMBER: ((), "<i8")}
    with DatasetWriter(share.out, share.spec, share.provenance) as writer:
        frame_forms = whole | {FRAME: ((), "<i8"), RECORDING: ((), "<i8")}
        segment_forms = number if vectors is None else number | {EMBEDDING: (vectors.shape[1:], vectors.dtype.str)}
        originals = Originals(writer, frame_forms, segment_forms)
        for piece in share.pieces:
            faults: dict[str, str] = {}
            for start, arrays in _whole_runs(Path(share.folder), piece, share.formats, faults):
                length = len(arrays["robot_obs"])
                inside_run = [a for a in share.annotations if start <= a.start and a.end <= start + length]
                labels = sorted(inside_run, key=lambda a: (a.start, a.end, a.task, a.text))  # the writer's order
                numbers = np.array([a.number for a in labels], np.int64)
                originals.append({name: arrays[name] for name in whole})
                originals.append({FRAME: np.arange(start, start + length), RECORDING: np.full(length, piece.recording)})
                originals.append({NUMBER: numbers} | ({} if vectors is None else {EMBEDDING: vectors[numbers]}))
                frames = {image_key(camera): arrays[key] for camera, key in CAMERAS.items()}
                frames |= {name: arrays[key].astype(np.float32) for name, key in OURS.items()}
                segments = [Segment(a.start - start, a.end - start, a.task, a.text) for a in labels]
                writer.append_episode(frames, segments, scene=piece.scene, seed=start)
            yield piece.end - piece.start, faults


def _whole_runs(
    folder: Path, piece: Piece, formats: Formats, faults: dict[str, str]
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """The frames of a piece between its damaged ones: first number and arrays of each run."""
    length = piece.end - piece.start
    arrays = {name: np.empty((length, *shape), dtype) for name, (shape, dtype) in formats.items()}
    begin = 0
    for row in range(length + 1):
        fault = None
        if row < length:
            name = frame_file(piece.start + row)
            try:
                for key, value in read_frame(folder / name, formats).items():
                    arrays[key][row] = value
            except Fault as found:
                fault = faults[name] = str(found)
        if fault or row == length:
            if row > begin:
                yield piece.start + begin, {name: a[begin:row] for name, a in arrays.items()}
            begin = row + 1


def read_frame(path: Path, formats: Formats) -> dict[str, np.ndarray]:
    """One frame's arrays; Fault unless all are there in the shapes and types of the others, with finite numbers."""
    arrays = _load(path, formats)
    for name, (shape, dtype) in formats.items():
        found = arrays[name]
        if found.shape != shape or found.dtype.str != dtype:
            raise Fault(f"has {name} of shape {found.shape} and type {found.dtype}, not {shape} and {np.dtype(dtype)}")
        if name in VECTORS and not np.isfinite(found).all():
            raise Fault(f"has a number in {name} that is not finite")
    return arrays


def _load(path: Path, names: Iterable[str] | None) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in (file.files if names is None else names)}
    except FileNotFoundError:
        raise Fault("is missing") from None
    except KeyError as error:
        raise Fault(f"lacks {str(error).split()[0].strip(chr(34) + chr(39))}") from None
    except (BadZipFile, zlib.error, ValueError, OSError, EOFError, TypeError, NotImplementedError) as error:
        raise Fault(f"cannot be read ({type(error).__name__}: {error})".split("\n")[0]) from None
