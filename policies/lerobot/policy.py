"""A LeRobot policy (ACT, Diffusion, SmolVLA, pi0, ...) from the folder that LeRobot saved, as a `vla.policy.Policy`.

LeRobot's policies keep what they remember in themselves, for one batch of worlds that begin together. Here worlds begin one by
one, so each has a copy of the policy and its processors (of everything but the weights) and is computed by itself: nothing of
a world, not even its rounding or its random numbers, can reach another.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import lerobot
import numpy as np
import torch
from lerobot.configs import FeatureType, PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.utils.import_utils import register_third_party_plugins
from safetensors import SafetensorError

from vla.images import resize_area
from vla.policy import Memory, Observation
from vla.spec import ACTION, ENVIRONMENT_STATE, IMAGE_PREFIX, STATE, TASK, Spec, UserError

VECTORS = {STATE: "state", ENVIRONMENT_STATE: "environment_state"}
EMPTY_CAMERA = IMAGE_PREFIX + "empty_camera"
"""Pictures of this name LeRobot's VLAs fill in by themselves."""


@dataclass
class Brain:
    """A policy with its processors. `planned` is its queue of actions to come, None where it has none that we know."""

    policy: Any
    before: Any
    after: Any

    @property
    def planned(self) -> Any:
        queue = getattr(self.policy, "_action_queue", None)
        return queue if queue is not None else (getattr(self.policy, "_queues", None) or {}).get(ACTION)


class Place:
    """One world's brain. `seed` and `step`, counted over all calls, decide its random numbers."""

    def __init__(self, brain: Brain, seed: int):
        self.brain, self.seed, self.step = brain, seed, 0


class LeRobot:
    """path: folder with config.json and model.safetensors, or a name on the hub. device: auto, cpu or cuda.
    names: our name of a feature -> theirs, where they differ ({observation.images.static: observation.images.top}).
    override: numbers of the policy's own config to change, such as n_action_steps.
    data: the LeRobotDataset that it was trained on, as `vla-convert` wrote it: what each number means is then compared with
    the world's Spec. Without it only their count is, as LeRobot keeps no more, and the world's Spec is believed (`spec`, or
    `believe`). statistics: not used, the processors have them.

    A chunk is what the policy plans to execute (`n_action_steps` of its `predict_action_chunk`), or one action where it plans
    none (temporal ensembling). Pictures are brought to the size trained on. Memory is {"place", "step"}: a world's true
    memory is a copy of the policy and only goes forward, so an old value cannot be used again.
    Raises UserError for what LeRobot cannot load and for features that differ.
    """

    def __init__(
        self,
        spec: Spec | None = None,
        statistics: Any = None,
        *,
        path: str,
        data: str | None = None,
        names: Mapping[str, str],
        override: Mapping[str, Any],
        device: str,
    ):
        del statistics
        self._title = f"LeRobot's policy {path}"
        self._brain = _load(path, override, _device(device))
        config = self._brain.policy.config
        self.history = config.n_obs_steps > 1 or self._brain.planned is None
        self._reads = _inputs(config, names, self._title)
        self._widths = {VECTORS[ours]: shape[0] for _, ours, shape in self._reads if ours in VECTORS}
        self._widths["action"] = _actions(config, self._title)
        pictures = {ours.removeprefix(IMAGE_PREFIX): shape for _, ours, shape in self._reads if ours not in VECTORS}
        self.spec = Spec(cameras={camera: (height, width) for camera, (height, width) in pictures.items()})
        self._meant = data is not None
        if data is not None:
            self._mean(_spec_of(data), f"dataset {data}")
        elif spec is not None:
            self.believe(spec)
        self.facts = {
            "policy": f"{config.type} of LeRobot, {Path(path).name}",
            "lerobot": lerobot.__version__,
            "override": dict(override),
            "weights_sha256": _digest(Path(path) / "model.safetensors"),
        }
        """What a score depends on, for its record."""

    def believe(self, spec: Spec) -> None:
        """Take the meaning of numbers from the world's Spec, unless `data` told it. Raises UserError if their counts differ."""
        if not self._meant:
            self._mean(spec, "the world")

    def _mean(self, spec: Spec, whose: str) -> None:
        for kind, width in self._widths.items():
            if len(getattr(spec, kind)) != width:
                raise UserError(
                    f"{self._title} has {kind} of {width} entries but {whose} has {len(getattr(spec, kind))}: "
                    "use parts made for each other."
                )
        entries = {kind: getattr(spec, kind) if kind in self._widths else () for kind in ("state", "environment_state")}
        self.spec = replace(spec, cameras=self.spec.cameras, projections={}, hand_projections={}, **entries)

    def begin(self, seeds: Sequence[int]) -> Memory:
        """Brains for `len(seeds)` fresh worlds."""
        places = np.empty(len(seeds), object)
        for i, seed in enumerate(seeds):
            places[i] = Place(self._copied(), int(seed))
        return {"place": places, "step": np.zeros(len(seeds), np.int64)}

    def act(self, observation: Observation, memory: Memory) -> tuple[np.ndarray, Memory]:
        """Actions from now on: float32 (N, planned, A), within the Spec's range where it is known, and the new memory."""
        chunks = []
        for i, place in enumerate(memory["place"]):
            if place.brain.planned is not None:
                place.brain.planned.clear()  # then it plans anew
            first = self._select(observation, memory, i)
            chunk = torch.stack([first, *(place.brain.planned or ())], dim=1)
            chunks.append(place.brain.after(chunk)[0].float().cpu().numpy())
        actions = np.stack(chunks)
        if self.spec.action:
            ends = [(-np.inf if e.low is None else e.low, np.inf if e.high is None else e.high) for e in self.spec.action]
            actions = np.clip(actions, *np.array(ends, np.float32).T)
        return actions, _later(memory)

    def remember(self, observation: Observation, memory: Memory) -> Memory:
        """Show an observation at which no chunk is wanted."""
        for i in range(len(memory["place"])):
            self._select(observation, memory, i)
        return _later(memory)

    def _select(self, observation: Observation, memory: Memory, i: int) -> torch.Tensor:
        """LeRobot's control step in world i: the policy's next action (1, A), in its own units."""
        place: Place = memory["place"][i]
        if place.step != memory["step"][i]:
            raise UserError(f"a world's memory of step {memory['step'][i]} was used again, but it is at {place.step}: go on.")
        device = torch.device(place.brain.policy.config.device)
        with torch.inference_mode(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            drawn = np.random.SeedSequence([place.seed, place.step]).generate_state(1, np.uint64)[0]
            torch.manual_seed(int(drawn))
            action = place.brain.policy.select_action(place.brain.before(self._batch(observation, i)))
        place.step += 1
        return action

    def _batch(self, observation: Observation, i: int) -> dict[str, Any]:
        """World i's observation as LeRobot's environments give it: batch of one, pictures (1, 3, H, W) in 0..1."""
        batch: dict[str, Any] = {TASK: [observation[TASK][i]]}
        for theirs, ours, shape in self._reads:
            if ours not in observation:
                raise UserError(
                    f"{self._title} reads {ours} but the observation has {sorted(observation)}: give names or data."
                )
            value = torch.from_numpy(np.ascontiguousarray(observation[ours][i]))
            if ours in VECTORS:
                if value.shape != shape:
                    raise UserError(
                        f"{self._title} reads {ours} of shape {shape}, but it has {tuple(value.shape)}: use another."
                    )
                batch[theirs] = value.float()[None]
            else:
                batch[theirs] = resize_area(value, *shape).permute(2, 0, 1)[None].float() / 255
        return batch

    def _copied(self) -> Brain:
        """A fresh brain with the same weights; the one that was loaded never acts."""
        network = self._brain.policy
        shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
        return copy.deepcopy(self._brain, shared)


def _load(path: str, override: Mapping[str, Any], device: str) -> Brain:
    register_third_party_plugins()
    try:
        config = PreTrainedConfig.from_pretrained(path)
        if unknown := sorted(set(override) - {f.name for f in fields(config)}):
            raise UserError(f"override names {unknown[0]!r}, which a {config.type} policy does not have: correct it.")
        changes: dict[str, Any] = {**override, "device": device}
        if hasattr(config, "pretrained_backbone_weights"):
            changes["pretrained_backbone_weights"] = None  # the folder has them all; LeRobot would fetch ImageNet's first
        config = PreTrainedConfig.from_pretrained(path, cli_overrides=[f"--{k}={json.dumps(v)}" for k, v in changes.items()])
        # Missing weights would otherwise be no more than a warning.
        policy = get_policy_class(config.type).from_pretrained(path, config=config, strict=True).to(device).eval()
        before, after = make_pre_post_processors(
            config, pretrained_path=path, preprocessor_overrides={"device_processor": {"device": device}}
        )
    except UserError:
        raise
    except (ImportError, OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"LeRobot {lerobot.__version__} cannot load the policy {path!r} ({reason:.300}): check path=..."
        ) from error
    return Brain(policy, before, after)


def _device(name: str) -> str:
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"device is {name!r}: choose auto, cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device is 'cuda' but torch sees no GPU: use device=cpu or mend the driver.")
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _inputs(config: Any, names: Mapping[str, str], title: str) -> list[tuple[str, str, tuple[int, ...]]]:
    """What the policy reads: their name, our name, and the shape, (height, width) of a picture."""
    wanted: dict[str, Any] = {name: f for name, f in (config.input_features or {}).items() if not name.startswith(EMPTY_CAMERA)}
    for theirs in names.values():
        if theirs not in wanted:
            raise UserError(f"names has {theirs!r}, but {title} reads {sorted(wanted)}: correct it.")
    ours_of = {theirs: ours for ours, theirs in names.items()}
    reads: list[tuple[str, str, tuple[int, ...]]] = []
    for theirs, feature in wanted.items():
        ours = ours_of.get(theirs, theirs)
        shape = tuple(feature.shape)
        picture = feature.type is FeatureType.VISUAL
        if picture != ours.startswith(IMAGE_PREFIX) or not (picture or ours in VECTORS):
            raise UserError(f"{title} reads {theirs!r} ({feature.type.name}), which has no place here: map it in names.")
        if picture and (len(shape) != 3 or shape[0] != 3):
            raise UserError(f"{title} reads {theirs!r} of shape {shape}, but pictures here are RGB: use another policy.")
        reads.append((theirs, ours, shape[1:] if picture else shape))
    return reads


def _actions(config: Any, title: str) -> int:
    feature = (config.output_features or {}).get(ACTION)
    if feature is None or len(feature.shape) != 1:
        raise UserError(
            f"{title} has no vector {ACTION!r} among its outputs {sorted(config.output_features or {})}: use another."
        )
    return int(feature.shape[0])


def _spec_of(data: str) -> Spec:
    file = Path(data) / "meta" / "vla.json"
    try:
        return Spec.from_dict(json.loads(file.read_text())["spec"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} cannot be read ({error}): give a dataset that vla-convert wrote, or leave data out."
        ) from error


def _digest(file: Path) -> str | None:
    """Of the weights; None for a policy from the hub."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def _later(memory: Memory) -> Memory:
    return {"place": memory["place"], "step": memory["step"] + 1}
