"""What LeRobot is told of a policy of ours: which numbers it has, and which frames it wants of a dataset."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra import compose, initialize_config_module
from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig
from lerobot.optim.schedulers import CosineDecayWithWarmupSchedulerConfig
from omegaconf import OmegaConf

from vla.spec import UserError


@dataclass
class VlaConfig(PreTrainedConfig):
    """preset: name of a config in conf/policy. changes: numbers of it to change, nested as in that file, such as
    `--policy.changes='{"history": 10, "foresight": {"steps": 5}}'`. network: all the numbers that come of both; a checkpoint
    has them, and nothing else is read any more.
    spec: the Spec (as a dict) of what the policy was trained on; it comes with the dataset.
    init_from: checkpoint of ours whose weights a new policy starts from.
    n_action_steps: actions of a chunk that are executed before the policy is asked again.

    The policy normalises by itself, so LeRobot's processors leave numbers alone. Parts of pictures are not swapped
    (`augment.swap` is 0): LeRobot's batches do not say where the hand goes.
    """

    preset: str = ""
    changes: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)
    init_from: str | None = None
    n_action_steps: int = 5
    optimizer_lr: float = 1e-3
    optimizer_weight_decay: float = 1e-4
    optimizer_grad_clip_norm: float = 1.0
    scheduler_warmup_steps: int = 200
    scheduler_decay_steps: int = 100_000
    scheduler_decay_lr: float = 1e-5
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(("VISUAL", "STATE", "ENV", "ACTION"), NormalizationMode.IDENTITY)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        start = OmegaConf.create(self.network) if self.network else _preset(self.preset)
        network = OmegaConf.merge(start, self.changes)
        if network.augment.swap > 0:
            raise UserError(f"augment.swap is {network.augment.swap} but LeRobot's batches lack the hand's path: set it to 0.")
        if not 1 <= self.n_action_steps <= network.chunk:
            raise UserError(f"n_action_steps is {self.n_action_steps}: give 1 to {network.chunk}, the length of a chunk.")
        self.network = OmegaConf.to_container(network, resolve=True)  # type: ignore[assignment]
        self.changes = {}
        self.n_obs_steps = self.network["history"]

    @property
    def history_steps(self) -> list[int]:
        """When the window's frames were, in control steps from now."""
        count, stride = self.network["history"], self.network["history_stride"]
        return [-stride * i for i in range(count - 1, -1, -1)]

    @property
    def future_steps(self) -> list[int]:
        """When the frame to foresee after each of them is; where only the last is trained, that one stands for all."""
        ahead = self.network["foresight"]["steps"]
        every = self.network.get("supervise", "last") == "all"
        return [step + ahead if every else ahead for step in self.history_steps]

    @property
    def observation_delta_indices(self) -> list[int]:
        return sorted({*self.history_steps, *self.future_steps})

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.history_steps[0], self.network["chunk"]))

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(
            lr=self.optimizer_lr, weight_decay=self.optimizer_weight_decay, grad_clip_norm=self.optimizer_grad_clip_norm
        )

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        return CosineDecayWithWarmupSchedulerConfig(
            num_warmup_steps=self.scheduler_warmup_steps,
            num_decay_steps=self.scheduler_decay_steps,
            peak_lr=self.optimizer_lr,
            decay_lr=self.scheduler_decay_lr,
        )

    def validate_features(self) -> None:
        """Nothing to do: the policy compares its Spec with the dataset's when it is made."""


def _preset(name: str) -> Any:
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("train", [f"policy={name}"]).policy
    OmegaConf.set_struct(config, False)
    return OmegaConf.merge(config, {"augment": {"swap": 0.0}})
