"""A checkpoint is a folder that says everything needed to run a policy, and nothing that can run by itself:

    model.safetensors     weights and normalisation statistics
    config.yaml           the policy's config: `_target_` and its numbers
    spec.json             what it reads and writes
    training.json         how it came to be: step, data digest, versions, metrics
    <extra>.safetensors   further tensors by name, such as the optimizer's

Nothing is pickled. A checkpoint appears complete or not at all: it is written to a temporary folder and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from yaml import YAMLError

from vla.spec import Spec, UserError

ALLOWED = ("policies.", "envs.")
FILES = ("model.safetensors", "config.yaml", "spec.json", "training.json")


class Checkpoint(NamedTuple):
    """The readable part of a checkpoint; `tensors` reads the rest."""

    folder: Path
    config: DictConfig
    spec: Spec
    training: dict[str, Any]

    def tensors(self, name: str = "model") -> dict[str, Tensor]:
        """The tensors of `<name>.safetensors`; UserError if the file is missing or cut short or a value is not finite."""
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            raise UserError(f"checkpoint {str(self.folder)!r} has no {path.name}: give a complete checkpoint folder.")
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise UserError(f"{str(path)!r} cannot be read ({error}): the file is damaged, copy or train it again.") from error
        if bad := [tensor for tensor, values in tensors.items() if not values.isfinite().all()]:
            raise UserError(f"{str(path)!r}: {bad[0]} ({len(bad)} in all) is not finite: use an earlier checkpoint.")
        return tensors


def build_policy(config: Mapping[str, Any] | DictConfig, spec: Spec, statistics: Mapping[str, Any] | None = None) -> Any:
    """The policy that `config` (with `_target_` under `policies.` or `envs.`) describes, for `spec`.

    Raises UserError for any other target and for unknown or missing config keys.
    """
    target = config.get("_target_")
    if not isinstance(target, str) or not target.startswith(ALLOWED):
        raise UserError(f"policy target {target!r} is not allowed: it must start with one of {', '.join(ALLOWED)}")
    _refuse_inner_targets(OmegaConf.to_container(config) if isinstance(config, DictConfig) else config)
    try:
        part = instantiate(config, _partial_=True, _convert_="all")
    except InstantiationException as error:
        raise UserError(f"policy target {target!r} does not exist: correct _target_ in the policy's config.") from error
    try:
        return part(spec=spec, statistics=statistics)
    except TypeError as error:
        raise UserError(f"the config of {target} does not fit it ({error}): correct or remove that key.") from error


def _refuse_inner_targets(node: Any, top: bool = True) -> None:
    """A target inside a policy's config could call anything on loading: there is no need for one, so none is allowed."""
    if isinstance(node, Mapping):
        if not top and "_target_" in node:
            raise UserError(
                f"the policy config has an inner _target_ {node['_target_']!r}: only the policy itself may have one."
            )
        for value in node.values():
            _refuse_inner_targets(value, top=False)
    elif isinstance(node, list | tuple):
        for value in node:
            _refuse_inner_targets(value, top=False)


def save_checkpoint(
    folder: str | Path,
    policy: Any,
    config: Mapping[str, Any] | DictConfig,
    training: Mapping[str, Any],
    extra_tensors: Mapping[str, Mapping[str, Tensor]] | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a checkpoint at `folder`, replacing the one there, and return its path.

    config: the policy's. extra_tensors: file name (without suffix) -> named tensors. weights: used instead of the policy's
    own state (an average of it, say).
    """
    folder = Path(folder)
    new, old = (folder.with_name(f".{folder.name}.{kind}-{os.getpid()}") for kind in ("new", "old"))
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        files = {"model": weights if weights is not None else policy.state_dict(), **(extra_tensors or {})}
        for name, tensors in files.items():
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, new / f"{name}.safetensors")
        plain = config if isinstance(config, DictConfig) else OmegaConf.create(dict(config))
        OmegaConf.save(plain, new / "config.yaml", resolve=True)
        (new / "spec.json").write_text(policy.spec.to_json())
        (new / "training.json").write_text(json.dumps(dict(training), indent=1))
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return folder


def read_checkpoint(folder: str | Path) -> Checkpoint:
    """Config, spec and training record of a checkpoint; raises UserError naming what is missing or unreadable."""
    folder = Path(folder)
    for name in FILES:
        if not (folder / name).is_file():
            raise UserError(f"{str(folder)!r} has no {name}: give the folder of a complete checkpoint.")
    try:
        config = OmegaConf.load(folder / "config.yaml")
        spec = Spec.from_json((folder / "spec.json").read_text())
        training = json.loads((folder / "training.json").read_text())
    except (ValueError, KeyError, TypeError, AttributeError, OSError, YAMLError) as error:
        what = " ".join(str(error).split())
        raise UserError(f"checkpoint {str(folder)!r} cannot be read ({what}): copy or train it again.") from error
    if not isinstance(config, DictConfig):
        raise UserError(f"{str(folder / 'config.yaml')!r} is not a mapping: copy or train the checkpoint again.")
    return Checkpoint(folder, config, spec, training)


def load_policy(folder: str | Path, **overrides: Any) -> Any:
    """The policy of a checkpoint, in evaluation mode. `overrides` replace config numbers (`gripper_rule="threshold"`).

    Raises UserError if the weights do not fit the config exactly.
    """
    checkpoint = read_checkpoint(folder)
    unknown = sorted(set(overrides) - set(checkpoint.config))
    if unknown:
        raise UserError(f"checkpoint {str(folder)!r} has no config key {unknown[0]!r}: use one of {sorted(checkpoint.config)}.")  # type: ignore[type-var]
    policy = build_policy(OmegaConf.merge(checkpoint.config, overrides), checkpoint.spec)  # type: ignore[arg-type]
    tensors = checkpoint.tensors()
    own = policy.state_dict()
    _refuse_other_shapes(own, tensors, folder)
    for names, where in ((own.keys() - tensors.keys(), "lacks"), (tensors.keys() - own.keys(), "has the unexpected")):
        if names:
            raise UserError(
                f"checkpoint {str(folder)!r} {where} {min(names)!r} ({len(names)} in all): its config.yaml is not the one "
                "that it was trained with."
            )
    policy.load_state_dict(tensors)
    if hasattr(policy, "learnt"):
        policy.learnt(checkpoint.training.get("instructions", ()))  # not there in older checkpoints
    return policy.eval()


def _refuse_other_shapes(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], folder: str | Path) -> None:
    for name in sorted(own.keys() & tensors.keys()):
        if own[name].shape != tensors[name].shape:
            raise UserError(
                f"{name} has shape {tuple(tensors[name].shape)} in {str(folder)!r} but {tuple(own[name].shape)} in the policy: "
                "use the policy config that the checkpoint was trained with."
            )


class Matched(NamedTuple):
    """What `load_matching` did, as parameter names: loaded, loaded from another part (name -> source), left new, not used."""

    loaded: list[str]
    aliased: dict[str, str]
    new: list[str]
    unused: list[str]


def load_matching(policy: nn.Module, folder: str | Path, say: Any = print, parts: Sequence[str] | None = None) -> Matched:
    """Start `policy` from the weights of another checkpoint (video pre-training, say) and report with `say` what matched.

    A name that both have must have one shape, else UserError. Parts that the checkpoint lacks may start from a sibling that
    the policy names in `aliases` (prefix -> prefix in the checkpoint); all others stay new. Normalisation statistics
    (buffers) always stay the policy's own. `parts` (["model.decoder"], say) are all that is taken, the rest stays new.
    Raises UserError if nothing matches, or no name of the checkpoint lies in one of `parts`.
    """
    tensors = read_checkpoint(folder).tensors()
    if parts is not None:
        taken = {part: {name: tensors[name] for name in tensors if f"{name}.".startswith(f"{part}.")} for part in parts}
        if missing := [part for part, found in taken.items() if not found]:
            there = sorted({".".join(name.split(".")[:2]) for name in tensors})
            raise UserError(f"{str(folder)!r} has no part {missing[0]!r}: choose init_parts from {', '.join(there)}.")
        tensors = {name: tensor for found in taken.values() for name, tensor in found.items()}
    own = dict(policy.named_parameters())
    _refuse_other_shapes(own, tensors, folder)
    sources = {name: name for name in own if name in tensors}
    for prefix, other in getattr(policy, "aliases", {}).items():
        for name in own:
            if name not in sources and name.startswith(prefix):
                source = other + name.removeprefix(prefix)
                if source in tensors and tensors[source].shape == own[name].shape:
                    sources[name] = source
    if not sources:
        raise UserError(
            f"no weight of {str(folder)!r} has a name of this policy's: use a checkpoint of the same kind of policy."
        )
    with torch.no_grad():
        for name, source in sources.items():
            own[name].copy_(tensors[source])
    aliased = {name: source for name, source in sources.items() if name != source}
    matched = Matched(
        loaded=[n for n in sources if n not in aliased],
        aliased=aliased,
        new=[n for n in own if n not in sources],
        unused=sorted(set(tensors) - set(sources.values()) - set(dict(policy.named_buffers()))),
    )
    say(f"from {folder}: {len(matched.loaded)} tensors loaded, {len(aliased)} from a sibling part, {len(matched.new)} new.")
    for title, names in (
        ("sibling", [f"{a} <- {b}" for a, b in aliased.items()]),
        ("new", matched.new),
        ("unused", matched.unused),
    ):
        for name in names:
            say(f"  {title}: {name}")
    return matched
