"""Opening a dataset: one zarr group, a folder of parts, or several of either, as one run of frames."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import fsspec
import numpy as np
import zarr

from vla.data.frames import FrameReader
from vla.data.statistics import RANGE_FLOOR, describe, narrow
from vla.data.writer import (
    EPISODE_ARRAYS,
    KIND,
    SEGMENT_ARRAYS,
    DatasetWriter,
    Segment,
    checksum,
    existing_group,
    frame_arrays,
    part_path,
    unreadable,
)
from vla.spec import ACTION, IMAGE_PREFIX, STATE, Spec, UserError

__all__ = ["Dataset", "DatasetWriter", "Part", "Segment", "check", "part_path", "parts_of"]

SEGMENT_TYPE = np.dtype(
    [("start", "i8"), ("end", "i8"), ("episode", "i8"), ("task", "i4"), ("instruction", "i4"), ("success", "i1")]
)
SUCCESS = "segment/success"
"""int8 (S,): 1 where it is known that the instruction was carried out, else -1. Only recordings of the controller have it."""
PERSON = "control/person"
"""uint8 (F,): 1 where a person drove. Only recordings of the controller have it."""


class Part:
    """One zarr group: its committed rows, checked. Frames and segments are numbered within the part."""

    def __init__(self, path: str) -> None:
        self.path = path
        group = existing_group(path, "r")
        if group is None:
            raise UserError(f"there is no dataset at {path}: check the path, or make one with vla-collect or vla-convert.")
        self.group = group
        if self.group.attrs.get("kind") != KIND:
            raise UserError(f"{path} holds no dataset of this project: check the path.")
        if "committed" not in self.group.attrs:
            raise UserError(f"dataset {path} was killed before its first episode: run its command again.")
        try:
            self.spec = Spec.from_dict(cast(dict, self.group.attrs["spec"]))
            self.provenance = dict(cast(dict[str, Any], self.group.attrs["provenance"]))
            counts = {k: int(v) for k, v in cast(dict[str, int], self.group.attrs["committed"]).items()}
            self.frames, self.episodes, segments = (counts[name] for name in ("frames", "episodes", "segments"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise unreadable(path, "what zarr.json says of it", error) from error
        rows = {n: self._rows(n, self.episodes) for n in EPISODE_ARRAYS}
        self.ends, self.seeds, self.scenes, self.sums = (rows[n] for n in EPISODE_ARRAYS)
        self.segment_columns = [self._rows(n, segments) for n in SEGMENT_ARRAYS]
        self.judged = self._has(SUCCESS)
        self.success = self._rows(SUCCESS, segments) if self.judged else np.full(segments, -1, np.int8)
        driven = self._has(PERSON)
        self.person = self._rows(PERSON, self.frames).astype(bool) if driven else np.zeros(self.frames, bool)
        starts = np.concatenate(([0], self.ends))[:-1]
        if self.episodes and (np.any(self.ends <= starts) or self.ends[-1] != self.frames):
            at = int(np.argmax(self.ends <= starts)) if np.any(self.ends <= starts) else self.episodes - 1
            raise self._damaged("episode/end", at, f"ends at frame {self.ends[at]}, out of order among {self.frames} frames")
        self.segment_episodes = np.searchsorted(self.ends, self.segment_columns[0], side="right")
        self._check_segments(starts)
        arrays = frame_arrays(self.spec)
        self.vectors = {n: self._rows(n, self.frames) for n in arrays if not n.startswith(IMAGE_PREFIX)}
        self.readers = {
            n.removeprefix(IMAGE_PREFIX): FrameReader(self._array(n, self.frames), path, self.frames)
            for n in arrays
            if n not in self.vectors
        }
        self._check_frames(starts)

    def digest(self) -> bytes:
        """Identifies what the part holds: spec, episodes, segments and every frame through its checksums."""
        digest = hashlib.sha256(json.dumps(self.spec.to_dict(), sort_keys=True).encode())
        for column in (self.ends, self.seeds, self.scenes, self.sums, *self.segment_columns):
            digest.update(json.dumps(column.tolist()).encode())
        if self.judged:
            digest.update(self.success.tobytes())
        return digest.digest()

    def image_faults(self) -> Iterator[UserError]:
        """Read every frame of every camera and compare checksums; an error naming array and episode for each that differs."""
        names = list(frame_arrays(self.spec))
        for camera, reader in self.readers.items():
            name = IMAGE_PREFIX + camera
            for episode, (start, end) in enumerate(zip(np.concatenate(([0], self.ends)), self.ends, strict=False)):
                if checksum(reader.read(np.arange(start, end))) != self.sums[episode, names.index(name)]:
                    yield self._damaged(name, episode, "does not have the frames that were written")

    def _has(self, name: str) -> bool:
        try:
            return name in self.group
        except (ValueError, TypeError) as error:
            raise unreadable(self.path, name, error) from error

    def _array(self, name: str, count: int) -> zarr.Array:
        try:
            array = cast(zarr.Array, self.group[name])
        except KeyError:
            raise UserError(f"dataset {self.path} lacks the array {name}: restore it or make the dataset again.") from None
        except (ValueError, TypeError) as error:
            raise unreadable(self.path, name, error) from error
        if array.shape[0] < count:
            raise UserError(
                f"dataset {self.path}: {name} has {array.shape[0]} entries where {count} were committed: restore it."
            )
        return array

    def _rows(self, name: str, count: int) -> np.ndarray:
        array = self._array(name, count)
        try:
            return np.asarray(array[:count])
        except Exception as error:  # whatever a codec raises on damaged bytes
            raise unreadable(self.path, name, error) from error

    def _check_segments(self, starts: np.ndarray) -> None:
        first, last = self.segment_columns[0], self.segment_columns[1]
        inside = (first >= 0) & (first < last) & (self.segment_episodes < self.episodes)
        episode = np.minimum(self.segment_episodes, self.episodes - 1)
        if self.episodes:
            inside &= (first >= starts[episode]) & (last <= self.ends[episode])
        if not inside.all():
            at = int(np.argmin(inside))
            raise self._damaged(
                "segment/end", int(episode[at]), f"has segment {at} at frames [{first[at]}, {last[at]}), outside of it"
            )

    def _check_frames(self, starts: np.ndarray) -> None:
        names = list(frame_arrays(self.spec))
        for name, values in self.vectors.items():
            bad = ~np.isfinite(values).all(1)
            if bad.any():
                raise self._damaged(
                    name, self._episode(int(np.argmax(bad))), f"has a number that is not finite at frame {np.argmax(bad)}"
                )
            column = self.sums[:, names.index(name)]
            for episode, (start, end) in enumerate(zip(starts, self.ends, strict=True)):
                if checksum(values[start:end]) != column[episode]:
                    raise self._damaged(name, episode, "does not have the numbers that were written")
        for camera, reader in self.readers.items():
            missing = reader.missing_frames()
            if len(missing):
                raise self._damaged(
                    IMAGE_PREFIX + camera,
                    self._episode(int(missing[0])),
                    f"lacks frame {missing[0]} and {len(missing) - 1} more",
                )

    def _episode(self, frame: int) -> int:
        return int(np.searchsorted(self.ends, frame, side="right"))

    def _damaged(self, name: str, episode: int, what: str) -> UserError:
        return UserError(f"dataset {self.path}: {name}, episode {episode}, {what}: restore the dataset or make it again.")


class Dataset:
    """A dataset, read only: all committed frames of one or more zarr groups, numbered end to end.

    path: a group, a folder of `part-*` groups, or a list of these (joined in the order given; specs must be equal).
    Opening reads everything but the images and checks it; `check` reads the images too.

    spec; provenance: one dict per part; scenes: one text per episode.
    episode_ends int64 (E,): frames up to and with each episode. episode_seeds int64 (E,).
    segments: structured (S,) with fields start, end (frames), episode, task, instruction (indices into the lists), success.
    tasks, instructions: unique texts, sorted; entry 0 is always "", no task or no instruction.
    vectors: "observation.state", "action", ... -> float32 (F, D), in memory. person: bool (F,), where a person drove.
    statistics: name of a vector ("action") -> mean, std, min, max, q01, q99, each float32 (D,); see statistics.py.
    narrow: sentences about entries whose range was widened to the floor.
    digest: 16 hex digits that change with any frame, number or label.
    """

    def __init__(self, path: str | Path | Sequence[str | Path]) -> None:
        paths = [path] if isinstance(path, str | Path) else list(path)
        self.path = ", ".join(str(p) for p in paths)
        self.parts = [Part(p) for one in paths for p in parts_of(str(one))]
        self.spec = self.parts[0].spec
        for part in self.parts[1:]:
            if part.spec != self.spec:
                raise UserError(f"datasets {self.parts[0].path} and {part.path} have different specs: train on one of them.")
        self.provenance = [p.provenance for p in self.parts]
        self._offsets = np.cumsum([0, *(p.frames for p in self.parts)])
        self.num_frames = int(self._offsets[-1])
        if not self.num_frames:
            raise UserError(f"dataset {self.path} has no episodes: collect or convert some first.")
        self.episode_ends = np.concatenate([p.ends + o for p, o in zip(self.parts, self._offsets, strict=False)])
        self.episode_starts = np.concatenate(([0], self.episode_ends[:-1]))
        self.episode_seeds = np.concatenate([p.seeds for p in self.parts])
        self.scenes: list[str] = [str(s) for p in self.parts for s in p.scenes]
        self.num_episodes = len(self.episode_ends)
        self._join_segments()
        self.vectors = {n: np.concatenate([p.vectors[n] for p in self.parts]) for n in self.parts[0].vectors}
        self.person = np.concatenate([p.person for p in self.parts])
        named = {n: e for n, e in ((STATE, self.spec.state), (ACTION, self.spec.action)) if n in self.vectors}
        self.narrow = [
            f"{n}[{i}] {entries[i].name} hardly changes: its range was widened to {RANGE_FLOOR:g} {entries[i].unit}"
            for n, entries in named.items()
            for i in np.flatnonzero(narrow(self.vectors[n]))
        ]
        self.digest = hashlib.sha256(b"".join(p.digest() for p in self.parts)).hexdigest()[:16]

    @cached_property
    def statistics(self) -> dict[str, dict[str, np.ndarray]]:
        """Of every vector; computed when first asked for, as only a training asks."""
        return {name: describe(values) for name, values in self.vectors.items()}

    def images(self, camera: str, indices: np.ndarray) -> np.ndarray:
        """Frames of one camera, `indices` int64 ascending without repeats: uint8 (K, H, W, 3)."""
        if camera not in self.spec.cameras:
            raise UserError(f"dataset {self.path} has no camera {camera!r}: choose among {sorted(self.spec.cameras)}.")
        if len(self.parts) == 1:
            return self.parts[0].readers[camera].read(indices)
        cuts = np.searchsorted(indices, self._offsets)
        pieces = [
            part.readers[camera].read(indices[i:j] - offset)
            for part, offset, i, j in zip(self.parts, self._offsets[:-1], cuts[:-1], cuts[1:], strict=True)
        ]
        return np.concatenate(pieces)

    def _join_segments(self) -> None:
        start, end, task, instruction = (np.concatenate([p.segment_columns[i] for p in self.parts]) for i in range(4))
        lengths = [len(p.segment_columns[0]) for p in self.parts]
        frames = np.repeat(self._offsets[:-1], lengths)
        self.tasks, self.instructions = (["", *sorted({str(t) for t in column} - {""})] for column in (task, instruction))
        self.segments = np.empty(len(start), SEGMENT_TYPE)
        self.segments["start"], self.segments["end"] = start + frames, end + frames
        self.segments["success"] = np.concatenate([p.success for p in self.parts])
        self.segments["episode"] = np.searchsorted(self.episode_ends, self.segments["start"], side="right")
        for name, texts, column in (("task", self.tasks, task), ("instruction", self.instructions, instruction)):
            number = {text: i for i, text in enumerate(texts)}
            self.segments[name] = [number[str(t)] for t in column]


def check(path: str | Path | Sequence[str | Path]) -> Dataset:
    """Open a dataset and compare every frame with the checksum written beside it.

    Raises UserError naming the first array and episode that is damaged.
    """
    dataset = Dataset(path)
    for part in dataset.parts:
        for fault in part.image_faults():
            raise fault
    return dataset


def parts_of(path: str) -> list[str]:
    """The groups to open at a path: itself and the `part-*` in it, but for those that had no time to begin."""
    files, root = fsspec.core.url_to_fs(path)
    parts = [path, *(files.unstrip_protocol(p) if "://" in path else p for p in sorted(files.glob(f"{root}/part-*")))]
    return [p for p in parts if _begun(p)] or [path]


def _begun(path: str) -> bool:
    group = existing_group(path, "r")
    return group is not None and "committed" in group.attrs
