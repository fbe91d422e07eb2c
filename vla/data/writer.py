"""How a dataset lies on disk (one zarr v3 group per writer), and the crash-safe writer.

    zarr.json                       attributes: spec, provenance, statistics, committed counts
    observation.images.<camera>     uint8   (F, H, W, 3)   all frames of all episodes, end to end
    observation.state, action, ...  float32 (F, D)         one row per frame; action[t] answers frame t
    episode/end                     int64   (E,)           frames up to and with this episode
    episode/seed, episode/scene, episode/checksum          what it was made from; a checksum per array
    segment/start, segment/end      int64   (S,)           frames [start, end) of a labelled stretch
    segment/task, segment/instruction  text (S,)

`committed` in the attributes holds the number of episodes, segments and frames that count. An episode is written first and
committed last, in one atomic replacement of zarr.json; whatever lies past the committed counts is cut off when the group
is opened for writing again. So a kill at any moment loses the episode in flight and nothing else.

Parallel writers do not share a group: each writes its own part, `<dataset>/part-000` and so on, and `Dataset` opens a
folder of parts as one dataset. Nothing is copied or merged afterwards.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Self, cast

import numpy as np
import zarr

from vla.data.statistics import describe
from vla.spec import ACTION, ENVIRONMENT_STATE, STATE, Spec, UserError, image_key

KIND = "vla-dataset"
FRAMES_PER_CHUNK = 16  # the least that is read from a remote store; a window of 10 touches one or two
FRAMES_PER_SHARD = 256  # one file; small enough that growing the last one costs little per episode
ROWS_PER_CHUNK = 4096
EPISODE_ARRAYS = {"episode/end": "int64", "episode/seed": "int64", "episode/scene": "str", "episode/checksum": "uint64"}
SEGMENT_ARRAYS = {"segment/start": "int64", "segment/end": "int64", "segment/task": "str", "segment/instruction": "str"}


@dataclass(frozen=True)
class Segment:
    """A stretch [start, end) of an episode, in frames from its beginning, in which `instruction` was followed.

    `task` is the task's name in the world's table, "" where there is none (video).
    """

    start: int
    end: int
    task: str
    instruction: str


def frame_arrays(spec: Spec) -> dict[str, tuple[tuple[int, ...], str]]:
    """The arrays with one entry per frame that a dataset of this Spec has: name -> (shape of an entry, dtype)."""
    arrays: dict[str, tuple[tuple[int, ...], str]] = {
        image_key(camera): ((*size, 3), "uint8") for camera, size in spec.cameras.items()
    }
    for name, entries in ((STATE, spec.state), (ENVIRONMENT_STATE, spec.environment_state), (ACTION, spec.action)):
        if entries:
            arrays[name] = ((len(entries),), "float32")
    return arrays


def checksum(frames: np.ndarray) -> int:
    """64 bits of BLAKE2b over the bytes of one episode of one array."""
    return int.from_bytes(hashlib.blake2b(np.ascontiguousarray(frames).data, digest_size=8).digest(), "little")


def part_path(path: str | Path, part: int) -> str:
    """Where writer number `part` of a parallel job writes."""
    return f"{path}/part-{part:03d}"


def existing_group(path: str | Path, mode: Literal["r", "r+"]) -> zarr.Group | None:
    """The zarr group at a path or URL, or None if nothing is there; UserError if it is damaged."""
    try:
        return zarr.open_group(str(path), mode=mode)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:  # whatever zarr raises on a zarr.json that is cut short or altered
        raise unreadable(path, "zarr.json", error) from error


def unreadable(path: str | Path, name: str, error: Exception) -> UserError:
    """What is said of a part of a dataset that is there but makes no sense."""
    what = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"dataset {path}: {name} cannot be read ({what}): restore it or make the dataset again.")


class DatasetWriter:
    """Appends episodes to one zarr group at a local path or any fsspec URL.

    With `resume`, an existing dataset of the same Spec is continued after its last committed episode; without it, an
    existing one is refused. `provenance` says how the data came about (command, seed, versions): any JSON-able dict.
    Raises UserError for a mismatched Spec, a second writer at the same time, or a bad episode.
    """

    def __init__(self, path: str | Path, spec: Spec, provenance: Mapping[str, Any], resume: bool = True) -> None:
        self.path, self.spec = str(path), spec
        self._arrays = frame_arrays(spec)
        self._lock = _lock(self.path)
        group = existing_group(path, "r+")
        if group is None:
            attributes = {"kind": KIND, "spec": spec.to_dict(), "provenance": dict(provenance), "arrays": list(self._arrays)}
            group = zarr.create_group(self.path, attributes=attributes)
        elif group.attrs.get("kind") != KIND:
            raise UserError(f"{path} holds something that is not a dataset of this project: choose another path.")
        elif not resume:
            raise UserError(f"dataset {path} exists already: choose another path, remove it, or continue it with resume=true.")
        self.group = group
        try:
            saved = Spec.from_dict(cast(dict, group.attrs["spec"]))
        except (KeyError, TypeError, ValueError) as error:
            raise unreadable(path, "its spec", error) from error
        if saved.to_dict() != spec.to_dict():  # not the objects: sizes may be lists
            raise UserError(f"dataset {path} was begun with another spec ({_difference(saved, spec)}): choose another path.")
        if "committed" not in group.attrs:  # new, or killed while it was being created
            self._create_arrays()
            self._commit(episodes=0, segments=0, frames=0)
        self._committed = cast(dict[str, int], dict(cast(dict, group.attrs["committed"])))
        with zarr.config.set({"array.write_empty_chunks": True}):  # a file of black frames is no missing file
            self._handles = {name: self._handle(name) for name in (*self._arrays, *EPISODE_ARRAYS, *SEGMENT_ARRAYS)}
        self._truncate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def num_episodes(self) -> int:
        return self._committed["episodes"]

    @property
    def num_frames(self) -> int:
        return self._committed["frames"]

    @property
    def num_segments(self) -> int:
        return self._committed["segments"]

    @property
    def provenance(self) -> dict[str, Any]:
        """What the dataset's first writer said about it."""
        return cast(dict[str, Any], dict(cast(dict, self.group.attrs["provenance"])))

    @property
    def scenes(self) -> list[str]:
        """Scene of each committed episode."""
        return [str(s) for s in self._handles["episode/scene"][:]]  # pyright: ignore[reportGeneralTypeIssues]

    @property
    def seeds(self) -> np.ndarray:
        """Seeds of the committed episodes, int64 (E,): what a resumed job need not do again."""
        return np.asarray(self._handles["episode/seed"][:])

    def append_episode(
        self, frames: Mapping[str, np.ndarray], segments: Sequence[Segment], scene: str = "", seed: int = 0
    ) -> None:
        """Write one episode and commit it.

        frames: the Spec's arrays, each with the same leading number of frames T >= 1. segments: in any order, inside the
        episode. The episode counts once this returns.
        """
        length = self._check_episode(frames, segments)
        first, last = self.num_frames, self.num_frames + length
        for name in self._arrays:
            self._write(name, first, np.asarray(frames[name]))
        sums = [checksum(np.asarray(frames[name])) for name in self._arrays]
        for name, values in zip(EPISODE_ARRAYS, ([last], [seed], [scene], [sums]), strict=True):
            self._write(name, self.num_episodes, np.array(values, dtype=self._handles[name].dtype))
        rows = sorted((first + s.start, first + s.end, s.task, s.instruction) for s in segments)
        for name, values in zip(SEGMENT_ARRAYS, zip(*rows, strict=True), strict=False):
            self._write(name, self.num_segments, np.array(values, dtype=self._handles[name].dtype))
        self._commit(self.num_episodes + 1, self.num_segments + len(segments), last)

    def close(self) -> None:
        """Leave the statistics of this group in its attributes, for readers other than `Dataset`, and let go of the lock."""
        vectors = [name for name in (STATE, ACTION) if name in self._arrays and self.num_frames]
        found = {name: describe(np.asarray(self._handles[name][:])) for name in vectors}
        self.group.attrs["statistics"] = {name: {k: v.tolist() for k, v in s.items()} for name, s in found.items()}
        if self._lock is not None:
            self._lock.close()

    def _handle(self, name: str) -> zarr.Array:
        try:
            return cast(zarr.Array, self.group[name])
        except (KeyError, TypeError, ValueError) as error:
            raise unreadable(self.path, name, error) from error

    def _create_arrays(self) -> None:
        for name, (shape, dtype) in self._arrays.items():
            image = len(shape) == 3
            self.group.create_array(
                name,
                shape=(0, *shape),
                dtype=dtype,
                chunks=(FRAMES_PER_CHUNK if image else ROWS_PER_CHUNK, *shape),
                shards=(FRAMES_PER_SHARD, *shape) if image else None,
                compressors=None if image else "auto",
                overwrite=True,
            )
        for name, dtype in (EPISODE_ARRAYS | SEGMENT_ARRAYS).items():
            width = (len(self._arrays),) if name == "episode/checksum" else ()
            self.group.create_array(name, shape=(0, *width), dtype=dtype, chunks=(ROWS_PER_CHUNK, *width), overwrite=True)

    def _commit(self, episodes: int, segments: int, frames: int) -> None:
        self._committed = {"episodes": episodes, "segments": segments, "frames": frames}
        self.group.attrs["committed"] = self._committed

    def _truncate(self) -> None:
        """Cut off what was written but not committed."""
        for name, array in self._handles.items():
            kind = name.split("/")[0] + "s"
            count = self._committed.get(kind, self.num_frames)
            if array.shape[0] < count:
                raise UserError(
                    f"dataset {self.path}: {name} has {array.shape[0]} entries but {count} were committed: restore it."
                )
            array.resize((count, *array.shape[1:]))

    def _write(self, name: str, start: int, values: np.ndarray) -> None:
        if len(values):
            array = self._handles[name]
            array.resize((start + len(values), *array.shape[1:]))
            array[start:] = values

    def _check_episode(self, frames: Mapping[str, np.ndarray], segments: Sequence[Segment]) -> int:
        if set(frames) != set(self._arrays):
            raise UserError(
                f"episode has arrays {sorted(frames)} but the spec asks for {sorted(self._arrays)}: give exactly these."
            )
        length = len(next(iter(frames.values())))
        for name, (shape, dtype) in self._arrays.items():
            values = np.asarray(frames[name])
            if values.dtype != dtype or values.shape != (length, *shape) or length == 0:
                wanted = f"{dtype} {('T >= 1', *shape)}"
                raise UserError(
                    f"episode's {name} is {values.dtype} {values.shape}, not {wanted} with T = {length} in every array."
                )
            if values.ndim == 2 and not np.isfinite(values).all():
                frame, entry = np.argwhere(~np.isfinite(values))[0]
                raise UserError(
                    f"episode's {name} is {values[frame, entry]} at frame {frame}, entry {entry}: only finite numbers."
                )
        for s in segments:
            if not 0 <= s.start < s.end <= length:
                raise UserError(
                    f"segment [{s.start}, {s.end}) of task {s.task!r} is not inside its episode of {length} frames."
                )
        return length


def _difference(a: Spec, b: Spec) -> str:
    left, right = a.to_dict(), b.to_dict()
    name = next(k for k in left if left[k] != right[k])
    return f"{name} was {left[name]}, is {right[name]}"


def _lock(path: str) -> IO[str] | None:
    """Keeps a second writer off a local group; the system lets go of it when the process dies, however it dies."""
    if "://" in path:
        return None
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    handle = (folder / ".lock").open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise UserError(f"dataset {path} is being written by another process: wait for it, or choose another path.") from None
    return handle
