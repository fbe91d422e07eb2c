"""Numbers of another format that ours would round, kept bit for bit beside the dataset's own arrays.

    <group>/original/<name>    (F, ...)   one row per frame or per segment, in the type that the other format had

Rows are written before the writer commits the episode, and cut back to what is committed when the group is opened again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import zarr

from vla.data.writer import ROWS_PER_CHUNK, DatasetWriter

FOLDER = "original"
Shapes = Mapping[str, tuple[tuple[int, ...], str]]


class Originals:
    """Adds to the arrays named in `frames` and `segments`: name -> (shape of a row, dtype)."""

    def __init__(self, writer: DatasetWriter, frames: Shapes, segments: Shapes) -> None:
        group = writer.group.require_group(FOLDER)
        self._arrays: dict[str, zarr.Array] = {}
        for shapes, count in ((frames, writer.num_frames), (segments, writer.num_segments)):
            for name, (shape, dtype) in shapes.items():
                if name not in group:
                    rows = 64 if len(shape) > 1 else ROWS_PER_CHUNK  # pictures, else numbers
                    group.create_array(name, shape=(0, *shape), dtype=dtype, chunks=(rows, *shape))
                self._arrays[name] = cast(zarr.Array, group[name])
                self._arrays[name].resize((count, *shape))

    def append(self, rows: Mapping[str, np.ndarray]) -> None:
        """Write rows of some of the arrays; they count when the writer has appended the episode that they belong to."""
        for name, values in rows.items():
            if len(values):
                array, start = self._arrays[name], self._arrays[name].shape[0]
                array.resize((start + len(values), *array.shape[1:]))
                array[start:] = values
