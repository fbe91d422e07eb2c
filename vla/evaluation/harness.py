"""Our benchmarks in AllenAI's vla-evaluation-harness (vla-eval 0.8, extra `harness`), run by its own runner, any model server.

    vla-eval run --no-docker --config benchmarks/vla_eval.yaml

An episode is one chain under the protocol of vla/evaluation/long_horizon.py: the same script is played, so that a policy
behind vla-serve solves the same tasks here as with vla-evaluate. Between tasks the world goes on, and the next observation
says `episode_restart: true`, as in the harness's own CALVIN: a policy starts afresh there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import numpy as np
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from vla_eval.benchmarks.base import StepBenchmark, StepResult
from vla_eval.specs import IMAGE_RGB, LANGUAGE, DimSpec
from vla_eval.types import Action, EpisodeResult, Observation, Task

from vla.evaluation.long_horizon import Attempts, Benchmark, chain_numbers, play_chain
from vla.rollout import Follow, Reset, Script
from vla.spec import STATE, Spec, UserError, image_key


class Chains(StepBenchmark):
    """A world's chains of tasks.

    env: a file of conf/env; overrides: changes to it as for vla-evaluate (`env.world.scene=B`). chains: how many, or a slice.
    split: wording of the instructions. names: our camera -> what the model server calls it. seed: as vla-evaluate's.
    send_wrist_image: all cameras, not the first alone; send_state: the whole state. Servers ask for these two themselves.
    Metrics: success (the whole chain), completed_subtasks. An action is a row of the world's Spec.
    Raises UserError for a mistake in any of these, or for an action that is not finite or has another length.
    """

    render_backends: ClassVar[frozenset[str]] = frozenset({"cpu", "gpu"})

    @classmethod
    def configure_render(cls, mode: str) -> dict[str, str]:
        """Nothing to set: the world's config names its renderer (`env.world.renderer`)."""
        return {}

    def __init__(
        self,
        env: str = "playtable",
        overrides: Sequence[str] = (),
        chains: int | str = 1000,
        split: str = "validation",
        names: Mapping[str, str] | None = None,
        seed: int = 0,
        send_wrist_image: bool = True,
        send_state: bool = True,
    ) -> None:
        super().__init__()
        config = _composed(env, overrides).env
        self.benchmark: Benchmark = instantiate(config.benchmark)
        self.chains = self.benchmark.chains()
        self.numbers = chain_numbers(chains, len(self.chains))
        self.split, self.seed, self.send_state = split, seed, send_state
        self.names: dict[str, str] = dict(names or {})
        self.world = instantiate(config.world, num_worlds=1, _convert_="all")
        self.spec: Spec = self.world.vla_spec
        self.cameras = list(self.spec.cameras)[: None if send_wrist_image else 1]
        if unknown := sorted(self.names.keys() - set(self.spec.cameras)):
            raise UserError(f"names has {', '.join(unknown)} but the cameras are {', '.join(self.spec.cameras)}: use these.")
        self.attempts: Attempts = []
        self._picture: np.ndarray | None = None
        self.script: Script
        self.follow: Follow

    def get_tasks(self) -> list[Task]:
        """One task a chain, `name` chain_0007, `chain` 7."""
        return [{"name": f"chain_{n:04d}", "suite": self.benchmark.name, "chain": n} for n in self.numbers]

    def reset(self, task: Task) -> dict[str, Any]:
        number = task["chain"]
        self.attempts = []
        self.script = play_chain(number, self.chains[number], self.benchmark, self.attempts, self.split, self.seed)
        start = next(self.script)
        assert isinstance(start, Reset)
        observation, _ = self.world.reset(options={k: np.asarray(v)[None] for k, v in start.options.items()})
        self._advance()
        return self._seen(observation)

    def step(self, action: Action) -> StepResult:
        before = len(self.attempts)
        observation, *_ = self.world.step(self._checked(action)[None])
        done = self._advance()
        ended = [a["solved"] for a in self.attempts[before:]]
        seen = {**self._seen(observation), **({"episode_restart": True} if ended and not done else {})}
        self._recorder.record_step(
            reward=float(sum(ended)), done=done, subtask=self.follow.instruction, completed_subtasks=self._solved()
        )
        return StepResult(obs=seen, reward=float(sum(ended)), done=done, info={})

    def make_obs(self, raw_obs: dict[str, Any], task: Task) -> Observation:
        """What a model server sees: images by its names, the instruction and, if asked for, the state."""
        return raw_obs

    def get_step_result(self, step_result: StepResult) -> EpisodeResult:
        chain = self.chains[self._task["chain"]]
        return {"success": self._solved() == len(chain.tasks), "completed_subtasks": self._solved()}

    def get_metric_keys(self) -> dict[str, str]:
        return {"success": "mean", "completed_subtasks": "mean"}

    def get_metadata(self) -> dict[str, Any]:
        return {"max_steps": self.benchmark.max_steps * max(len(self.chains[n].tasks) for n in self.numbers)}

    def get_action_spec(self) -> dict[str, DimSpec]:
        entries = ", ".join(f"{e.name} ({e.unit})" for e in self.spec.action)
        return {"actions": DimSpec("actions", len(self.spec.action), self.spec.action_kind, description=entries)}

    def get_observation_spec(self) -> dict[str, DimSpec]:
        images = {self.names.get(c, c): IMAGE_RGB for c in self.cameras}
        entries = ", ".join(f"{e.name} ({e.unit})" for e in self.spec.state)
        state = (
            {"state": DimSpec("state", len(self.spec.state), self.spec.frame, description=entries)} if self.send_state else {}
        )
        return {**images, "language": LANGUAGE, **state}

    def get_hold_action(self, last_action: Action | None) -> Action:
        """What keeps the arm where it is."""
        return {"actions": np.asarray(self.world.holding()[0], np.float32)}

    def render(self) -> np.ndarray | None:
        return self._picture

    def cleanup(self) -> None:
        self.world.close()

    def _advance(self) -> bool:
        """Tell the script the world's state; True if the chain is over."""
        try:
            follow = self.script.send(self.world.states()[0])
        except StopIteration:
            return True
        assert isinstance(follow, Follow)
        self.follow = follow
        return False

    def _solved(self) -> int:
        return sum(a["solved"] for a in self.attempts)

    def _checked(self, action: Action) -> np.ndarray:
        numbers = np.asarray(action.get("actions", action.get("action")), np.float32).reshape(-1)
        if len(numbers) != len(self.spec.action) or not np.isfinite(numbers).all():
            raise UserError(
                f"the model server's action is {numbers.tolist()}: {len(self.spec.action)} finite numbers are needed."
            )
        return numbers

    def _seen(self, observation: Mapping[str, np.ndarray]) -> Observation:
        images = {self.names.get(c, c): observation[image_key(c)][0] for c in self.cameras}
        self._picture = next(iter(images.values()), None)
        self._recorder.record_video(self._picture)
        state = {"states": observation[STATE][0]} if self.send_state and STATE in observation else {}
        return {"images": images, "task_description": self.follow.instruction, **state}


def _composed(env: str, overrides: Sequence[str]) -> Any:
    running = GlobalHydra.instance().is_initialized()
    with nullcontext() if running else initialize_config_module("conf", version_base="1.3"):
        return compose("evaluate", overrides=[f"env={env}", "out=unused", *overrides])
