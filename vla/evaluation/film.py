"""A recorder that films a chain: both cameras, the instruction, and each imagined frame beside the frame that really came.

    now  |  imagined for step s  |  what came at step s        one row per camera

The right pair belongs to the same instant s and stays until the next imagined instant has come.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import av
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from vla.foresight import foresight_errors
from vla.images import resize_area
from vla.policy import Observation
from vla.spec import IMAGE_PREFIX, TASK

GAP, HEADER, CAPTION = 8, 58, 22
INK, PALE, FAINT = (236, 240, 248), (148, 160, 184), (52, 62, 84)
GROUND, GOOD, BAD, DREAM = (16, 22, 36), (52, 211, 153), (248, 113, 113), (94, 214, 230)
HOLD = 24  # frames for which the end is shown


class Film:
    """Films one job into an H.264 mp4; `finish` gives its bytes.

    attempts: the chain's list, which grows by {"solved"} as tasks end; tasks: how many the chain has; foresight_steps: how
    far ahead the policy imagines, None where it does not; fps: control steps per second.
    errors: camera -> the three sums of `vla.foresight.foresight_errors` over all imagined frames that came due.
    """

    def __init__(self, attempts: Sequence[Mapping[str, Any]], tasks: int, foresight_steps: int | None, fps: float):
        self.attempts, self.tasks, self.foresight_steps = attempts, tasks, foresight_steps
        self.imagines = foresight_steps is not None
        self.fps = round(fps)
        self._side = 224 if self.imagines else 336  # of a picture, so that films of both kinds are about as wide
        self._file = io.BytesIO()
        self._container: Any = None
        self._turn, self._step = -1, 0
        self._due: dict[int, tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]] = {}
        self.errors: dict[str, np.ndarray] = {}
        self._pair: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]] | None = None
        self._canvas: Image.Image | None = None
        self._instruction = ""

    def step(self, observation: Observation, action: np.ndarray, imagined: Mapping[str, np.ndarray] | None) -> None:
        if len(self.attempts) != self._turn:
            self._turn, self._step, self._due, self._pair = len(self.attempts), 0, {}, None
        now = {name.removeprefix(IMAGE_PREFIX): value for name, value in observation.items() if name.startswith(IMAGE_PREFIX)}
        if imagined is not None and self.foresight_steps is not None:
            self._due[self._step + self.foresight_steps] = imagined, now
        if self._step in self._due:
            imagined, then = self._due.pop(self._step)
            self._pair = imagined, now
            self._judge(imagined, now, then)
        self._instruction = observation[TASK]
        self._canvas = self._draw(now)
        self._encode(self._canvas)
        self._step += 1

    def _judge(
        self, imagined: Mapping[str, np.ndarray], came: Mapping[str, np.ndarray], then: Mapping[str, np.ndarray]
    ) -> None:
        for camera, picture in imagined.items():
            real, still = (_resized(x[camera], picture.shape[0]) for x in (came, then))
            sums = np.array(foresight_errors(picture[None], real[None], still[None]))
            self.errors[camera] = self.errors.get(camera, 0.0) + sums

    def finish(self) -> bytes:
        """The film, its last picture held with the verdict on the last task."""
        if self._canvas is None:
            return b""
        self._head(self._canvas)
        for _ in range(HOLD):
            self._encode(self._canvas)
        for packet in self._stream.encode():
            self._container.mux(packet)
        self._container.close()
        return self._file.getvalue()

    def _draw(self, now: Mapping[str, np.ndarray]) -> Image.Image:
        columns = 3 if self.imagines else 1
        across, down = (columns, len(now)) if self.imagines else (len(now), 1)
        size = (across * (self._side + GAP) + GAP, HEADER + down * (self._side + CAPTION) + GAP)
        canvas = Image.new("RGB", size, GROUND)
        self._head(canvas)
        imagined, came = self._pair or ({}, {})
        for k, (camera, picture) in enumerate(now.items()):
            if not self.imagines:
                self._panel(canvas, k, 0, picture, camera, PALE)
                continue
            self._panel(canvas, 0, k, picture, f"{camera}, now", PALE)
            self._panel(canvas, 1, k, imagined.get(camera), f"imagined {self.foresight_steps} steps before", DREAM)
            self._panel(canvas, 2, k, came.get(camera), "what came", PALE)
        return canvas

    def _head(self, canvas: Image.Image) -> None:
        """Instruction on the left, a mark for each task on the right: solved, failed, in hand or still to come."""
        draw = ImageDraw.Draw(canvas)
        draw.rectangle((0, 0, canvas.width, HEADER - 4), fill=GROUND)
        left = canvas.width - GAP - 24 * self.tasks
        draw.text((GAP, 9), _shorten(self._instruction, left - 2 * GAP), font=_font(17), fill=INK)
        done = len(self.attempts)
        words = f"task {min(self._turn + 1, self.tasks)} of {self.tasks}, step {self._step}"
        draw.text((GAP, 33), words, font=_font(13), fill=PALE)
        for k in range(self.tasks):
            x, y = left + 24 * k, 12
            if k < done:
                _mark(draw, x, y, bool(self.attempts[k]["solved"]))
            else:
                draw.ellipse((x, y, x + 17, y + 17), outline=DREAM if k == done else FAINT, width=2)

    def _panel(self, canvas: Image.Image, column: int, row: int, picture: np.ndarray | None, words: str, colour: Any) -> None:
        x, y = GAP + column * (self._side + GAP), HEADER + row * (self._side + CAPTION)
        draw = ImageDraw.Draw(canvas)
        if picture is None:
            draw.rectangle((x, y, x + self._side - 1, y + self._side - 1), outline=FAINT)
        else:
            canvas.paste(Image.fromarray(picture).resize((self._side, self._side), Image.Resampling.BICUBIC), (x, y))
            if colour == DREAM:
                draw.rectangle((x, y, x + self._side - 1, y + self._side - 1), outline=DREAM, width=2)
        draw.text((x, y + self._side + 2), words, font=_font(12), fill=colour)

    def _encode(self, canvas: Image.Image) -> None:
        if self._container is None:
            self._container = av.open(self._file, "w", format="mp4")
            self._stream = self._container.add_stream("libx264", rate=self.fps, options={"crf": "27", "preset": "veryfast"})
            self._stream.width, self._stream.height = canvas.width - canvas.width % 2, canvas.height - canvas.height % 2
            self._stream.pix_fmt = "yuv420p"
        pixels = np.asarray(canvas)[: self._stream.height, : self._stream.width]
        for packet in self._stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")):
            self._container.mux(packet)


def _resized(picture: np.ndarray, side: int) -> np.ndarray:
    return resize_area(torch.from_numpy(np.ascontiguousarray(picture)), side, side).numpy()


def _mark(draw: ImageDraw.ImageDraw, x: int, y: int, solved: bool) -> None:
    draw.ellipse((x, y, x + 17, y + 17), fill=GOOD if solved else BAD)
    if solved:
        draw.line((x + 4, y + 9, x + 7, y + 12, x + 13, y + 5), fill=GROUND, width=2)
    else:
        draw.line((x + 5, y + 5, x + 12, y + 12), fill=GROUND, width=2)
        draw.line((x + 12, y + 5, x + 5, y + 12), fill=GROUND, width=2)


def _shorten(words: str, width: int) -> str:
    if _font(17).getlength(words) <= width:
        return words
    while words and _font(17).getlength(words + "...") > width:
        words = words[:-1]
    return words.rstrip() + "..."


_FONTS: dict[int, Any] = {}


def _font(size: int) -> Any:
    if size not in _FONTS:
        _FONTS[size] = ImageFont.load_default(size)
    return _FONTS[size]
