"""A whole session from its config: build the parts, run the one loop, end holding with the recording closed."""

from __future__ import annotations

import functools
import gc
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from vla.control.beside import Beside
from vla.control.cadence import Cadence
from vla.control.clock import prefer
from vla.control.desk import Desk
from vla.control.events import Board, Events
from vla.control.limits import Limits
from vla.control.paced import Paced
from vla.control.recording import Recorded, Recorder
from vla.control.replay import Replayed
from vla.control.safety import Safe, Stopped
from vla.control.session import session
from vla.control.takeover import Takeover
from vla.control.view import View
from vla.evaluation.run import build_policy
from vla.executor import RecedingHorizon
from vla.policy import ready_to_refuse
from vla.rollout import Job, rollout
from vla.spec import UserError, require_match
from vla.training.logging import circumstances, write_json


def run(config: DictConfig, keyboard: int | None = 0) -> dict[str, Any]:
    """Drive `config.robot` until the instructions are done, someone stops it, or a fault does.

    Gives, and leaves in `out`/cadence.json, the cadence table with `ended` (why), `fault` (its name or None) and the counts
    of events. The recording is `out`/recording. An exception is raised again once the arm holds and the recording is closed.
    keyboard: a file descriptor of lines that a person types.
    """
    out = Path(config.out)
    events, board, cadence = Events(out / "events.jsonl"), Board(), Cadence()
    ended, fault = "", None
    with ExitStack() as closing:  # the arm first, whatever the others do
        closing.callback(events.close)
        arm = instantiate(config.robot.world, _convert_="all")
        safety: dict[str, Any] = OmegaConf.to_container(config.robot.safety, resolve=True)  # type: ignore[assignment]
        limits = Limits(arm.vla_spec, **safety.pop("limits"))
        policy, instructions, steps = _policy(config, arm.vla_spec.control_hz, board, events, cadence)
        closing.callback(policy.close)
        judge = policy.judge if config.refuse and isinstance(policy, Beside) else None
        desk = Desk(out / "STOP", keyboard)
        if config.get("teleop"):
            if config.replay.path:
                raise UserError("a replay cannot be taken over: leave out teleop, or replay.path.")
            teleop: Any = OmegaConf.to_container(config.teleop, resolve=True)
            policy = Takeover(policy, teleop, arm.vla_spec, desk, board, events)
            closing.callback(policy.close)
        require_match(policy.spec, arm.vla_spec, "the policy", "the robot")
        view = View(config.view, arm.vla_spec, events) if config.view else None
        if view is not None:
            closing.callback(view.close)
        made = {"command": " ".join(sys.argv), "config": OmegaConf.to_container(config, resolve=True)}
        recorder = Recorder(out / "recording", arm.vla_spec, made | circumstances(torch.device("cpu")))
        closing.callback(recorder.close)
        events.listeners.append(recorder.event)
        if view is not None:
            recorder.listeners.append(view.put)
        safe = Safe(Paced(arm, cadence), limits, events, board, **safety)
        closing.callback(safe.close)
        world = Recorded(safe, recorder, board)
        rule = None if config.replay.path else config.robot.get("check")  # a replay is not cut short
        check = instantiate(rule, world=arm) if rule else None
        with desk, closing.pop_all():  # signals only leave word until all is closed
            jobs = [
                Job("session", session(desk, recorder, events, instructions, steps, config.seed, config.stay, check, judge))
            ]
            events.tell("started", priority=prefer(config.priority))
            gc.freeze()  # what is there by now need not be looked through again
            try:
                for _, why in rollout(world, policy, lambda _: jobs.pop() if jobs else None, RecedingHorizon(1)):
                    ended = why
            except Stopped as stop:
                ended, fault = f"fault: {stop.reason}", stop.reason
            except BaseException as error:
                safe.fail(error)
                raise
            events.tell("ended", why=ended)
    table = {**cadence.table(), "ended": ended, "fault": fault, "events": dict(events.counts)}
    write_json(out / "cadence.json", table)
    return table


def _policy(
    config: DictConfig, hz: float, board: Board, events: Events, cadence: Cadence
) -> tuple[Beside | Replayed, list[str], int]:
    """The policy, ready to act, the instructions for it, and the control steps of each."""
    if config.replay.path:
        replayed = Replayed(config.replay.path, config.replay.episode)
        return replayed, [replayed.instruction], len(replayed)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    if config.get("policy"):
        plain["checkpoint"] = None
    executor = instantiate(config.executor)
    policy = Beside(
        functools.partial(_build, plain), hz, board, events, cadence, executor, config.delay_ms / 1e3, config.imagine
    )
    policy.start()
    return policy, list(config.instructions), round(config.seconds * hz)


def _build(plain: dict[str, Any]) -> Any:
    """In the policy's process."""
    torch.set_num_threads(1)
    policy = build_policy(OmegaConf.create(plain))
    if plain["refuse"]:
        print(f"the policy {ready_to_refuse(policy)}", file=sys.stderr)
    return policy
