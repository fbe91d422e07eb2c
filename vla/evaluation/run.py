"""A whole evaluation from its config: build the parts in each process, play the slice, gather, merge, write."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from vla.checkpoint import load_policy, read_checkpoint
from vla.evaluation import language, report
from vla.evaluation.film import Film
from vla.evaluation.long_horizon import Attempts, Chain, chain_numbers, evaluate
from vla.evaluation.statistics import summarise
from vla.parallel import processes, spread
from vla.rollout import Recorder, Timing
from vla.spec import UserError
from vla.training.logging import circumstances, write_json

Films = dict[int, bytes]


def run(config: DictConfig) -> tuple[dict[str, Any], Films]:
    """Play `config.chains`; gives the result (see `write`) and the films of the first `config.videos` chains."""
    benchmark = instantiate(config.env.benchmark)
    numbers = chain_numbers(config.chains, len(benchmark.chains()))
    build_policy(config)  # a mistake in the checkpoint shows here, before any process starts
    workers = processes(config.workers, len(numbers))
    if config.videos < 0:
        raise UserError(f"videos is {config.videos}: give the number of chains to film, 0 for none.")
    plain = OmegaConf.to_container(config, resolve=True)
    # Strided shares: neighbours in the list take different tasks, so no process is left with the long chains.
    shares = [(plain, list(numbers[k::workers]), numbers[: config.videos]) for k in range(workers)]
    chains, trials, films, timing, settings = [], [], {}, Timing(), {}
    errors: dict[str, Any] = {}
    total = len(numbers) * (1 + len(language.KINDS) * bool(config.language))
    with tqdm(total=total, unit="chain or trial" if config.language else "chain", smoothing=0.05) as bar:
        for kind, value in spread(_play, shares):
            if kind == "chain":
                chains.append(value)
                bar.update()
                bar.set_postfix_str(f"average length {sum(c['solved'] for c in chains) / len(chains):.2f}")
            elif kind == "trial":
                trials.append(value)
                bar.update()
            elif kind == "film":
                films[value[0]] = value[1]
                for camera, sums in value[2].items():
                    errors[camera] = errors.get(camera, 0.0) + sums
            else:
                settings, times = value
                timing.add(times)
    here = circumstances(torch.device("cpu"))
    result = {
        "title": config.title or f"{settings['policy']} on {settings['world']}, {settings['wording']} wording",
        "settings": settings,
        "made": {"date": datetime.now(UTC).isoformat(timespec="seconds"), "command": " ".join(sys.argv), **here},
        "timing": timing.table(),
        "foresight": {camera: [float(x) for x in sums] for camera, sums in errors.items()},
        "chains": sorted(chains, key=lambda c: c["chain"]),
        "trials": _in_order(trials),
    }
    return result, films


def _in_order(trials: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(trials, key=lambda t: (t["chain"], t["kind"]))


def _play(share: tuple[dict[str, Any], Sequence[int], Sequence[int]]) -> Iterator[tuple[str, Any]]:
    """One process's part: ("chain", result), ("film", (number, mp4, foresight errors)), ("trial", result), ("end", ...)."""
    plain, numbers, filmed = share
    config = OmegaConf.create(plain)
    torch.set_num_threads(1)
    policy, benchmark, executor = build_policy(config), instantiate(config.env.benchmark), instantiate(config.executor)
    if config.cameras == "as_trained" and policy.spec.cameras:
        config.env.world.cameras = {name: list(size) for name, size in policy.spec.cameras.items()}
    config.env.world.num_worlds = min(config.env.world.num_worlds, len(numbers))
    world = instantiate(config.env.world, _convert_="all")
    if hasattr(policy, "believe"):  # other people's policies do not say what their numbers mean
        policy.believe(world.vla_spec)
    films: dict[int, Film] = {}

    def record(number: int, chain: Chain, attempts: Attempts) -> Recorder | None:
        if number not in filmed or not world.vla_spec.cameras:
            return None
        foresight = getattr(policy, "foresight_steps", None)
        films[number] = Film(attempts, len(chain.tasks), foresight, world.vla_spec.control_hz or 30.0)
        return films[number]

    timing = Timing()
    rules = (executor, config.split, config.seed, record, timing, config.delay_ms / 1e3)
    for result in evaluate(world, policy, benchmark, numbers, *rules):
        yield "chain", result
        if film := films.pop(result["chain"], None):
            yield "film", (result["chain"], film.finish(), film.errors)
    if config.language:
        rules = (executor, config.split, config.seed, timing, config.delay_ms / 1e3)
        yield from (("trial", trial) for trial in language.play(world, policy, benchmark, numbers, *rules))
    yield "end", (_settings(config, policy, world, benchmark, executor), timing)
    world.close()


def build_policy(config: DictConfig) -> Any:
    """The policy of `config.checkpoint`, or the one that `config.policy` describes; UserError for both or neither."""
    if bool(config.checkpoint) == bool(config.get("policy")):
        raise UserError("give either checkpoint=<folder> or policy=<name> (such as policy=expert): exactly one of them.")
    if config.checkpoint:
        return load_policy(config.checkpoint, **config.override)
    return instantiate(config.policy, _convert_="all")


def _settings(config: DictConfig, policy: Any, world: Any, benchmark: Any, executor: Any) -> dict[str, Any]:
    """All that a score depends on: two slices may be merged if these agree."""
    if not config.checkpoint:
        settings: dict[str, Any] = {"policy": config.policy._target_.rpartition(".")[2], **getattr(policy, "facts", {})}
    else:
        checkpoint = read_checkpoint(config.checkpoint)
        numbers: Any = OmegaConf.merge(checkpoint.config, config.override)
        weights = (Path(config.checkpoint) / "model.safetensors").read_bytes()
        settings = {
            "policy": Path(config.checkpoint).name,
            "checkpoint_sha256": hashlib.sha256(weights).hexdigest(),
            "trained_steps": checkpoint.training.get("step"),
            "gripper_rule": numbers.get("gripper_rule", "the policy's only one"),
        }
    return {
        **settings,
        "executor": executor.describe(),
        "delay_ms": config.delay_ms,
        "wording": config.split,
        "language": bool(config.language),
        "seed": config.seed,
        "steps_per_task": benchmark.max_steps,
        "world": f"{benchmark.name}, scene {''.join(config.env.world.scene)}",
        "world_config": {k: v for k, v in OmegaConf.to_container(config.env.world).items() if k != "num_worlds"},  # type: ignore
        "renderer": getattr(world, "renderer", config.env.world.get("renderer", "")),
        "cameras": {name: list(size) for name, size in world.vla_spec.cameras.items()},
        "foresight_steps": getattr(policy, "foresight_steps", None),
    }


def merge(folders: Sequence[str]) -> tuple[dict[str, Any], Films]:
    """One result of several slices' folders; UserError where settings differ, chains occur twice or some in between lack."""
    results = [read(folder) for folder in folders]
    first = results[0]
    for folder, result in zip(folders, results, strict=True):
        for name in first["settings"].keys() | result["settings"].keys():
            a, b = first["settings"].get(name), result["settings"].get(name)
            if a != b:
                raise UserError(f"{name} is {a!r} in {folders[0]} but {b!r} in {folder}: merge slices of one evaluation.")
    chains = sorted((chain for result in results for chain in result["chains"]), key=lambda c: c["chain"])
    for a, b in pairwise(chains):
        if b["chain"] == a["chain"]:
            raise UserError(f"chain {b['chain']} is in two of the slices: merge slices that do not overlap.")
        if b["chain"] > a["chain"] + 1:
            raise UserError(f"chains {a['chain'] + 1} to {b['chain'] - 1} are in none of the slices: evaluate them too.")
    trials = _in_order(trial for result in results for trial in result.get("trials", []))  # older results have none
    weights = [sum(a["steps"] for c in result["chains"] for a in c["attempts"]) for result in results]
    names = [name for name in first["timing"] if all(name in result["timing"] for result in results)]
    total = sum(weights)
    timing = {n: sum(w * r["timing"][n] for w, r in zip(weights, results, strict=True)) / total for n in names}
    seen = sorted({camera for result in results for camera in result["foresight"]})
    foresight = {c: np.sum([r["foresight"][c] for r in results if c in r["foresight"]], axis=0).tolist() for c in seen}
    films = {int(f.stem.split("-")[1]): f.read_bytes() for d in folders for f in sorted(Path(d, "videos").glob("chain-*.mp4"))}
    return {**first, "timing": timing, "foresight": foresight, "chains": chains, "trials": trials}, films


def read(folder: str) -> dict[str, Any]:
    """The result written in a folder; UserError if there is none."""
    path = Path(folder, "results.json")
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): give a folder that vla-evaluate wrote.") from error


def foresight_table(errors: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Camera -> {"ratio": error of the imagined frames over that of "nothing moves", "moving_pixels": of so many}."""
    return {
        camera: {"ratio": error / still if still else float("nan"), "moving_pixels": pixels}
        for camera, (error, still, pixels) in errors.items()
    }


def write(out: str, result: Mapping[str, Any], films: Mapping[int, bytes]) -> dict[str, Any]:
    """Leave results.json, report.html and videos/ in `out`; gives the summary."""
    folder = Path(out)
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    summary = {
        **summarise(result["chains"]),
        "foresight": foresight_table(result["foresight"]),
        "language": language.describe(result["chains"], result["trials"]),
    }
    for number, film in films.items():
        (folder / "videos" / f"chain-{number:04d}.mp4").write_bytes(film)
    page = report.render({**result, "summary": summary}, films)
    temporary = folder / f".report.{os.getpid()}"
    temporary.write_text(page, "utf-8")
    temporary.replace(folder / "report.html")
    write_json(folder / "results.json", {**result, "summary": summary})
    return summary
