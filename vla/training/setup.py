"""From a composed config to a Trainer: build the parts, check that they fit, say what was chosen and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from vla.checkpoint import build_policy, load_matching, load_policy, read_checkpoint, save_checkpoint
from vla.data.store import Dataset
from vla.data.windows import Windows
from vla.spec import Spec, UserError, require_match
from vla.training.logging import available_cores, cpu_name
from vla.training.resume import begin, checkpoints, require_same_config
from vla.training.trainer import Settings, Trainer

VALIDATION_SEED = 1_000_003
BASE = "base"  # in a run's folder: the policy that is adapted in it


def build(config: DictConfig, actions: bool) -> Trainer:
    """The Trainer that `config` (conf/train.yaml or conf/pretrain.yaml) describes, ready to `fit`.

    actions: train on states and actions too, or on frames and captions alone. Raises UserError for parts that do not fit
    each other, for a run in `out` that began with another config or other data, and for what the machine has not.
    """
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    settings, out = Settings(**plain["trainer"]), Path(plain["out"])
    require_same_config(out, plain)
    accelerator = make_accelerator(settings)
    say = accelerator.print
    options = dict(plain["data"])
    dataset = Dataset(options.pop("path"))
    spec = dataset.spec if actions else replace(dataset.spec, state=(), action=(), environment_state=())
    if actions and not spec.action:
        raise UserError(f"dataset {dataset.path} has no actions: pretrain on it with vla-pretrain.")
    if plain.get("init_parts") is not None and (plain["init_from"] is None or plain.get("adapter")):
        raise UserError("init_parts says what to take of init_from for a new policy: give init_from, and no adapter.")
    set_seed(plain["seed"])
    adapter = instantiate(plain["adapter"]) if plain.get("adapter") else None
    policy = _adapted(adapter, plain, out, spec, dataset, say) if adapter else _policy(plain, out, spec, dataset, say)
    needs = _windows_needed(policy)
    train = Windows(
        dataset, batch_size=settings.batch_size, seed=plain["seed"], part="train" if settings.validate_every else "all",
        **needs, **options,
    )  # fmt: skip
    validation = None
    if settings.validate_every:
        held_out = {**options, "max_frames": None}
        validation = Windows(
            dataset, batch_size=settings.batch_size, seed=VALIDATION_SEED, part="validation", **needs, **held_out
        )
    facts: dict[str, Any] = {"data": {"path": dataset.path, "digest": dataset.digest, "fingerprint": train.fingerprint}}
    if actions:  # for refusals of others (vla.policy.Discerning)
        facts["instructions"] = [sentence for sentence in dataset.instructions if sentence]
    if adapter:
        facts["adapter"] = adapter.facts(policy)
    _require_same_data(out, facts["data"])
    if hasattr(policy, "prepare"):
        policy.prepare(dataset.instructions)  # in one fixed order, so that a resumed run computes with the same numbers
    evaluate = instantiate(config.trainer.evaluation) if settings.evaluate_every else None
    saved = adapter.merged if adapter else torch.nn.Module.state_dict
    trainer = Trainer(policy, train, settings, out, accelerator, plain, facts, plain["seed"], validation, evaluate, saved)
    if accelerator.is_main_process:
        begin(out, plain)
        if adapter and not checkpoints(out):
            training = {"from": plain["init_from"], "instructions": facts.get("instructions", [])}
            save_checkpoint(out / BASE, policy, plain["policy"], training, weights=adapter.base(policy))
    _tell(trainer, dataset, train, policy, say)
    return trainer


def make_accelerator(settings: Settings) -> Accelerator:
    """The device and precision that `settings` ask for. Raises UserError for what this machine has not."""
    if settings.device not in ("auto", "cpu", "cuda"):
        raise UserError(f"trainer.device is {settings.device!r}: choose auto, cpu or cuda.")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UserError("trainer.device is 'cuda' but torch sees no GPU: use trainer.device=cpu or mend the driver.")
    if settings.precision not in ("auto", "bf16", "fp32"):
        raise UserError(f"trainer.precision is {settings.precision!r}: choose auto, bf16 or fp32.")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    cpu = settings.device == "cpu" or not torch.cuda.is_available()
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and _computes_in_bf16(cpu)[0])
    AcceleratorState._reset_state()  # accelerate remembers the first run's precision; a second run in this process has its own
    # A part of the loss whose weight is 0 leaves parameters without a gradient.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(cpu=cpu, mixed_precision="bf16" if bf16 else "no", kwargs_handlers=[unused])


def _policy(plain: Mapping[str, Any], out: Path, spec: Spec, dataset: Dataset, say: Any) -> Any:
    """The policy at the run's newest checkpoint, or a new one, or a new one with the weights of `init_from`."""
    if found := checkpoints(out):
        return _loaded(found[-1], spec, dataset)
    policy = _new(plain, spec, dataset)
    if plain["init_from"]:
        load_matching(policy, plain["init_from"], say, plain.get("init_parts"))
    return policy


def _new(plain: Mapping[str, Any], spec: Spec, dataset: Dataset) -> Any:
    """A new policy, after a look at whether `init_from` and the data agree."""
    if start := plain["init_from"]:
        learned = read_checkpoint(start).spec
        shared = {camera: size for camera, size in learned.cameras.items() if camera in spec.cameras}
        # What was learned of a camera that is not here has no use; `load_matching` says so.
        learned = replace(learned, cameras=shared or learned.cameras)
        require_match(learned, spec, f"checkpoint {start}", f"dataset {dataset.path}")
    policy = build_policy(plain["policy"], spec, dataset.statistics)
    require_match(policy.spec, spec, "the policy", f"dataset {dataset.path}")
    return policy


def _loaded(folder: Path, spec: Spec, dataset: Dataset) -> Any:
    require_match(read_checkpoint(folder).spec, spec, f"checkpoint {folder}", f"dataset {dataset.path}")
    return load_policy(folder)


def _adapted(adapter: Any, plain: Mapping[str, Any], out: Path, spec: Spec, dataset: Dataset, say: Any) -> Any:
    """A policy as it was trained in `init_from`, normalisation included, with new matrices of the adapter in it.

    What begins a run is kept in its folder, because checkpoints hold the sum of both and `init_from` may go away.
    """
    start = plain["init_from"]
    if checkpoints(out):
        if not (out / BASE).is_dir():
            raise UserError(f"{out / BASE}, the policy that is adapted, is gone: give another out=<folder> to begin anew.")
        policy = _loaded(out / BASE, spec, dataset)
    elif start is None:
        raise UserError("an adapter changes a trained policy and init_from is null: add init_from=<checkpoint>.")
    else:
        policy = _new(plain, spec, dataset)
        matched = load_matching(policy, start, say)
        if missing := [*matched.new, *matched.aliased]:
            raise UserError(
                f"checkpoint {start} lacks {min(missing)!r} ({len(missing)} in all), which an adapter would leave untrained: "
                "use the policy config that the checkpoint was trained with, or adapter=none."
            )
        # The weights were trained with these statistics, and they stay.
        buffers, tensors = dict(policy.named_buffers()), read_checkpoint(start).tensors()
        policy.load_state_dict({name: tensors[name] for name in buffers.keys() & tensors.keys()}, strict=False)
    adapter.inject(policy)
    return policy


def _windows_needed(policy: Any) -> dict[str, Any]:
    """What a policy asks of the windows that it is trained on, in the words of `Windows`."""
    return {
        "cameras": list(policy.spec.cameras),
        "history": policy.window,
        "history_stride": policy.stride,
        "foresight_steps": policy.foresight_steps,
        "chunk": policy.horizon,
        "hand_path": getattr(policy, "hand_path", 0),
        "environment_state": getattr(policy, "environment_state", False),
        # Larger frames are averaged down before they fill the memory, as the policy would do; smaller ones it enlarges itself.
        "image_size": {camera: policy.size for camera, size in policy.spec.cameras.items() if min(size) > policy.size},
    }


def _require_same_data(out: Path, now: Mapping[str, str]) -> None:
    if found := checkpoints(out):
        before = read_checkpoint(found[-1]).training["data"]
        for name in ("digest", "fingerprint"):
            if before[name] != now[name]:
                raise UserError(
                    f"the data's {name} was {before[name]} when the run in {out} was saved and is {now[name]} now: "
                    f"give the same data ({before['path']}) and options to go on, or another out=<folder> to begin anew."
                )


def _computes_in_bf16(cpu: bool) -> tuple[bool, str]:
    """Whether bf16 saves time here, and why."""
    if not cpu:
        return torch.cuda.is_bf16_supported(including_emulation=False), "by the GPU"
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    found = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags]
    return bool(found), f"this CPU has {found[0]}" if found else "this CPU has no bf16 units"


def _tell(trainer: Trainer, dataset: Dataset, train: Windows, policy: torch.nn.Module, say: Any) -> None:
    """What was chosen and why."""
    accelerator, settings = trainer.accelerator, trainer.settings
    cpu = accelerator.device.type == "cpu"
    name = cpu_name() if cpu else torch.cuda.get_device_name(accelerator.device)
    why = "as asked" if settings.device != "auto" else "torch sees no GPU" if cpu else "torch sees a GPU"
    reason = _computes_in_bf16(cpu)[1] if settings.precision == "auto" else "as asked"
    per_step = settings.batch_size * settings.accumulate * accelerator.num_processes
    epochs = f" = {trainer.budget.steps * per_step / len(train):.1f} epochs" if trainer.budget.reproducible else ""  # type: ignore[operator]
    count = {wanted: sum(p.numel() for p in policy.parameters() if p.requires_grad == wanted) for wanted in (True, False)}
    sentences = len(dataset.instructions) - 1
    facts = {
        "device": f"{accelerator.device.type} ({why}): {name}, {available_cores()} cores",
        "compute": f"{'bf16' if accelerator.mixed_precision == 'bf16' else 'fp32'} ({reason}), {accelerator.num_processes} "
        f"process(es) of {torch.get_num_threads()} thread(s){', compiled' if settings.compile else ''}",
        "data": f"{dataset.path}: {dataset.num_frames:,} frames, {dataset.num_episodes:,} episodes, digest {dataset.digest}",
        "windows": f"{len(train):,} = {len(train) / per_step:,.0f} steps of {per_step}, {sentences:,} instructions",
        "policy": f"{type(policy).__name__}: {count[True]:,} parameters trained, {count[False]:,} frozen",
        "budget": f"{trainer.budget}{epochs}",
        "out": str(trainer.out),
    }
    if made := trainer.facts.get("adapter"):
        share = 100 * made["trained"] / made["parameters"]
        numbers = f"of rank {made['rank']}, alpha {made['alpha']:g}, in {made['layers']} layers"
        facts["adapter"] = f"{made['kind']} {numbers}: {share:.2f} % of the parameters"
    for title, text in facts.items():
        say(f"{title:8} {text}")
    for sentence in dataset.narrow:
        say(f"note     {sentence}")
