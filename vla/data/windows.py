"""Shuffled windows of a dataset as training batches.

A window has a "now" frame, T - 1 frames of history before it, the frame to foresee after each, and the actions from each on:

    now - 2 stride   now - stride    now      now + foresight          T = 3
    |--- history ------------------->|........>| future of now
    |>chunk          |>chunk         |>chunk

Before the episode's beginning the first frame is repeated (`frame.mask` False), after its end the last (`future.mask`
False). Actions count only inside the segment whose instruction the window carries (`action.mask`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from vla.data.hand import HandPath
from vla.data.source import FrameSource
from vla.data.store import Dataset
from vla.spec import ACTION, ENVIRONMENT_STATE, STATE, TASK, UserError, image_key

PATH_PREFIX = "path."


class Windows:
    """Batches of windows, each a function of its number alone: `batch(k)` is the same whenever and wherever it is asked.

    Batches follow each other through one endless stream of shuffles of all windows, so that no window is dropped or seen
    twice in an epoch, a run's place is one number, and N ranks that take batches r, r + N, ... see what one would.

    dataset: a Dataset or what opens one. cameras: which to give (default all).
    history, history_stride: T frames, that many apart. foresight_steps: 0 for no future frames. chunk: actions per frame.
    segments: "labelled" gives every frame of every segment as now, "successes" only of those that are known to have succeeded,
    "corrections" only those at which a person drove; "all" also frames without a label (instruction "").
    actions_until: "segment" masks actions outside the window's segment; "episode" lets chunks run on to the episode's end.
    part, holdout: every `holdout`-th episode is kept for part="validation" and left out of part="train".
    max_frames: only so many frames' worth of episodes, drawn by `seed`; for learning curves.
    shuffle_instructions: carry any instruction that the dataset has for the segment's task, drawn anew each time.
    environment_state: also give the privileged state (B, T, E).
    image_size: side in pixels, or one per camera; frames are averaged down to it. None keeps the dataset's.
    mode: "memory" loads all frames once, "stream" reads each batch from disk, "auto" takes memory if the frames fit.
    memory_gb: what fits (default: 60 % of the free memory). device: where frames in memory live.
    threads: for reading; more than cores, as they wait for the disk.
    cache: folder of a copy of the frames in memory that processes and runs share (see `FrameSource`).
    hand_path: so many points of the way that the hand goes from the window's now to its segment's end (the episode's
    where there is none), evenly spaced in time, for each camera with a projection in the Spec; 0 for none. Points of the way
    there, before anything moves or far from its end, are left out (vla/data/hand.py).
    """

    def __init__(
        self,
        dataset: Dataset | str | Path | Sequence[str | Path],
        cameras: Sequence[str] | None = None,
        *,
        batch_size: int = 64,
        seed: int = 0,
        shuffle: bool = True,
        history: int = 1,
        history_stride: int = 1,
        foresight_steps: int = 3,
        chunk: int = 10,
        segments: Literal["labelled", "successes", "corrections", "all"] = "labelled",
        actions_until: Literal["segment", "episode"] = "segment",
        part: Literal["all", "train", "validation"] = "all",
        holdout: int = 20,
        max_frames: int | None = None,
        shuffle_instructions: bool = False,
        environment_state: bool = False,
        image_size: int | Mapping[str, int] | None = None,
        mode: Literal["auto", "memory", "stream"] = "auto",
        memory_gb: float | None = None,
        threads: int = 8,
        device: str | torch.device = "cpu",
        cache: str | Path | None = None,
        hand_path: int = 0,
    ) -> None:
        self.dataset = dataset if isinstance(dataset, Dataset) else Dataset(dataset)
        self.cameras = list(self.dataset.spec.cameras) if cameras is None else list(cameras)
        for camera in self.cameras:
            if camera not in self.dataset.spec.cameras:
                has = sorted(self.dataset.spec.cameras)
                raise UserError(f"dataset {self.dataset.path} has no camera {camera!r}: choose among {has}.")
        for name, value, choices in (
            ("segments", segments, ("labelled", "successes", "corrections", "all")),
            ("actions_until", actions_until, ("segment", "episode")),
            ("part", part, ("all", "train", "validation")),
            ("mode", mode, ("auto", "memory", "stream")),
        ):
            if value not in choices:
                raise UserError(f"windows: {name} is {value!r}: choose one of {', '.join(choices)}.")
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("history", history, 1),
            ("history_stride", history_stride, 1),
            ("foresight_steps", foresight_steps, 0),
            ("hand_path", hand_path, 0),
            ("chunk", chunk, 1),
            ("holdout", holdout, 2),
            ("threads", threads, 1),
        ):
            if value < least:
                raise UserError(f"windows: {name} is {value}: give at least {least}.")
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.history, self.history_stride = history, history_stride
        self.foresight_steps, self.chunk = foresight_steps, chunk
        self.actions_until, self.shuffle_instructions = actions_until, shuffle_instructions
        self.sizes = {c: self._size(c, image_size) for c in self.cameras}
        self.vectors = [n for n in (STATE, *([ENVIRONMENT_STATE] if environment_state else [])) if n in self.dataset.vectors]
        episodes = self._choose_episodes(part, holdout, max_frames)
        self._now, self._segment = self._choose_frames(episodes, segments)
        self._hand = HandPath(self.dataset, self.cameras) if hand_path else None
        self.hand_path = hand_path
        self._order = lru_cache(maxsize=2)(self._shuffled)
        self._texts_of_task = self._group_instructions()
        starts, ends = self.dataset.episode_starts[episodes], self.dataset.episode_ends[episodes]
        frames, _ = _ranges(starts, ends, episodes)
        self._source = FrameSource(self.dataset, self.sizes, frames, mode, memory_gb, threads, device, cache)

    def __len__(self) -> int:
        """Number of windows in one epoch."""
        return len(self._now)

    @property
    def instructions(self) -> list[str]:
        """What `task.index` points into; entry 0 is ""."""
        return self.dataset.instructions

    @property
    def fingerprint(self) -> str:
        """Changes with anything that changes a batch: what a resumed run compares."""
        settings = (
            *(self.dataset.digest, self.batch_size, self.seed, self.shuffle, self.history, self.history_stride, self.chunk),
            *(self.foresight_steps, self.actions_until, self.shuffle_instructions, self.vectors, sorted(self.sizes.items())),
            *([self.hand_path, self._hand.cameras] if self._hand else []),
        )
        return hashlib.sha256(repr(settings).encode() + self._now.tobytes()).hexdigest()[:16]

    def batch(self, number: int) -> dict[str, Any]:
        """Batch `number` >= 0 of B windows: tensors with leading (B, T) named as in the module's docstring.

        observation.images.<camera>, future.images.<camera> uint8 (B, T, H, W, 3); observation.state float32 (B, T, S);
        action float32 (B, T, chunk, A); action.mask, frame.mask, future.mask bool; task: B instructions and task.index
        int64 (B,), their place in `instructions`; task.name: B names of tasks, "" for none; progress float32 (B, T), from 0 at
        the segment's first frame to 1 at its last, where progress.mask. Datasets without states or actions give none.
        path.<camera> float32 (B, hand_path, 2): u to the right and v downwards, in shares of the picture.
        """
        places = number * self.batch_size + np.arange(self.batch_size)
        epochs, within = np.divmod(places, len(self))
        items = np.empty(self.batch_size, np.int64)
        for epoch in np.unique(epochs):
            items[epochs == epoch] = self._order(int(epoch))[within[epochs == epoch]]
        return self._gather(items, np.random.default_rng((self.seed, 1, number)))

    def _gather(self, items: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        data, now, segment = self.dataset, self._now[items], self._segment[items]
        episode = np.searchsorted(data.episode_ends, now, side="right")
        start, end = data.episode_starts[episode][:, None], data.episode_ends[episode][:, None]
        wanted = now[:, None] - self.history_stride * np.arange(self.history - 1, -1, -1)
        at, real = np.maximum(wanted, start), wanted >= start
        batch: dict[str, Any] = {"frame.mask": torch.from_numpy(real)}
        ahead = at + self.foresight_steps
        frames = [at]
        if self.foresight_steps:
            batch["future.mask"] = torch.from_numpy((ahead < end) & real)
            frames.append(np.minimum(ahead, end - 1))
        for camera, images in zip(self.cameras, self._source.fetch(np.concatenate(frames, 1)), strict=True):
            batch[image_key(camera)] = images[:, : self.history]
            if self.foresight_steps:
                batch[f"future.images.{camera}"] = images[:, self.history :]
        for name in self.vectors:
            batch[name] = torch.from_numpy(data.vectors[name][at])
        inside = self._bounds(segment, start, end)
        if ACTION in data.vectors:
            low, high = (start, end) if self.actions_until == "episode" else inside
            steps = at[:, :, None] + np.arange(self.chunk)
            mask = (steps >= low[:, :, None]) & (steps < high[:, :, None]) & real[:, :, None]
            batch[ACTION] = torch.from_numpy(data.vectors[ACTION][np.minimum(steps, end[:, :, None] - 1)])
            batch["action.mask"] = torch.from_numpy(mask)
            batch |= self._progress(at, (segment >= 0)[:, None] & real, *inside)
        if self._hand:
            last = inside[1] - 1
            way = now[:, None] + (last - now[:, None]) * np.linspace(0, 1, self.hand_path)
            for camera, places in self._hand(now, way.astype(np.int64), segment).items():
                batch[PATH_PREFIX + camera] = torch.from_numpy(places)
        texts = self._instruction_numbers(segment, rng)
        batch[TASK] = [data.instructions[i] for i in texts]
        batch["task.index"] = torch.from_numpy(texts)
        batch["task.name"] = [data.tasks[i] for i in self._task_numbers(segment)]
        return batch

    def _bounds(self, segment: np.ndarray, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and last + 1 frame of each window's segment, or of its episode where it has none, (B, 1) each."""
        segments, labelled = self.dataset.segments, (segment >= 0)[:, None]
        if not len(segments):
            return start, end
        return (
            np.where(labelled, segments["start"][segment][:, None], start),
            np.where(labelled, segments["end"][segment][:, None], end),
        )

    @staticmethod
    def _progress(at: np.ndarray, known: np.ndarray, low: np.ndarray, high: np.ndarray) -> dict[str, torch.Tensor]:
        """How much of the segment is past at frames `at` (B, T), and where that is so: in it, where a label is `known`."""
        share = np.clip((at - low) / np.maximum(high - 1 - low, 1), 0, 1).astype(np.float32)
        return {"progress": torch.from_numpy(share), "progress.mask": torch.from_numpy(known & (at >= low) & (at < high))}

    def _task_numbers(self, segment: np.ndarray) -> np.ndarray:
        if not len(self.dataset.segments):
            return np.zeros(len(segment), np.int64)
        return np.where(segment >= 0, self.dataset.segments["task"][segment], 0).astype(np.int64)

    def _instruction_numbers(self, segment: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if not len(self.dataset.segments):
            return np.zeros(len(segment), np.int64)
        texts = np.where(segment >= 0, self.dataset.segments["instruction"][segment], 0).astype(np.int64)
        if self.shuffle_instructions:
            tasks = self._task_numbers(segment)
            draws = rng.random(len(segment))
            for i in np.flatnonzero(tasks):  # a segment without a task keeps its own words
                choices = self._texts_of_task[tasks[i]]
                texts[i] = choices[int(draws[i] * len(choices))]
        return texts

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, 0, epoch)).permutation(len(self)) if self.shuffle else np.arange(len(self))

    def _size(self, camera: str, image_size: int | Mapping[str, int] | None) -> tuple[int, int]:
        size = image_size.get(camera) if isinstance(image_size, Mapping) else image_size
        return self.dataset.spec.cameras[camera] if size is None else (size, size)

    def _choose_episodes(self, part: str, holdout: int, max_frames: int | None) -> np.ndarray:
        episodes = np.arange(self.dataset.num_episodes)
        kept = episodes % holdout == holdout - 1
        if part != "all":
            episodes = episodes[kept if part == "validation" else ~kept]
        if max_frames is not None:
            order = np.random.default_rng((self.seed, 2)).permutation(episodes)
            lengths = (self.dataset.episode_ends - self.dataset.episode_starts)[order]
            episodes = np.sort(order[: max(1, np.searchsorted(np.cumsum(lengths), max_frames, side="right"))])
        if not len(episodes):
            raise UserError(
                f"part={part!r} of {self.dataset.path} has no episodes with holdout={holdout}: take a smaller holdout."
            )
        return episodes

    def _choose_frames(self, episodes: np.ndarray, segments: str) -> tuple[np.ndarray, np.ndarray]:
        """Now frame and segment (-1 for none) of every window."""
        data = self.dataset
        wanted = np.isin(data.segments["episode"], episodes)
        if segments == "successes":
            wanted &= data.segments["success"] == 1
        labels = np.flatnonzero(wanted)
        now, segment = _ranges(data.segments["start"][labels], data.segments["end"][labels], labels)
        if segments == "corrections":
            person = data.person[now]
            now, segment = now[person], segment[person]
        if segments == "all":
            every, _ = _ranges(data.episode_starts[episodes], data.episode_ends[episodes], episodes)
            rest = np.setdiff1d(every, now)
            now, segment = np.concatenate((now, rest)), np.concatenate((segment, np.full(len(rest), -1)))
        if not len(now):
            kind = "labelled segments" if segments in ("labelled", "all") else segments
            raise UserError(f"dataset {data.path} has no {kind} in the chosen episodes: use segments=all.")
        return now, segment

    def _group_instructions(self) -> list[np.ndarray]:
        tasks, texts = self.dataset.segments["task"], self.dataset.segments["instruction"]
        return [np.unique(texts[tasks == k]) for k in range(len(self.dataset.tasks))]


def _ranges(starts: np.ndarray, ends: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All numbers of the ranges [start, end), one range after another, and the label of each number's range."""
    lengths = ends - starts
    first = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) + np.repeat(starts - first, lengths), np.repeat(labels, lengths)
