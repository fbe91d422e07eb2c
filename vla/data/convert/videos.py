"""Video clips with captions as a dataset: frames and an instruction per clip, no states, no actions."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import numpy as np
import torch
from av.error import FFmpegError
from tqdm import tqdm

from vla.data.convert.files import Fault, in_order, inside
from vla.data.convert.report import Summary
from vla.data.writer import DatasetWriter, Segment
from vla.images import resize_area
from vla.spec import Spec, UserError, image_key

SUFFIXES = {".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v"}
CAPTIONS = "captions.jsonl"

Fit = Literal["crop", "squash"]


@dataclass(frozen=True)
class Clip:
    """A file, relative to the folder, and its caption ("" where there is none)."""

    file: str
    instruction: str


def find_clips(folder: str | Path) -> list[Clip]:
    """The clips of a folder in the order of their names.

    Captions are lines {"file": ..., "instruction": ...} of captions.jsonl, or without that a .txt beside each clip.
    Raises UserError if there is no folder, no clip, or a line that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the folder that holds the clips as path=...")
    files = sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES)
    captions: dict[str, str] = {}
    if (folder / CAPTIONS).exists():
        for number, line in enumerate((folder / CAPTIONS).read_text().splitlines(), 1):
            try:
                row = json.loads(line) if line.strip() else {"file": "", "instruction": ""}
                captions[str(row["file"])] = str(row["instruction"]).strip()
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f'{folder / CAPTIONS} line {number} is not {{"file": ..., "instruction": ...}}: correct it.'
                ) from None
        captions.pop("", None)
    else:
        texts = {f: (folder / f).with_suffix(".txt") for f in files}
        captions = {f: t.read_text().strip() for f, t in texts.items() if t.exists()}
    clips = [Clip(f, captions.get(f, "")) for f in sorted({*files, *captions})]
    if not clips:
        raise UserError(f"{folder} holds no clips ({', '.join(sorted(SUFFIXES))}): give the folder that does as path=...")
    return clips


def decode(path: str | Path, fps: float, size: int, fit: Fit = "crop") -> np.ndarray:
    """Frames of a clip, `fps` a second of its time: uint8 (T, size, size, 3) RGB.

    `crop` takes the middle square, `squash` the whole picture; both are averaged down by area. A clip slower than `fps`
    gives every frame. Raises Fault with the reason.
    """
    frames: list[np.ndarray] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise Fault("no video in the file")
            stream = container.streams.video[0]
            rate = float(stream.average_rate or 0)
            due = 0.0
            for number, frame in enumerate(container.decode(stream)):
                seconds = frame.time if frame.time is not None else number / (rate or fps)
                if number == 0:
                    begin = seconds
                # Half a source frame of tolerance, so that 30 fps at 10 fps gives exactly every third frame.
                if (seconds - begin) * fps + (0.5 * fps / rate if rate else 0.0) >= due:
                    frames.append(_fitted(frame.to_ndarray(format="rgb24"), fit))
                    due += 1
    except (FFmpegError, OSError, ValueError) as error:
        raise Fault(f"cannot be decoded ({getattr(error, 'strerror', None) or error})") from None
    if len(frames) < 2:
        raise Fault(f"has {len(frames)} frames at {fps:g} a second, too short to foresee anything")
    if any(f.shape != frames[0].shape for f in frames):
        raise Fault("changes its picture size on the way")
    return np.concatenate(
        [resize_area(torch.from_numpy(np.stack(frames[i : i + 64])), size, size).numpy() for i in range(0, len(frames), 64)]
    )


def convert(
    path: str | Path,
    out: str | Path,
    camera: str = "static",
    size: int = 96,
    fit: Fit = "crop",
    fps: float = 10,
    threads: int = 2,
    report: Callable[[str], None] = print,
) -> Summary:
    """Turn a folder of captioned clips into a dataset with one camera, an episode and a segment per clip.

    The clip's file stands as the episode's scene. Broken and captionless clips are skipped and reported. Run again after a
    kill it goes on with the clips that are not yet there; with other settings than before it refuses.
    """
    if fit not in ("crop", "squash"):
        raise UserError(f"fit is {fit!r}: choose crop or squash.")
    if not (size > 0 and fps > 0 and threads > 0):
        raise UserError(f"size, fps and threads are {size}, {fps}, {threads}: all must be above 0.")
    clips = find_clips(path)
    settings = {"source": "videos", "camera": camera, "size": size, "fit": fit, "fps": fps}
    spec = Spec(cameras={camera: (size, size)}, frame="video")
    with DatasetWriter(out, spec, {"conversion": settings}) as writer:
        if writer.provenance.get("conversion") != settings:
            raise UserError(f"dataset {out} was begun with {writer.provenance.get('conversion')}: choose another out=...")
        done = set(writer.scenes)
        skipped = {c.file: "has no caption" for c in clips if not c.instruction}
        left = [c for c in clips if c.instruction and c.file not in done]
        if done:
            report(f"{len(done)} of {len(clips)} clips are in {out} already")
        read = functools.partial(_decode_or_reason, str(path), fps=fps, size=size, fit=fit)
        with tqdm(total=len(left), unit="clip", desc="converting", smoothing=0.05) as bar:
            for clip, frames in zip(left, in_order(read, [c.file for c in left], threads), strict=True):
                if isinstance(frames, str):
                    skipped[clip.file] = frames
                else:
                    segment = Segment(0, len(frames), "", clip.instruction)
                    writer.append_episode({image_key(camera): frames}, [segment], scene=clip.file)
                bar.update()
        if not writer.num_episodes:
            first = next(iter(skipped.items()))
            raise UserError(
                f"none of the {len(clips)} clips in {path} could be used (first: {first[0]} {first[1]}): mend them."
            )
        return Summary({"clips": writer.num_episodes, "frames": writer.num_frames}, skipped)


def _decode_or_reason(folder: str, file: str, *, fps: float, size: int, fit: Fit) -> np.ndarray | str:
    try:
        return decode(inside(folder, file), fps, size, fit)
    except Fault as reason:
        return str(reason)


def _fitted(picture: np.ndarray, fit: Fit) -> np.ndarray:
    if fit == "squash":
        return picture
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return picture[top : top + side, left : left + side]
