"""One client's side of the talk: its memory, its messages turned into requests, its replies."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from vla.policy import Memory
from vla.serving.batcher import Batcher, Request
from vla.spec import ENVIRONMENT_STATE, PLAN, PLAN_WEIGHT, STATE, TASK, Spec, UserError, image_key, require_match
from vla.wire import PROTOCOL, VERSION, decode, encode

LONGEST_TASK = 1000
"""Characters of an instruction."""
LONGEST_PLAN = 1000
"""Actions of a plan that is shown."""
LONGEST_COMPLAINT = 1000
"""A sentence may quote what a client sent, but not all of it."""


class Mismatch(UserError):
    """Client and server cannot work together: the connection ends."""


class Session:
    """A client that speaks our protocol or openpi's (vla/wire.py). Its memory ends with its connection.

    names: what a client may call an observation's feature -> our name for it. title: what is served, in words.
    """

    def __init__(self, batcher: Batcher, names: Mapping[str, str], title: str):
        self.batcher, self.names, self.title = batcher, names, title
        self.memory: Memory = None
        self.fresh, self.seed = True, 0
        self.last_total: float | None = None

    def greeting(self) -> bytes | None:
        """The first frame, before the client says anything."""
        policy = self.batcher.policy
        foresight = policy.foresight_steps if hasattr(policy, "foresee") else None
        about = {"spec": policy.spec.to_dict(), "history": policy.history, "foresight_steps": foresight, "policy": self.title}
        return encode({"protocol": PROTOCOL, "version": VERSION, "continues": self._continues, **about})

    async def answer(self, frame: bytes | str) -> bytes:
        """The reply to a frame; raises UserError saying what is wrong with it, Mismatch if that cannot be mended."""
        begin = time.perf_counter()
        message = decode(frame)
        if "hello" in message:
            welcome(message["hello"], self.batcher.policy.spec)
            return encode({"ready": True})
        message = {self.names.get(name, name): value for name, value in message.items()}
        kind = self._kind(message)
        if message.get("reset") is True:
            self.fresh, self.seed = True, _seed(message.get("seed", 0))
        reply = await self.ask(kind, message if kind != "foresee" else None)
        if self.last_total is not None:
            reply["server_timing"]["prev_total_ms"] = 1e3 * self.last_total
        packed = encode(reply)
        self.last_total = time.perf_counter() - begin
        return packed

    async def ask(self, kind: str, message: Mapping[Any, Any] | None) -> dict[str, Any]:
        """Put one request to the policy and keep the new memory."""
        row = {} if message is None else observation(message, self.batcher.policy.spec)
        if message is not None and kind == "act" and self._continues and PLAN in message:
            row |= plan(message, len(self.batcher.policy.spec.action))
        request = Request(id(self), kind, row, self.memory, self.seed if self.fresh else None)
        await self.batcher.answer(request)
        self.memory, self.fresh = request.memory, False
        reply: dict[str, Any] = {"server_timing": request.timing}
        if request.actions is not None:
            reply["actions"] = np.asarray(request.actions, np.float32)
        if request.imagined is not None:
            reply["imagined"] = request.imagined
        return reply

    def complaint(self, sentence: str) -> bytes | str:
        """The frame that tells what is wrong."""
        return sentence[:LONGEST_COMPLAINT]

    @property
    def _continues(self) -> bool:
        return bool(getattr(self.batcher.policy, "continues", False))

    def _kind(self, message: Mapping[Any, Any]) -> str:
        if message.get("foresee") is not True:
            return "remember" if message.get("remember") is True else "act"
        if not hasattr(self.batcher.policy, "foresee"):
            raise UserError("foresee was asked but the served policy imagines nothing: do not ask for it.")
        if self.fresh:
            raise UserError("foresee was asked before any observation: send an observation first.")
        return "foresee"


def welcome(hello: Any, spec: Spec) -> None:
    """Check what a client says of itself; raises Mismatch with the reason."""
    if not isinstance(hello, dict) or hello.get("version") != VERSION:
        theirs = hello.get("version") if isinstance(hello, dict) else hello
        raise Mismatch(
            f"the client speaks version {theirs!r:.40} of the protocol but the server {VERSION}: update one of them."
        )
    if hello.get("spec") is None:
        return
    try:
        offered = Spec.from_dict(hello["spec"])
    except UserError as error:
        raise Mismatch(str(error)) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Mismatch(f"the client's spec cannot be read ({error!r:.100}): send Spec.to_dict().") from error
    try:
        require_match(spec, offered, "the served policy", "the client's world")
    except UserError as error:
        raise Mismatch(str(error)) from error


def observation(message: Mapping[Any, Any], spec: Spec) -> dict[str, Any]:
    """What a policy of `spec` reads from a message, checked; raises UserError naming what lacks or does not fit."""
    row: dict[str, Any] = {}
    for camera in spec.cameras:
        name = image_key(camera)
        image = _value(message, name)
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,) or not image.size:
            raise UserError(f"{name} is {_shape(image)}: send an RGB image, uint8 (H, W, 3).")
        row[name] = image
    for name, entries in ((STATE, spec.state), (ENVIRONMENT_STATE, spec.environment_state)):
        if entries:
            row[name] = _numbers(name, _value(message, name), len(entries))
    task = _value(message, TASK)
    if not isinstance(task, str) or len(task) > LONGEST_TASK:
        raise UserError(f"{TASK} is {_shape(task)}: send the instruction, a string of at most {LONGEST_TASK} characters.")
    return {**row, TASK: str(task)}


def plan(message: Mapping[Any, Any], entries: int) -> dict[str, np.ndarray]:
    """The rest of a plan that a message shows, checked; raises UserError naming what does not fit."""
    shown = message[PLAN]
    if not isinstance(shown, np.ndarray) or shown.shape[1:] != (entries,) or len(shown) > LONGEST_PLAN:
        raise UserError(f"{PLAN} is {_shape(shown)}: send at most {LONGEST_PLAN} actions of {entries} numbers.")
    actions = _numbers(PLAN, shown.reshape(-1), shown.size).reshape(shown.shape)
    weight = _numbers(PLAN_WEIGHT, _value(message, PLAN_WEIGHT), len(shown))
    if ((weight < 0) | (weight > 1)).any():
        raise UserError(f"{PLAN_WEIGHT} reaches from {weight.min():g} to {weight.max():g}: send numbers from 0 to 1.")
    return {PLAN: actions, PLAN_WEIGHT: weight}


def _value(message: Mapping[Any, Any], name: str) -> Any:
    if name not in message:
        has = sorted(str(key) for key in message)
        raise UserError(
            f"the observation has no {name!r} but {has!r:.300}: send it, or give the server its name under `names`."
        )
    return message[name]


def _numbers(name: str, value: Any, length: int) -> np.ndarray:
    try:
        numbers = np.asarray(value)
    except ValueError:
        numbers = np.zeros(0, object)
    if numbers.dtype.kind in "fiu" and numbers.shape == (length,):
        with np.errstate(over="ignore"):
            numbers = numbers.astype(np.float32)
        if np.isfinite(numbers).all():
            return numbers
    raise UserError(f"{name} is {_shape(value)}: send {length} finite numbers.")


def _seed(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise UserError(f"seed is {value!r:.40}: send a number from 0 to 2^63 - 1.")
    return value


def _shape(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {value.shape}"
    return f"{value!r:.60}"
