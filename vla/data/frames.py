"""Random access to the frames of one camera of one zarr group, fast enough for shuffled windows."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from vla.spec import UserError

MISSING = 2**64 - 1  # a chunk that was never written, in a shard's index


class FrameReader:
    """Reads frames by number from a zarr array (F, H, W, 3) of uint8, of which the first `count` are committed.

    A local array whose shards hold uncompressed chunks is read with one `pread` per run of neighbouring frames, straight
    into the result: the overhead of zarr per chunk would be ten times the copy itself. Anything else (a URL, compressed
    chunks) goes through zarr, run by run. Both give the same frames.
    """

    def __init__(self, array: zarr.Array, path: str, count: int) -> None:
        self.array, self.count = array, count
        self.shape: tuple[int, int, int] = tuple(array.shape[1:])  # pyright: ignore
        self.frame_bytes = int(np.prod(self.shape))
        self.folder = Path(path) / array.name.strip("/") if "://" not in path else None
        self.per_chunk, self.per_shard = array.chunks[0], (array.shards or array.chunks)[0]
        codecs: list[Any] = [c.to_dict() for c in array.metadata.codecs]  # pyright: ignore
        inner = codecs[0].get("configuration", {}).get("codecs", []) if codecs else []
        self.direct = (
            self.folder is not None
            and len(codecs) == 1
            and codecs[0]["name"] == "sharding_indexed"
            and codecs[0]["configuration"]["index_location"] == "end"
            and [c["name"] for c in inner] == ["bytes"]
            and all(full == part for full, part in zip(array.shape[1:], array.chunks[1:], strict=True))
        )
        self._offsets: dict[int, np.ndarray] = {}

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Frames `indices`, ascending and without repeats, int64 (K,): uint8 (K, H, W, 3)."""
        out = np.empty((len(indices), *self.shape), np.uint8)
        if len(indices):
            edges = np.diff(indices) != 1
            if self.direct:
                edges |= np.diff(indices // self.per_chunk) != 0
            bounds = np.concatenate(([0], np.flatnonzero(edges) + 1, [len(indices)]))
            (self._read_direct if self.direct else self._read_zarr)(indices, bounds, out)
        return out

    def missing_frames(self) -> np.ndarray:
        """Committed frames whose file is absent or too short, int64; looks at file sizes only. Local arrays only."""
        if not self.direct:
            return np.empty(0, np.int64)
        bad = [s for s in range(-(-self.count // self.per_shard)) if not self._complete(s)]
        frames = [np.arange(s * self.per_shard, min((s + 1) * self.per_shard, self.count)) for s in bad]
        return np.concatenate(frames) if frames else np.empty(0, np.int64)

    def _read_zarr(self, indices: np.ndarray, bounds: np.ndarray, out: np.ndarray) -> None:
        for i, j in pairwise(bounds):
            out[i:j] = self.array[int(indices[i]) : int(indices[j - 1]) + 1]

    def _read_direct(self, indices: np.ndarray, bounds: np.ndarray, out: np.ndarray) -> None:
        starts = indices[bounds[:-1]]
        shards, chunks, slots = starts // self.per_shard, starts % self.per_shard // self.per_chunk, starts % self.per_chunk
        handle, current = -1, -1
        try:
            for i, j, shard, chunk, slot in zip(
                bounds[:-1].tolist(), bounds[1:].tolist(), shards.tolist(), chunks.tolist(), slots.tolist(), strict=True
            ):
                if shard != current:
                    if handle >= 0:
                        os.close(handle)
                    handle, current = os.open(self._file(shard), os.O_RDONLY), shard
                offset = self._index(shard, handle)[chunk]
                if offset == MISSING:
                    out[i:j] = 0
                elif os.preadv(handle, [out[i:j]], int(offset) + slot * self.frame_bytes) != (j - i) * self.frame_bytes:
                    raise UserError(
                        f"{self._file(shard)} ends before frame {indices[j - 1]}: the dataset is damaged, restore the file."
                    )
        except FileNotFoundError as error:
            raise UserError(f"{error.filename} is missing: the dataset is damaged, restore the file.") from None
        finally:
            if handle >= 0:
                os.close(handle)

    def _file(self, shard: int) -> str:
        return f"{self.folder}/c/{shard}/0/0/0"

    def _index(self, shard: int, handle: int) -> np.ndarray:
        """Where each chunk of a shard begins, bytes from the file's beginning; from the (offset, length) pairs at its end."""
        if shard not in self._offsets:
            pairs = self.per_shard // self.per_chunk
            size = os.fstat(handle).st_size
            raw = os.pread(handle, 16 * pairs, max(size - 16 * pairs - 4, 0))  # 4 bytes of CRC close the file
            if len(raw) != 16 * pairs:
                raise UserError(f"{self._file(shard)} is cut short: the dataset is damaged, restore the file.")
            self._offsets[shard] = np.frombuffer(raw, "<u8").reshape(-1, 2)[:, 0]
        return self._offsets[shard]

    def _complete(self, shard: int) -> bool:
        try:
            handle = os.open(self._file(shard), os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            offsets = self._index(shard, handle)
            size, chunk_bytes = os.fstat(handle).st_size, self.per_chunk * self.frame_bytes
            used = offsets[offsets != MISSING]
            return bool(np.all(used + chunk_bytes + 16 * len(offsets) + 4 <= size))
        except UserError:
            return False
        finally:
            os.close(handle)
