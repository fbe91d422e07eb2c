"""The one training loop, for video pretraining and for robot data, on one process or many (torchrun).

    trainer = Trainer(policy, train, settings, out, ...)
    trainer.fit()

Everything random in step k is drawn from (seed, k, rank): weights, moments and the number of the step are therefore all
that a run is made of, and one that was killed at any moment goes on bit by bit as if it had not been (on a CPU).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from PIL import Image
from torch import Tensor, nn

from vla.checkpoint import read_checkpoint, save_checkpoint
from vla.policy import Imagining
from vla.training import resume
from vla.training.ema import EMA
from vla.training.loader import Batch, Source, prefetch, to_device
from vla.training.logging import Board, Smooth, circumstances, line
from vla.training.optimizer import LossOf, adamw, step_seed
from vla.training.pictures import batch_picture, foresight_picture
from vla.training.schedule import Budget, learning_rate

VALIDATION_SEED = 2**31 - 1


@dataclass(frozen=True)
class Settings:
    """What conf/trainer/*.yaml says; each key is explained there."""

    steps: int | None
    cpu_seconds: float | None
    minutes: float | None
    batch_size: int
    accumulate: int
    learning_rate: float
    final_learning_rate: float
    warmup: int
    weight_decay: float
    clip: float | None
    ema: float
    precision: str
    compile: bool
    device: str
    threads: int | None
    log_every: int
    save_every: int
    keep: int
    validate_every: int | None
    validation_batches: int
    picture_every: int | None
    evaluate_every: int | None
    evaluation: Mapping[str, Any] | None
    wandb: Mapping[str, Any] | None


class Trainer:
    """Trains `policy` on `train` (its batch k is a function of k) and leaves checkpoints in `out`.

    accelerator: from `vla.training.setup.accelerator`. config: the run's whole config, plain; its "policy" goes into the
    checkpoint. facts: what else training.json shall say (the data's digest, ...). validation: fixed batches of held-out
    data. evaluate: called with the averaged policy every `evaluate_every` steps, gives numbers (rollouts, for example).
    saved: the weights that go into a checkpoint, of the policy as it is in training (with an adapter in it, for example).
    """

    def __init__(
        self,
        policy: nn.Module,
        train: Source,
        settings: Settings,
        out: Path,
        accelerator: Accelerator,
        config: Mapping[str, Any],
        facts: Mapping[str, Any],
        seed: int = 0,
        validation: Source | None = None,
        evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
        saved: Callable[[nn.Module], Mapping[str, Tensor]] = nn.Module.state_dict,
    ) -> None:
        self.settings, self.out, self.accelerator, self.seed = settings, out, accelerator, seed
        self.config, self.facts = config, facts
        self.train, self.validation, self.evaluate, self.saved = train, validation, evaluate, saved
        self.budget = Budget(settings.steps, settings.cpu_seconds, settings.minutes)
        self.policy = policy.to(accelerator.device)
        self.optimizer = adamw(self.policy, settings.learning_rate, settings.weight_decay, accelerator.device)
        self.ema = EMA(self.policy, settings.ema)
        self.smooth = Smooth()
        self.history: list[dict[str, float]] = []
        self.step = 0
        self._here = circumstances(accelerator.device)  # of the code that runs, whatever is committed meanwhile
        self._commits = [self._here["commit"]]
        self._seconds = self._cpu_seconds = 0.0  # spent before this process began
        self._began, self._cpu_began = time.monotonic(), time.process_time()

    def fit(self) -> None:
        """Train until the budget is consumed, from the newest checkpoint in `out` if there is one."""
        settings, accelerator = self.settings, self.accelerator
        self.resume()
        model = LossOf(self.policy)
        if settings.compile:
            model.compile()
        self.model = accelerator.prepare(model)
        self.board = Board(self.out, self.step, self.config, settings.wandb) if accelerator.is_main_process else None
        ranks = accelerator.num_processes
        batches = prefetch(
            self.train, self.step * settings.accumulate * ranks + accelerator.process_index, ranks, accelerator.device
        )
        self._first_fraction = fraction = self.fraction()
        if fraction == 1:
            accelerator.print(f"nothing to do: {self.out} has already been trained for {self.budget}, {self.step:,} steps.")
        self.policy.train()
        self._log_mark, self._aside = (self.step, time.monotonic()), 0.0
        while fraction < 1:
            self._train_step(batches, fraction)
            self.step += 1
            fraction = self.fraction()
            if self._due(settings.log_every, fraction):
                self._log(fraction)
            began = time.monotonic()
            self._look(fraction)
            if self._due(settings.save_every, fraction):
                self.save()
            self._aside += time.monotonic() - began
        batches.close()
        if self.board:
            self.board.close()

    def fraction(self) -> float:
        """The share of the budget that is consumed; the same on every rank."""
        fraction = self.budget.fraction(self.step, self.cpu_seconds, self.seconds)
        if self.budget.reproducible or self.accelerator.num_processes == 1:
            return fraction
        return broadcast_object_list([fraction])[0]

    @property
    def seconds(self) -> float:
        """Seconds on the wall that the run has taken, over all its restarts."""
        return self._seconds + time.monotonic() - self._began

    @property
    def cpu_seconds(self) -> float:
        """CPU-seconds of this process, over all its restarts."""
        return self._cpu_seconds + time.process_time() - self._cpu_began

    def save(self) -> Path | None:
        """Write a checkpoint carrying the averaged weights, and the state to go on from; returns its folder (main process).

        training.json names the `commit` at which the run began, and all `commits` at which it was started if they differ.
        """
        if not self.accelerator.is_main_process:
            return None
        self._require_finite(self.smooth.values())
        folder = resume.checkpoint_folder(self.out, self.step)
        training = {
            "step": self.step,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "budget": str(self.budget),
            **self.facts,
            **self._here,
            "commit": self._commits[0],
            **({"commits": self._commits} if len(self._commits) > 1 else {}),
            "smooth": self.smooth.state(),
            "history": self.history,
        }
        state = resume.tensors(self.policy, self.ema.average, self.optimizer)
        with self.ema.applied():
            weights = self.saved(self.policy)
            save_checkpoint(folder, self.policy, self.config["policy"], training, {"optimizer": state}, weights)
        resume.tidy(self.out, self.settings.keep)
        return folder

    def resume(self) -> bool:
        """Take up the newest complete checkpoint in `out`; False if there is none."""
        found = resume.checkpoints(self.out)
        if not found:
            return False
        checkpoint = read_checkpoint(found[-1])
        training = checkpoint.training
        resume.load_tensors(checkpoint.tensors("optimizer"), self.policy, self.ema.average, self.optimizer)
        self.step, self.history = training["step"], training["history"]
        self._seconds, self._cpu_seconds = training["seconds"], training["cpu_seconds"]
        before = training.get("commits", [training.get("commit")])
        self._commits = before if before[-1] == self._commits[-1] else [*before, self._commits[-1]]
        self.smooth.load(training["smooth"], self.accelerator.device)
        self.accelerator.print(f"going on from {found[-1]}")
        return True

    def _train_step(self, batches: Iterator[Batch], fraction: float) -> None:
        settings, accelerator = self.settings, self.accelerator
        set_seed(step_seed(self.seed, self.step, accelerator.process_index))
        self.rate = learning_rate(self.step, fraction, settings.learning_rate, settings.warmup, settings.final_learning_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        for part in range(settings.accumulate):
            batch = next(batches)
            if self.step == 0 and part == 0:
                self._picture("first_batch", batch_picture(batch))
            last = part == settings.accumulate - 1
            with nullcontext() if last else accelerator.no_sync(self.model):
                loss, metrics = self.model(batch)
                accelerator.backward(loss / settings.accumulate)
            self.smooth.update({"loss": loss, **metrics})
        norm = nn.utils.clip_grad_norm_(self.policy.parameters(), settings.clip or math.inf)
        self.smooth.update({"gradient": norm})
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.step)

    def _due(self, every: int | None, fraction: float) -> bool:
        return bool(every) and (self.step % every == 0 or fraction == 1)

    def _log(self, fraction: float) -> None:
        losses = self.smooth.values()
        self._require_finite(losses)
        step, since = self._log_mark
        took = max(time.monotonic() - since - self._aside, 1e-9)
        windows = self.settings.batch_size * self.settings.accumulate * self.accelerator.num_processes
        rate = (self.step - step) * windows / took
        self._log_mark, self._aside = (self.step, time.monotonic()), 0.0
        done = max(fraction - self._first_fraction, 1e-9)
        eta = (time.monotonic() - self._began) * (1 - fraction) / done
        gradient = losses.pop("gradient")
        self.accelerator.print(line(self.step, fraction, losses, self.rate, rate, eta, self._total()), flush=True)
        self._record({f"train/{k}": v for k, v in losses.items()} | {
            "train/gradient": gradient, "train/learning_rate": self.rate, "train/windows_per_second": rate,
        })  # fmt: skip

    def _total(self) -> int | None:
        return self.budget.steps if self.budget.reproducible else None

    def _look(self, fraction: float) -> None:
        """Validation loss, foresight pictures and rollouts, each when due, of the averaged policy, on the main process."""
        settings = self.settings
        validate = self.validation is not None and self._due(settings.validate_every, fraction)
        picture = isinstance(self.policy, Imagining) and self._due(settings.picture_every, fraction)
        evaluate = self.evaluate is not None and self._due(settings.evaluate_every, fraction)
        if not (validate or picture or evaluate) or not self.accelerator.is_main_process:
            return
        # Every look sees the same batches and draws the same noise; the next training step seeds itself again.
        set_seed(VALIDATION_SEED)
        self.policy.eval()
        with self.ema.applied(), torch.no_grad():
            if validate:
                self._validate()
            if picture:
                batch = to_device((self.validation or self.train).batch(0), self.accelerator.device)
                self._picture(f"foresight/{self.step:08d}", foresight_picture(self.policy, batch))
            if evaluate and self.evaluate:
                found = dict(self.evaluate(self.policy))
                self._record({f"rollout/{k}": v for k, v in found.items()})
                self.accelerator.print("  rollout  " + "  ".join(f"{k} {v:.4f}" for k, v in found.items()), flush=True)
        self.policy.train()

    def _validate(self) -> None:
        assert self.validation is not None
        totals: dict[str, list[float]] = {}
        for number in range(self.settings.validation_batches):
            with self.accelerator.autocast():
                loss, metrics = self.policy.loss(to_device(self.validation.batch(number), self.accelerator.device))  # pyright: ignore
            for name, value in {"loss": loss, **metrics}.items():
                totals.setdefault(name, []).append(float(value))
        means = {name: float(np.mean(values)) for name, values in totals.items()}
        parts = ", ".join(f"{name} {value:.4f}" for name, value in means.items() if name != "loss")
        self.accelerator.print(f"  held out  loss {means['loss']:.4f}" + (f" ({parts})" if parts else ""), flush=True)
        self._record({f"validation/{k}": v for k, v in means.items()})

    def _record(self, values: Mapping[str, float]) -> None:
        self.history.append({"step": self.step, "seconds": self.seconds, "cpu_seconds": self.cpu_seconds, **values})
        if self.board:
            self.board.scalars(self.step, values)

    def _picture(self, name: str, image: np.ndarray) -> None:
        if self.board:
            path = self.out / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
            self.board.picture(self.step, name.split("/")[0], image)

    def _require_finite(self, losses: Mapping[str, float]) -> None:
        if not math.isfinite(losses.get("loss", 0.0)):
            raise FloatingPointError(
                f"the loss is {losses['loss']} at step {self.step}: lower trainer.learning_rate (now "
                f"{self.settings.learning_rate}) or look at {self.out / 'first_batch.png'}; the last checkpoint is sound."
            )
