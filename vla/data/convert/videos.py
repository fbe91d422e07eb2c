"""Video clips with captions as a dataset: frames and an instruction per clip, no states, no actions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import torch
from av.error import FFmpegError
from tqdm import tqdm

from vla.data.convert.captions import Clip, find
from vla.data.convert.files import Fault, in_order, inside
from vla.data.convert.report import Summary
from vla.data.writer import DatasetWriter, Segment
from vla.images import resize_area
from vla.spec import Spec, UserError, image_key

Fit = Literal["crop", "squash"]


def decode(
    path: str | Path, fps: float, size: int, fit: Fit = "crop", begin: float = 0.0, end: float | None = None
) -> np.ndarray:
    """Frames of a clip, `fps` a second of its time: uint8 (T, size, size, 3) RGB.

    `crop` takes the middle square, `squash` the whole picture; both are averaged down by area. A clip slower than `fps`
    gives every frame. begin, end: only from this to before that second of the video; where the video ends earlier, to its
    end. Raises Fault with the reason.
    """
    frames: list[np.ndarray] = []
    first = last = half = 0.0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise Fault("no video in the file")
            stream = container.streams.video[0]
            rate = float(stream.average_rate or 0)
            # Half a source frame of tolerance, so that 30 fps at 10 fps gives exactly every third frame.
            half = 0.5 / rate if rate else 0.0
            for last, frame in _timed(container, stream, begin, rate or fps):
                if end is not None and last + half >= end:
                    break
                if last + half < begin:
                    continue
                first = first if frames else last
                if (last - first + half) * fps >= len(frames):
                    frames.append(_fitted(frame.to_ndarray(format="rgb24"), fit))
    except (FFmpegError, OSError, ValueError) as error:
        raise Fault(f"cannot be decoded ({getattr(error, 'strerror', None) or error})") from None
    if begin and not frames and last + half < begin:
        raise Fault(f"ends before {begin:g} s")
    if len(frames) < 2:
        raise Fault(f"has {len(frames)} frames at {fps:g} a second, too short to foresee anything")
    if any(f.shape != frames[0].shape for f in frames):
        raise Fault("changes its picture size on the way")
    return np.concatenate(
        [resize_area(torch.from_numpy(np.stack(frames[i : i + 64])), size, size).numpy() for i in range(0, len(frames), 64)]
    )


def _timed(container: Any, stream: Any, begin: float, rate: float) -> Iterator[tuple[float, av.VideoFrame]]:
    """Frames with their seconds from the video's beginning, from the last key frame before `begin` on."""
    start = None if stream.start_time is None else float(stream.start_time * stream.time_base)
    if begin:
        container.seek(round((begin + (start or 0.0)) / stream.time_base), stream=stream)
    for number, frame in enumerate(container.decode(stream)):
        if frame.time is None and begin:
            raise Fault("says no times, so that no part of it can be found")
        seconds = frame.time if frame.time is not None else number / rate
        if start is None or (number == 0 and not begin):
            start = seconds
        yield seconds - start, frame


def convert(
    path: str | Path,
    out: str | Path,
    captions: str = "beside",
    annotations: str | Sequence[str] | None = None,
    narrations: str = "narration_pass_1",
    longest: float = 3.0,
    camera: str = "static",
    size: int = 96,
    fit: Fit = "crop",
    fps: float = 10,
    threads: int = 2,
    report: Callable[[str], None] = print,
) -> Summary:
    """Turn a folder of captioned clips into a dataset with one camera, an episode and a segment per clip.

    captions: their style, annotations: their file or files, narrations and longest: of Ego4D's (see `captions.find`).
    The clip's file, with its part if it is not the whole, stands as the episode's scene. Broken and captionless clips are
    skipped and reported. Run again after a kill it goes on with the clips that are not yet there; with other settings than
    before it refuses.
    """
    if fit not in ("crop", "squash"):
        raise UserError(f"fit is {fit!r}: choose crop or squash.")
    if not (size > 0 and fps > 0 and threads > 0 and longest > 0):
        raise UserError(f"size, fps, threads and longest are {size}, {fps}, {threads}, {longest}: all must be above 0.")
    files = [annotations] if isinstance(annotations, str) else list(annotations or ())
    found = find(path, captions, files, narrations, longest)
    settings: dict[str, Any] = {"source": "videos", "camera": camera, "size": size, "fit": fit, "fps": fps}
    if captions != "beside":
        settings["captions"] = captions
    if captions == "ego4d":
        settings |= {"narrations": narrations, "longest": longest}
    spec = Spec(cameras={camera: (size, size)}, frame="video")
    with DatasetWriter(out, spec, {"conversion": settings}) as writer:
        if writer.provenance.get("conversion") != settings:
            raise UserError(f"dataset {out} was begun with {writer.provenance.get('conversion')}: choose another out=...")
        done, skipped = set(writer.scenes), dict(found.skipped)
        left = [clip for clip in found.clips if clip.name not in done]
        everything = len(found.clips) + len(skipped)
        if done:
            report(f"{len(done)} of {everything} clips are in {out} already")
        read = functools.partial(_decode_or_reason, str(path), fps=fps, size=size, fit=fit)
        with tqdm(total=len(left), unit="clip", desc="converting", smoothing=0.05) as bar:
            for clip, frames in zip(left, in_order(read, left, threads), strict=True):
                if isinstance(frames, str):
                    skipped[clip.name] = frames
                else:
                    segment = Segment(0, len(frames), "", clip.instruction)
                    writer.append_episode({image_key(camera): frames}, [segment], scene=clip.name)
                bar.update()
        if not writer.num_episodes:
            first = next(iter(skipped.items()))
            raise UserError(
                f"none of the {everything} clips in {path} could be used (first: {first[0]} {first[1]}): mend them."
            )
        return Summary({"clips": writer.num_episodes, "frames": writer.num_frames}, skipped, found.notes)


def _decode_or_reason(folder: str, clip: Clip, *, fps: float, size: int, fit: Fit) -> np.ndarray | str:
    try:
        return decode(inside(folder, clip.file), fps, size, fit, clip.begin, clip.end)
    except Fault as reason:
        return str(reason)


def _fitted(picture: np.ndarray, fit: Fit) -> np.ndarray:
    if fit == "squash":
        return picture
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return picture[top : top + side, left : left + side]
