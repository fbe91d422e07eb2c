"""A policy of ours behind LeRobot's interface.

What it saves is a checkpoint of both worlds, in one folder: LeRobot's config.json beside our config.yaml, spec.json and
training.json, and one model.safetensors with our names. Towers that were published by others and stay frozen (MiniLM, CLIP,
MAE) are not in it, as in our own checkpoints: they are read again from where they came from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lerobot
import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from safetensors.torch import load_file
from torch import Tensor

from lerobot_policy_vla.config import VlaConfig
from vla.checkpoint import build_policy, load_matching, save_checkpoint
from vla.data.convert.lerobot import spec_of as lerobot_spec_of
from vla.spec import ACTION, STATE, TASK, Spec, UserError, image_key, require_match

PREFIX = "policy."
"""Under which `state_dict` has the weights; in files they have none."""


class VlaPolicy(PreTrainedPolicy):
    """Wraps a trainable `vla.policy.Policy`; dataset_stats and dataset_meta come with LeRobot's `make_policy`."""

    config_class = VlaConfig  # type: ignore[assignment]
    name = "vla"  # type: ignore[assignment]

    def __init__(
        self, config: VlaConfig, dataset_stats: Mapping[str, Any] | None = None, dataset_meta: Any = None, **_: Any
    ) -> None:
        super().__init__(config)
        self.config: VlaConfig = config
        if dataset_meta is not None:
            spec = spec_of(dataset_meta)
            if config.spec:
                require_match(Spec.from_dict(config.spec), spec, "the checkpoint", f"dataset {dataset_meta.repo_id}")
        elif config.spec:
            spec = Spec.from_dict(config.spec)
        else:
            raise UserError("a new policy of ours needs a dataset to learn its cameras and numbers from: give --dataset...")
        self.policy: Any = build_policy(config.network, spec, dataset_stats)
        config.spec = self.policy.spec.to_dict()
        reads = {*map(image_key, self.policy.spec.cameras), *([STATE] if self.policy.spec.state else [])}
        config.input_features = {k: f for k, f in (config.input_features or {}).items() if k in reads}
        if dataset_meta is not None and not config.pretrained_path:
            if config.init_from:
                load_matching(self.policy, config.init_from)
            self.policy.prepare([""])  # tells what a policy still lacks to be trained
        self.reset()

    # Training

    def get_optim_params(self) -> Any:
        """Matrices and filters decay, biases and gains do not."""
        trained = [p for p in self.parameters() if p.requires_grad]
        small = [p for p in trained if p.ndim < 2]
        return [{"params": [p for p in trained if p.ndim >= 2]}, {"params": small, "weight_decay": 0.0}]

    def forward(self, batch: Mapping[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch of LeRobot's, and its parts."""
        if reduction != "mean":
            raise UserError(f"the loss has no reduction {reduction!r}: train without --sample_weighting.")
        loss, parts = self.policy.loss(self._windows(batch))
        return loss, {name: float(part) for name, part in parts.items()}

    def _windows(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """LeRobot's batch as one of `vla.data.windows.Windows`: see there for its keys."""
        config, cameras = self.config, list(self.policy.spec.cameras)
        loaded = {step: i for i, step in enumerate(config.observation_delta_indices)}
        past = [loaded[step] for step in config.history_steps]
        future = [loaded[step] for step in config.future_steps]
        missing = batch[f"{image_key(cameras[0])}_is_pad"]
        windows: dict[str, Any] = {TASK: list(batch[TASK]), "frame.mask": ~missing[:, past]}
        windows["future.mask"] = ~missing[:, future] & windows["frame.mask"]
        for camera in cameras:
            frames = _pixels(batch[image_key(camera)])
            windows[image_key(camera)], windows[f"future.images.{camera}"] = frames[:, past], frames[:, future]
        if self.policy.spec.state:
            windows[STATE] = batch[STATE][:, past]
        first, chunk = config.action_delta_indices[0], config.network["chunk"]
        steps = torch.tensor([[step - first + k for k in range(chunk)] for step in config.history_steps])
        windows[ACTION] = batch[ACTION][:, steps]
        windows["action.mask"] = ~batch["action_is_pad"][:, steps] & windows["frame.mask"][..., None]
        return windows

    # Acting

    def reset(self) -> None:
        """Forget everything: new episodes begin."""
        self._memory: Any = None
        self._action_queue: deque[Tensor] = deque()

    def select_action(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """The next action (B, A); every control step's observation is to be shown."""
        if not self._action_queue:
            chunk = self.predict_action_chunk(batch)
            self._action_queue.extend(chunk[:, : self.config.n_action_steps].transpose(0, 1))
        elif self.policy.history:
            self._memory = self.policy.remember(self._observation(batch), self._memory)
        return self._action_queue.popleft()

    def predict_action_chunk(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """Actions from now on (B, chunk, A). What is random draws from seeds taken from torch's generator at the beginning."""
        observation = self._observation(batch)
        if self._memory is None:
            seeds = torch.randint(2**63 - 1, (len(observation[TASK]),)).tolist()
            self._memory = self.policy.begin(seeds)
        chunk, self._memory = self.policy.act(observation, self._memory)
        return torch.from_numpy(chunk).to(self.config.device)

    def _observation(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        spec = self.policy.spec
        observation: dict[str, Any] = {TASK: list(batch[TASK])}
        for camera in spec.cameras:
            observation[image_key(camera)] = _pixels(batch[image_key(camera)]).cpu().numpy()
        if spec.state:
            observation[STATE] = batch[STATE].float().cpu().numpy()
        return observation

    # Files

    def _save_pretrained(self, save_directory: Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Write both kinds of files; others in the folder stay."""
        weights = {k.removeprefix(PREFIX): v for k, v in (state_dict or self.state_dict()).items()}
        record = {"trained_by": f"lerobot {lerobot.__version__}"}
        new = save_checkpoint(save_directory / ".new", self.policy, self.config.network, record, weights=weights)
        for file in new.iterdir():
            file.replace(save_directory / file.name)
        new.rmdir()
        self.config._save_pretrained(save_directory)

    @classmethod
    def _load_as_safetensor(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        """All weights or an error: LeRobot itself goes on with half of them."""
        del map_location, strict
        try:
            model.policy.load_state_dict(load_file(model_file))
        except RuntimeError as error:
            raise UserError(f"the weights in {model_file} do not fit their config.json ({error}): train again.") from error
        return model


def _pixels(images: Tensor) -> Tensor:
    """Float (..., 3, H, W) in 0..1 -> the bytes that they were, (..., H, W, 3)."""
    return (images * 255).round().to(torch.uint8).movedim(-3, -1)


def spec_of(meta: Any) -> Spec:
    """The Spec of a LeRobotDataset: the one that `vla-convert` left in it, or what its names tell, without ranges."""
    return lerobot_spec_of(meta.root)
