"""What is wrong with a machine, a dataset, a checkpoint or a world, and with their meeting: all that is found, not the first.

A finding is a kind and a sentence. "wrong" must be mended before anything works, "note" is worth knowing, "fine" was looked at.
"""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import psutil
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from packaging.requirements import Requirement

from vla.checkpoint import Checkpoint, load_policy, read_checkpoint
from vla.data.store import Dataset, Part, parts_of
from vla.serving.run import blank
from vla.spec import ACTION, TASK, Entry, Spec, UserError, image_key, require_match
from vla.training.logging import available_cores, cpu_name

GIB = 2**30
LITTLE_MEMORY, LITTLE_DISK = 4.0, 5.0
"""GiB, below which there is a note."""
SAMPLE = 16
"""Frames of each camera that are looked at for pictures that show nothing."""


class Finding(NamedTuple):
    """One thing that was looked at."""

    kind: Literal["fine", "note", "wrong"]
    text: str


def examine(config: DictConfig) -> Iterator[Finding]:
    """Look at the machine, the world `config.env`, and at `config.path` and `config.checkpoint` where they are given."""
    yield from machine()
    specs: dict[str, Spec] = {}
    yield from world(config.env.world, specs)
    if config.path:
        plain: Any = OmegaConf.to_container(config.path) if OmegaConf.is_config(config.path) else config.path
        yield from dataset(plain, specs)
    if config.checkpoint:
        yield from checkpoint(config.checkpoint, config.override, specs)
    yield from meetings(specs)


def machine() -> Iterator[Finding]:
    """Processor, memory, disk, GPU, installed versions and the OpenGL library."""
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(".")
    free, room = memory.available / GIB, disk.free / GIB
    yield Finding("fine", f"{cpu_name()}, {available_cores()} cores; {free:.1f} of {memory.total / GIB:.1f} GiB of memory free")
    if free < LITTLE_MEMORY:
        yield Finding("note", f"only {free:.1f} GiB of memory are free: read datasets with data.mode=stream, take workers=1.")
    yield Finding(
        "fine" if room >= LITTLE_DISK else "note", f"{room:.0f} GiB of disk free here; 500,000 frames of play take 28"
    )
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        yield Finding("fine", f"torch {torch.__version__} sees {names}")
    else:
        yield Finding("fine", f"torch {torch.__version__} sees no GPU: all is computed on the CPU")
    yield from versions()
    if ctypes.util.find_library("EGL"):
        yield Finding("fine", "libEGL is there, which renderer=gl needs")
    else:
        yield Finding("note", "there is no libEGL: renderer=gl needs it (Debian: apt install libegl1 libgl1-mesa-dri).")


def versions(package: str = "hydra-vla") -> Iterator[Finding]:
    """Whether the packages that `package` asks for are there in the versions that it asks for."""
    wanted = [Requirement(line) for line in importlib.metadata.requires(package) or ()]
    wanted = [r for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    bad = 0
    for requirement in wanted:
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            found = None
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            bad += 1
            what = f"is {found}, not {requirement.specifier}" if found else f"is missing ({requirement.specifier or 'any'})"
            yield Finding("wrong", f"package {requirement.name} {what}: run `make setup`.")
    if not bad:
        yield Finding("fine", f"all {len(wanted)} packages that {package} asks for are there in fitting versions")


def world(config: DictConfig, specs: dict[str, Spec]) -> Iterator[Finding]:
    """Whether one world starts, steps and draws; notes its Spec in `specs`."""
    if "num_worlds" in config:
        config = OmegaConf.merge(config, {"num_worlds": 1})  # type: ignore[assignment]
    try:
        made = instantiate(config, _partial_=True, _convert_="all")()
        made.reset(seed=0)
        begin = time.perf_counter()
        observation, *_ = made.step(np.zeros(made.action_space.shape, np.float32))
        spent = 1e3 * (time.perf_counter() - begin)
    except UserError as error:
        yield Finding("wrong", str(error))
        return
    spec = specs["the world"] = made.vla_spec
    yield Finding("fine", f"the world {config._target_} starts; a control step with {_cameras(spec)} takes {spent:.1f} ms")
    for camera in spec.cameras:
        if not np.ptp(observation[image_key(camera)]):
            yield Finding("wrong", f"the world's camera {camera!r} draws nothing: try another renderer.")
    made.close()


def dataset(path: Any, specs: dict[str, Spec]) -> Iterator[Finding]:
    """Every part of a dataset, read whole and compared with its checksums; notes the Spec in `specs`."""
    damaged = False
    for one in [path] if isinstance(path, str) else path:
        try:
            places = parts_of(str(one))
        except UserError as error:
            damaged = True
            yield Finding("wrong", str(error))
            continue
        for place in places:
            try:
                faults = list(Part(place).image_faults())
            except UserError as error:
                faults = [error]
            damaged |= bool(faults)
            yield from (Finding("wrong", str(fault)) for fault in faults)
    if damaged:
        return
    try:
        found = Dataset(path)
    except UserError as error:
        yield Finding("wrong", str(error))
        return
    specs[f"dataset {found.path}"] = found.spec
    yield Finding(
        "fine",
        f"dataset {found.path}: {found.num_frames:,} frames and {found.num_episodes:,} episodes as they were written, "
        f"{len(found.segments):,} segments, {len(found.tasks) - 1} tasks, {len(found.instructions) - 1:,} instructions, "
        f"{_cameras(found.spec)}, digest {found.digest}",
    )
    yield from (Finding("note", sentence) for sentence in found.narrow)
    yield from _contents(found)


def _contents(found: Dataset) -> Iterator[Finding]:
    """Notes about a dataset that is whole but may not be what was meant."""
    labelled = np.zeros(found.num_frames + 1, np.int64)
    np.add.at(labelled, found.segments["start"], 1)
    np.add.at(labelled, found.segments["end"], -1)
    share = 1 - np.count_nonzero(labelled.cumsum()[:-1]) / found.num_frames
    if share > 0.5:
        yield Finding("note", f"{100 * share:.0f} % of the frames are in no segment: data.segments=all learns from them too.")
    for i, entry in enumerate(found.spec.action):
        values = found.vectors[ACTION][:, i]
        outside = np.count_nonzero(~_within(values, entry))
        if outside:
            yield Finding(
                "note",
                f"{ACTION}[{i}] {entry.name} is outside [{entry.low}, {entry.high}] in {outside} frames, at most "
                f"{values[np.abs(values).argmax()]:g}: check its unit.",
            )
    frames = np.unique(np.linspace(0, found.num_frames - 1, SAMPLE).astype(np.int64))
    for camera in found.spec.cameras:
        if not np.ptp(found.images(camera, frames)):
            yield Finding("note", f"camera {camera!r} shows one colour in {len(frames)} frames: check what was recorded.")


def _within(values: np.ndarray, entry: Entry) -> np.ndarray:
    low = -np.inf if entry.low is None else entry.low
    high = np.inf if entry.high is None else entry.high
    return (values >= low - 1e-6) & (values <= high + 1e-6)


def checkpoint(folder: str, override: Mapping[str, Any], specs: dict[str, Spec]) -> Iterator[Finding]:
    """Whether a checkpoint is whole, finite, and acts; notes its Spec in `specs`."""
    try:
        read = read_checkpoint(folder)
        policy = load_policy(folder, **override)
    except UserError as error:
        yield Finding("wrong", str(error))
        return
    specs[f"checkpoint {folder}"] = read.spec
    count = sum(p.numel() for p in policy.parameters())
    step, cameras = read.training.get("step"), _cameras(read.spec)
    yield Finding("fine", f"checkpoint {folder}: {read.config._target_}, {count:,} parameters, step {step}, {cameras}")
    if read.spec.action:
        yield from _acting(policy, read)


def _acting(policy: Any, read: Checkpoint) -> Iterator[Finding]:
    """One question about black pictures and a state of zeros."""
    instruction = next(iter(read.training.get("instructions", ())), "")
    observation = {name: value[None] for name, value in blank(read.spec).items() if name != TASK} | {TASK: [instruction]}
    begin = time.perf_counter()
    chunk, _ = policy.act(observation, policy.begin([0]))
    spent = 1e3 * (time.perf_counter() - begin)
    shape = f"{chunk.shape[1]} x {chunk.shape[2]}"
    if chunk.shape[2] != len(read.spec.action) or not np.isfinite(chunk).all():
        yield Finding(
            "wrong", f"checkpoint {read.folder} answers with actions ({shape}) that are not finite or do not fit: train anew."
        )
        return
    yield Finding("fine", f"it answers with a chunk of {shape} in {spent:.0f} ms, the first time")


def meetings(specs: Mapping[str, Spec]) -> Iterator[Finding]:
    """Whether the checkpoint finds what it needs in the dataset and in the world, and the dataset's actions fit the world."""
    for needs, has in ((a, b) for a in specs for b in specs):
        kinds = (needs.split()[0], has.split()[0])
        if kinds not in (("checkpoint", "dataset"), ("checkpoint", "the"), ("dataset", "the")):
            continue
        try:
            require_match(specs[needs], specs[has], needs, has)
        except UserError as error:  # data of another robot is no mistake as long as nobody trains for this one on it
            yield Finding("note" if kinds[0] == "dataset" else "wrong", str(error))
        else:
            yield Finding("fine", f"{needs} fits {has}")


def _cameras(spec: Spec) -> str:
    return ", ".join(f"{name} {h}x{w}" for name, (h, w) in spec.cameras.items()) or "no cameras"
