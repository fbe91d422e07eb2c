"""A server from its config: the policy, a first answer before anybody waits for one, and serving until told to stop."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from vla.evaluation.run import build_policy
from vla.policy import ready_to_refuse
from vla.serving.batcher import Request, compute
from vla.serving.server import HARNESS_PATH, Server
from vla.spec import ENVIRONMENT_STATE, STATE, TASK, Spec, UserError, image_key


def serve(config: DictConfig, say: Callable[[str], None] = print) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises UserError for settings that do not fit or are not safe."""
    torch.set_num_threads(config.threads)
    policy = on_device(build_policy(config), config.device)
    settings: Any = OmegaConf.to_container(config.server, resolve=True)
    title = Path(config.checkpoint).name if config.checkpoint else config.policy._target_.rpartition(".")[2]
    server = Server(policy, title=title, **settings)
    say(f"warm after {warm_up(policy):.1f} s")
    if config.server.refuse:
        say(ready_to_refuse(policy))
    asyncio.run(_until_told(server, say))


def on_device(policy: Any, device: str) -> Any:
    """The policy there; raises UserError for a device that is not here, or a policy that is not a network."""
    if device == "cpu":
        return policy
    try:
        return policy.to(device)
    except (AttributeError, AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the policy cannot be moved to device {device!r} ({reason}): use device=cpu.") from error


def warm_up(policy: Any) -> float:
    """Let the policy act once on black pictures, so that no client pays for its first time; gives the seconds.

    Raises UserError for a policy that needs more than its spec names (the experts do).
    """
    begin = time.perf_counter()
    request = Request(0, "act", blank(policy.spec), seed=0)
    compute(policy, [request])
    if request.error is not None:
        raise UserError(
            f"the policy cannot act on an observation of its own spec ({request.error!r:.200}): serve another."
        ) from request.error
    return time.perf_counter() - begin


def blank(spec: Spec) -> dict[str, Any]:
    """An observation of zeros that fits a spec, of one world."""
    images = {image_key(camera): np.zeros((*size, 3), np.uint8) for camera, size in spec.cameras.items()}
    vectors = {STATE: spec.state, ENVIRONMENT_STATE: spec.environment_state}
    return {**images, **{name: np.zeros(len(entries), np.float32) for name, entries in vectors.items() if entries}, TASK: ""}


async def _until_told(server: Server, say: Callable[[str], None]) -> None:
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    async with server.listening() as port:
        where = f"ws://{server.host}:{port}"
        guard = "" if server.guarded else ", no token"
        say(f"serving {server.title} on {where} (vla-eval: {where}{HARNESS_PATH}){guard}; Ctrl-C ends it")
        await told.wait()
        say("closing")
