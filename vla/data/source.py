"""Where windows get their frames from: memory if all fit, the disk if not. Both give the same frames."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import torch
from tqdm import tqdm

from vla.data.store import Dataset
from vla.images import resize_area

MEMORY_SHARE = 0.6  # of the memory that is free may be filled with frames
FRAMES_PER_LOAD = 256  # the floats of more do not fit a core's cache while they are resized
GIGABYTE = 1e9


class FrameSource:
    """Batches of frames of a dataset's cameras, at their sizes {camera: (height, width)}.

    frames: the ones that can be asked for, int64 ascending. mode: "memory" loads them once, "stream" reads what each batch
    asks for, "auto" takes memory if they fit into `memory_gb` (default: 60 % of what is free on `device`) and says which.
    """

    def __init__(
        self,
        dataset: Dataset,
        sizes: Mapping[str, tuple[int, int]],
        frames: np.ndarray,
        mode: str,
        memory_gb: float | None,
        threads: int,
        device: str | torch.device,
    ) -> None:
        self.dataset, self.sizes, self.threads, self.device = dataset, sizes, threads, torch.device(device)
        self._pool = ThreadPoolExecutor(threads, "frames")
        need = len(frames) * sum(3 * h * w for h, w in sizes.values()) / GIGABYTE
        free = _free_gb(self.device) if memory_gb is None else memory_gb
        self.in_memory = mode == "memory" or (mode == "auto" and need <= free)
        how = "loading" if self.in_memory else "streaming"
        print(f"windows: {how} {len(frames)} frames of {dataset.path} ({need:.1f} GB; {free:.1f} GB may be filled)", flush=True)
        if self.in_memory:
            self._row = np.zeros(dataset.num_frames, np.int64)
            self._row[frames] = np.arange(len(frames))
            self._memory = self._load(frames)

    def fetch(self, indices: np.ndarray) -> list[torch.Tensor]:
        """Frames `indices` int64 (B, K) of each camera: uint8 (B, K, height, width, 3)."""
        if self.in_memory:
            rows = self._row[indices].ravel()
            flat = [self._take(images, rows) for images in self._memory.values()]
        else:
            unique, inverse = np.unique(indices, return_inverse=True)  # windows overlap: read each frame once
            order = torch.from_numpy(inverse.ravel())
            pieces = [p for p in np.array_split(unique, self.threads) if len(p)]
            read = [[self._pool.submit(self._read, c, p) for p in pieces] for c in self.sizes]
            flat = [torch.cat([f.result() for f in futures]).index_select(0, order) for futures in read]
        return [images.unflatten(0, indices.shape) for images in flat]

    def _read(self, camera: str, indices: np.ndarray) -> torch.Tensor:
        return resize_area(torch.from_numpy(self.dataset.images(camera, indices)), *self.sizes[camera])

    def _take(self, images: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        if self.device.type == "cpu":
            return torch.from_numpy(images.numpy().take(rows, axis=0))  # faster than index_select on bytes
        return images.index_select(0, torch.from_numpy(rows).to(self.device))

    def _load(self, frames: np.ndarray) -> dict[str, torch.Tensor]:
        memory = {c: torch.empty((len(frames), *s, 3), dtype=torch.uint8, device=self.device) for c, s in self.sizes.items()}

        def load(block: tuple[str, int]) -> int:
            camera, i = block
            chosen = frames[i : i + FRAMES_PER_LOAD]
            memory[camera][i : i + len(chosen)] = self._read(camera, chosen)
            return len(chosen)

        blocks = [(c, i) for i in range(0, len(frames), FRAMES_PER_LOAD) for c in self.sizes]
        with tqdm(total=len(frames) * len(self.sizes), unit="frame", disable=len(blocks) < 100, desc="loading") as bar:
            for count in self._pool.map(load, blocks):
                bar.update(count)
        return memory


def _free_gb(device: torch.device) -> float:
    if device.type == "cuda":
        return MEMORY_SHARE * torch.cuda.mem_get_info(device)[0] / GIGABYTE
    return MEMORY_SHARE * psutil.virtual_memory().available / GIGABYTE
