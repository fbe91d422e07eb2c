"""Where windows get their frames from: memory if all fit, the disk if not. Both give the same frames."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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
    cache: a folder in which the frames that memory would hold are kept as files; all processes of a machine then share one
    copy in its page cache, and the next run begins at once. On a CPU `auto` always takes it, as what does not fit the page
    cache is read from the file again, already at its size. Its files can be deleted at any time between runs.
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
        cache: str | Path | None = None,
    ) -> None:
        self.dataset, self.sizes, self.threads, self.device = dataset, sizes, threads, torch.device(device)
        self._pool = ThreadPoolExecutor(threads, "frames")
        need = len(frames) * sum(3 * h * w for h, w in sizes.values()) / GIGABYTE
        free = _free_gb(self.device) if memory_gb is None else memory_gb
        mapped = cache is not None and self.device.type == "cpu"
        self.in_memory = mode == "memory" or (mode == "auto" and (need <= free or mapped))
        how = "mapping" if self.in_memory and mapped else "loading" if self.in_memory else "streaming"
        print(f"windows: {how} {len(frames)} frames of {dataset.path} ({need:.1f} GB; {free:.1f} GB may be filled)", flush=True)
        if self.in_memory:
            self._row = np.zeros(dataset.num_frames, np.int64)
            self._row[frames] = np.arange(len(frames))
            self._memory = {c: self._cached(Path(cache), c, frames) if cache else self._load(c, frames) for c in sizes}

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

    def _take(self, images: torch.Tensor | np.ndarray, rows: np.ndarray) -> torch.Tensor:
        if isinstance(images, np.ndarray):
            return torch.from_numpy(images.take(rows, axis=0))  # faster than index_select on bytes
        return images.index_select(0, torch.from_numpy(rows).to(self.device))

    def _load(self, camera: str, frames: np.ndarray) -> torch.Tensor | np.ndarray:
        """All frames of a camera in memory: an array on the CPU, a tensor elsewhere."""
        images = torch.empty((len(frames), *self.sizes[camera], 3), dtype=torch.uint8, device=self.device)
        self._fill(images, camera, frames)
        return images.numpy() if self.device.type == "cpu" else images

    def _cached(self, folder: Path, camera: str, frames: np.ndarray) -> torch.Tensor | np.ndarray:
        """The same from a file in `folder`, which is made if it is not there; by one process, while others wait for it."""
        height, width = self.sizes[camera]
        chosen = hashlib.sha256(frames.tobytes()).hexdigest()[:8]
        path = folder / f"{self.dataset.digest}-{camera}-{height}x{width}-{chosen}.npy"
        folder.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                part = path.with_suffix(".part")
                shape = (len(frames), height, width, 3)
                images = np.lib.format.open_memmap(part, "w+", np.uint8, shape)
                self._fill(torch.from_numpy(images), camera, frames)
                images.flush()
                part.rename(path)
        images = np.load(path, mmap_mode="r")
        return images if self.device.type == "cpu" else torch.from_numpy(np.array(images)).to(self.device)

    def _fill(self, images: torch.Tensor, camera: str, frames: np.ndarray) -> None:
        def load(i: int) -> int:
            chosen = frames[i : i + FRAMES_PER_LOAD]
            images[i : i + len(chosen)] = self._read(camera, chosen)
            return len(chosen)

        blocks = range(0, len(frames), FRAMES_PER_LOAD)
        with tqdm(total=len(frames), unit="frame", disable=len(blocks) < 100, desc=f"loading {camera}") as bar:
            for count in self._pool.map(load, blocks):
                bar.update(count)


def _free_gb(device: torch.device) -> float:
    if device.type == "cuda":
        return MEMORY_SHARE * torch.cuda.mem_get_info(device)[0] / GIGABYTE
    return MEMORY_SHARE * psutil.virtual_memory().available / GIGABYTE
