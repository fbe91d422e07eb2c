"""The protocol of AllenAI's vla-evaluation-harness (vla-eval 0.8, protocol version 1), under the path /vla-eval.

Every frame is {"type", "payload", "seq", "timestamp"}; the client speaks first. hello is answered by hello, an observation by
an action, a mistake by an error, the rest by nothing. Arrays have text keys here, and pictures come as PNG or JPEG:

    observation   {"images": {name: uint8 (H, W, 3)}, "states": numbers, "task_description": str, "episode_restart": bool}
    action        {"actions": float32 (A,)}: one for each observation, taken from the policy's chunks by an executor
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

import vla.wire as wire
from vla.executor import RecedingHorizon
from vla.serving.batcher import Batcher
from vla.serving.session import LONGEST_COMPLAINT, Mismatch, Session
from vla.spec import STATE, TASK, UserError, image_key

PROTOCOL_VERSION = 1
SILENT = ("episode_end", "error")
LARGEST_PICTURE = 4096 * 4096
"""Pixels; a small file can say that it holds many more."""


class HarnessSession(Session):
    """A benchmark of the harness. names: a picture's name there -> our camera. execute: actions used of each chunk."""

    def __init__(self, batcher: Batcher, names: Mapping[str, str], title: str, execute: int):
        super().__init__(batcher, names, title)
        self.executor = RecedingHorizon(execute)
        self.executor.begin(0)
        self.seq = 0

    def greeting(self) -> None:
        return None

    async def answer(self, frame: bytes | str) -> bytes | None:
        message = wire.decode(frame)
        kind, payload, self.seq = message.get("type"), message.get("payload"), message.get("seq")
        if type(self.seq) is not int or not isinstance(payload, dict):
            self.seq = 0
            raise UserError("the message lacks a payload or a number seq: send vla-eval's {type, payload, seq, timestamp}.")
        if kind == "hello":
            return self._reply("hello", self._hello(payload))
        if kind == "episode_start":
            self._begin()
            return None
        if kind == "observation":
            return self._reply("action", await self._act(payload))
        if kind in SILENT:
            return None
        raise UserError(f"type {kind!r:.40} is unknown: send hello, episode_start, observation or episode_end.")

    def complaint(self, sentence: str) -> bytes:
        return self._reply("error", {"error": sentence[:LONGEST_COMPLAINT]})

    def _reply(self, kind: str, payload: Mapping[str, Any]) -> bytes:
        return wire.encode({"type": kind, "payload": payload, "seq": self.seq, "timestamp": time.time()})

    def _hello(self, payload: Mapping[Any, Any]) -> dict[str, Any]:
        if (theirs := payload.get("protocol_version")) != PROTOCOL_VERSION:
            raise Mismatch(
                f"the harness speaks version {theirs!r:.40} of its protocol but the server {PROTOCOL_VERSION}: "
                "use a vla-eval that fits."
            )
        spec = self.batcher.policy.spec
        wants = {"send_wrist_image": len(spec.cameras) > 1, "send_state": bool(spec.state)}
        return {
            "harness_version": str(payload.get("harness_version")),
            "protocol_version": PROTOCOL_VERSION,
            "model_server": self.title,
            "capabilities": {},
            "observation_params": wants,
        }

    def _begin(self) -> None:
        self.fresh = True
        self.executor.begin(0)

    async def _act(self, payload: Mapping[Any, Any]) -> dict[str, Any]:
        if payload.get("episode_restart") is True:
            self._begin()
        message: dict[str, Any] = {}
        images = payload.get("images")
        for name, image in images.items() if isinstance(images, dict) else ():
            message[image_key(self.names.get(name, name))] = _picture(image)
        if "states" in payload:
            message[STATE] = _vector(payload["states"])
        if "task_description" in payload:
            message[TASK] = payload["task_description"]
        timing: dict[str, Any] = {"infer_ms": 0.0}
        if self.executor.asks(0):
            reply = await self.ask("act", message)
            self.executor.give(0, reply["actions"])
            timing = reply["server_timing"]
        elif self.batcher.policy.history:
            timing = (await self.ask("remember", message))["server_timing"]
        action = np.asarray(self.executor.action(0), "<f4")
        packed = {"__ndarray__": True, "data": action.tobytes(), "dtype": "<f4", "shape": list(action.shape)}
        return {"actions": packed, "server_timing": timing}


def _vector(sent: Any) -> Any:
    """A state as the harness sends it: an array of its own encoding, or a list, which is checked later."""
    if not isinstance(sent, dict):
        return sent
    try:
        return _array(sent)
    except ValueError as error:
        raise UserError(f"states cannot be read ({error!s:.100}): send a list of numbers or an array.") from error


def _picture(sent: Any) -> np.ndarray:
    """An image as the harness sends it; raises UserError for anything else."""
    try:
        if not isinstance(sent, dict):
            raise ValueError(f"it is a {type(sent).__name__}")
        if "__ndarray__" in sent or sent.get("format") == "raw":
            return _array(sent)
        with Image.open(io.BytesIO(sent["data"]), formats=("PNG", "JPEG")) as picture:
            if picture.width * picture.height > LARGEST_PICTURE:
                raise ValueError(f"it says that it has {picture.width}x{picture.height} pixels")
            return np.asarray(picture.convert("RGB"))
    except Exception as error:  # decoders raise all sorts of things on a damaged file
        raise UserError(f"a picture cannot be read ({error!s:.100}): send PNG, JPEG or raw uint8 (H, W, 3).") from error


def _array(sent: dict[Any, Any]) -> np.ndarray:
    dtype = sent.get("dtype")
    if not isinstance(dtype, str) or dtype not in wire.DTYPES:
        raise ValueError(f"dtype {dtype!r:.40} is not allowed")
    return wire.array(sent.get("data"), dtype, sent.get("shape"))
