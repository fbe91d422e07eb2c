"""F1 as a policy: the loss on a batch of windows, and acting with a memory of the tokens of the frames seen."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from policies.f1.model import F1
from policies.f1.tokenizer import build_tokenizer, from_signed, to_signed
from policies.nn.acting import in_groups, still
from policies.nn.actions import Actions
from policies.nn.images import Transform, chosen_cameras, draw_swap, normalise, resize, shift_pixels, swap_margin
from policies.nn.inpainting import keep, read_plan
from vla.spec import ACTION, STATE, TASK, Spec, UserError, image_key

FUTURE_PREFIX = "future.images."
PATH_PREFIX = "path."
TASK_NAME = "task.name"
HAND_PATH = 12
"""Points of the hand's path that are kept free when parts of pictures are swapped."""
PARTS = ("understanding", "generation", "action")
Memory = dict[str, Tensor]


class F1Policy(nn.Module):
    """Meets `vla.policy.Policy`, `vla.policy.Imagining` and `vla.policy.Continuing`, and is trained by `loss`.

    spec: what the data or the world offers. Without actions in it (video) there is no action expert.
    statistics: feature name -> {"mean", "std"} of state and actions. None when a checkpoint brings them.
    size: side of the pictures that are understood, in pixels; cameras: name -> {"pad": largest random shift}, in pixels of
    the larger of `size` and the tokenizer's. augment: as for GR-1 (`brightness` and `colour` of understanding's pictures).
    history: frames seen by the generation expert, `history_stride` control steps apart; chunk: actions predicted.
    tokenizer: see `policies.f1.tokenizer.build_tokenizer`; it is frozen and comes from a checkpoint of its own.
    foresight: `camera` that is foreseen, `steps` ahead, in the first `scales` of its tokens (null: all, 0: no foresight and
    no generation expert); `history_scales` of the frames seen; `own`: share of a batch whose actions are trained beside
    foresight of the policy's own instead of what came; `top_k` and `top_p` of sampling a token; `fill`: show finer scales
    than those foreseen as they are now.
    flow: `draws` noise levels trained per window, Euler `steps` to act. loss: weights `flow` and `foresight`.
    trained: which of understanding, generation and action are; the others stay as they are.
    micro_batch: worlds are computed in groups of exactly this many, so that an action never depends on its neighbours.
    The other numbers are F1's (policies/f1/model.py).
    """

    def __init__(
        self,
        spec: Spec,
        statistics: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        size: int,
        cameras: Mapping[str, Mapping[str, int]],
        history: int,
        history_stride: int,
        chunk: int,
        tokenizer: Mapping[str, Any],
        foresight: Mapping[str, Any],
        flow: Mapping[str, int],
        loss: Mapping[str, float],
        trained: Sequence[str],
        augment: Mapping[str, float],
        micro_batch: int,
        state: str,
        **network: Any,
    ):
        super().__init__()
        names = chosen_cameras(cameras, spec)
        camera = foresight["camera"]
        if camera not in names:
            raise UserError(
                f"the policy foresees camera {camera!r}, not among {names}: set policy.foresight.camera={names[0]}, or add it."
            )
        if spec.action and not spec.state:
            raise UserError("policies.f1 acts from the robot's state but there is none: add observation.state.")
        if unknown := [part for part in trained if part not in PARTS]:
            raise UserError(f"trained names {unknown[0]!r}: choose among {', '.join(PARTS)}.")
        self.tokenizer = build_tokenizer(tokenizer).requires_grad_(False)
        most = len(self.tokenizer.scales)
        scales = most if foresight["scales"] is None else foresight["scales"]
        if not (0 <= scales <= most and 2 <= foresight["history_scales"] <= most):
            raise UserError(
                f"foresight has {scales} scales and {foresight['history_scales']} of history: "
                f"give 0 to {most} and 2 to {most} with this tokenizer."
            )
        self.spec = replace(spec, cameras={c: spec.cameras[c] for c in names}, environment_state=())
        self.camera, self.scales, self.history_scales = camera, scales, foresight["history_scales"]
        self.foresight_steps, self.own, self.fill = int(foresight["steps"]), float(foresight["own"]), bool(foresight["fill"])
        self.sampling = {"top_k": int(foresight["top_k"]), "top_p": float(foresight["top_p"])}
        self.draws, self.steps = flow["draws"], flow["steps"]
        self.continues = bool(spec.action)
        self.history, self.window, self.stride, self.horizon = history > 1 and scales > 0, history, history_stride, chunk
        self.weights, self.micro_batch = dict(loss), micro_batch
        self.sees, self.size = size, max(size, self.tokenizer.size)
        augment = dict(augment)
        swap = float(augment.pop("swap"))
        self.swap = swap if spec.action else 0.0
        self.hand_path = HAND_PATH if self.swap else 0
        self.transform = Transform(self.size, {c: cameras[c]["pad"] for c in names}, **augment, mode="area")
        self.actions = Actions(spec.action, statistics)
        self.model = F1(
            names,
            size,
            self.tokenizer,
            window=history,
            scales=scales,
            history_scales=self.history_scales,
            chunk=chunk if spec.action else None,
            state=(state, spec.state),
            actions=len(spec.action),
            **network,
        )
        for part in PARTS:
            if part not in trained and getattr(self.model, part) is not None:
                getattr(self.model, part).requires_grad_(False)
        if statistics is not None and self.model.action is not None:
            self.model.action.state_token.standardise(statistics)

    @property
    def aliases(self) -> dict[str, str]:
        """Where parts that a checkpoint of another set of cameras lacks may start from: prefix -> prefix."""
        first, *rest = self.spec.cameras
        parts = ("vision", "latent_token", "cls_token")
        return {f"model.understanding.{p}.{c}": f"model.understanding.{p}.{first}" for p in parts for c in rest}

    @property
    def device(self) -> torch.device:
        return self.tokenizer.steps.device

    # Training

    def prepare(self, sentences: Sequence[str]) -> None:
        """Encode a dataset's sentences before training on it. Raises UserError if the tokenizer knows nothing yet."""
        self.model.understanding.words(sentences)
        if self.scales and not self.tokenizer.steps:
            raise UserError(
                "the image tokenizer has not been trained: train it with `vla-pretrain policy=f1_tokenizer` and give that "
                "run's checkpoint as init_from, or act without foresight (policy.foresight.scales=0)."
            )

    def forward(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """`loss`, under the name that wrappers of modules (DDP, autocast, compile) expect."""
        return self.loss(batch)

    def loss(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted loss of a batch of windows (see vla/data/windows.py for its keys) and its unweighted parts, detached."""
        dtype = torch.get_autocast_dtype(self.device.type) if torch.is_autocast_enabled(self.device.type) else torch.float32
        images, frames = {}, torch.empty(0)
        for c in self.spec.cameras:
            foreseen = self.scales and c == self.camera
            pictures = batch[image_key(c)] if foreseen else batch[image_key(c)][:, -1:]
            now = pictures.shape[1] - 1
            if foreseen:
                pictures = torch.cat([pictures, batch[FUTURE_PREFIX + c][:, -1:]], dim=1)
            pictures, jitter = self.transform.resize(pictures), None
            if self.training:
                if self.swap and PATH_PREFIX + c in batch:
                    margin = swap_margin(self.spec, c)
                    swap = draw_swap(batch[PATH_PREFIX + c], batch[TASK_NAME], self.swap, self.size, margin)
                    pictures = swap(pictures, pictures[:, now])
                jitter = self.transform.jitter(c, len(pictures), pictures.device)
                pictures = shift_pixels(pictures, jitter.shift)
            images[c] = normalise(resize(pictures[:, now], self.sees), jitter, dtype)
            if foreseen:
                frames = pictures
        words, places = self.model.understanding.words(batch[TASK]).unique(dim=0, return_inverse=True)
        seen, valid = self.model.understanding(images, self.model.understanding.language(words)[places])
        known = before = future = acting = velocity_to_find = None
        if self.scales:
            tokens = self._tokens(frames.flatten(0, 1), max(self.scales, self.history_scales)).unflatten(0, frames.shape[:2])
            known, future = self._known(tokens[:, :-1]), tokens[:, -1, : self.tokenizer.length(self.scales)]
            before = self.tokenizer.inputs(self._partly_own(future, seen, valid, known))
        if self.model.action is not None:
            actions = self.actions.normal(batch[ACTION][:, -1:]).expand(-1, self.draws, -1, -1)
            # Levels as pi0 draws them, Beta(1.5, 1): more of the noisy ones.
            level = 0.001 + 0.999 * torch.rand(actions.shape[:2], device=actions.device) ** (1 / 1.5)
            noise = torch.randn_like(actions)
            acting = batch[STATE][:, -1], torch.lerp(actions, noise, level[..., None, None]), level
            velocity_to_find = noise - actions
        prediction, velocity = self.model.think(seen, valid, known, before, acting)
        parts: dict[str, Tensor] = {}
        if velocity is not None and velocity_to_find is not None:
            error = (velocity - velocity_to_find).square().mean((1, 3))
            parts["flow"] = _mean_where(error, batch["action.mask"][:, -1])
        if prediction is not None and future is not None and self.weights["foresight"] > 0:
            error = self.tokenizer.score(prediction, future).mean(1)
            parts[f"foresight_{self.camera}"] = _mean_where(error, batch["future.mask"][:, -1])
        total = torch.stack([self.weights[name.split("_")[0]] * part for name, part in parts.items()]).sum()
        return total, {name: part.detach() for name, part in parts.items()}

    @torch.no_grad()
    def _tokens(self, pictures: Tensor, scales: int | None = None) -> Tensor:
        """uint8 (M, H, W, 3) -> tokens of the first scales (M, n)."""
        return self.tokenizer.tokens(to_signed(resize(pictures, self.tokenizer.size)), scales)

    def _known(self, tokens: Tensor) -> Tensor:
        """Tokens of the frames seen (B, window, n) -> what was known before their scales (B, window, P, latent)."""
        some = tokens[:, :, : self.tokenizer.length(self.history_scales)]
        return self.tokenizer.inputs(some.flatten(0, 1)).unflatten(0, tokens.shape[:2])

    @torch.no_grad()
    def _partly_own(self, future: Tensor, seen: Tensor, valid: Tensor, known: Tensor) -> Tensor:
        """The future's tokens, but for a share `own` of the batch those that the policy foresees."""
        some = round(len(future) * self.own) if self.training else 0
        if not some:
            return future
        uniform = torch.rand(some, future.shape[1], device=future.device)
        own, _ = self.model.imagine(self.tokenizer, seen[:some], valid[:some], known[:some], uniform, **self.sampling)
        return torch.cat([own.to(future.dtype), future[some:]])

    # Acting

    def begin(self, seeds: Sequence[int]) -> Memory:
        """Memory of `len(seeds)` fresh worlds: the last pictures, tokens of the frames seen, the instruction, the plan."""
        n, device = len(seeds), self.device
        memory: Memory = {
            "seed": torch.tensor([s & (2**63 - 1) for s in seeds], dtype=torch.int64, device=device),
            "count": torch.zeros(n, dtype=torch.int64, device=device),
            "instruction": torch.zeros(n, dtype=torch.int64, device=device),
            "language": self.model.understanding.silence(n),
            "planned": torch.zeros(n, dtype=torch.bool, device=device),
            "plan": self._blank(n, self.tokenizer.length(self.scales)),
            "history": self._blank(n, (self.window - 1) * self.stride + 1, self.tokenizer.length(self.history_scales)),
        }
        for camera in self.spec.cameras:
            memory[f"picture.{camera}"] = torch.zeros(n, self.size, self.size, 3, dtype=torch.uint8, device=device)
        if self.spec.state:
            memory["state"] = torch.zeros(n, len(self.spec.state), device=device)
        return memory

    def remember(self, observation: Mapping[str, Any], memory: Memory) -> Memory:
        """Tokenise the new frame, and only it, into the memory. A new instruction starts a world's history anew."""
        cameras = list(self.spec.cameras)
        with still(self, self.device):
            hashes = [int.from_bytes(hashlib.sha256(s.encode()).digest()[:7]) for s in observation[TASK]]
            instruction = torch.tensor(hashes, dtype=torch.int64, device=self.device)
            words = self.model.understanding.words(observation[TASK])
            arrays = [np.ascontiguousarray(observation[image_key(c)]) for c in cameras]
            images = [torch.from_numpy(a).to(self.device) for a in arrays]
            language, *pictures = in_groups(self.micro_batch, self._take_in, words, *images)
            new = memory | {"instruction": instruction, "language": language, "planned": torch.zeros_like(memory["planned"])}
            new |= {f"picture.{c}": picture for c, picture in zip(cameras, pictures, strict=True)}
            if self.scales:
                (tokens,) = in_groups(
                    self.micro_batch, lambda p: (self._tokens(p, self.history_scales),), new[f"picture.{self.camera}"]
                )
                past = torch.cat([memory["history"][:, 1:], tokens[:, None]], dim=1)
                same = (memory["instruction"] == instruction).view(-1, *[1] * (past.ndim - 1))
                # As in a window at the beginning of an episode, the first frame stands for those before it.
                new["history"] = torch.where(same, past, tokens[:, None].expand_as(past))
            if self.spec.state:
                new["state"] = torch.as_tensor(np.asarray(observation[STATE], np.float32), device=self.device)
        return new

    def act(self, observation: Mapping[str, Any], memory: Memory) -> tuple[np.ndarray, Memory]:
        """Observation of N worlds -> actions float32 (N, chunk, A) in the spec's range, and the new memory with its plan."""
        if self.model.action is None:
            raise UserError("this policy was pretrained on video and has no action expert: train it on robot data first.")
        new = self.remember(observation, memory)
        with still(self, self.device):
            before = read_plan(observation, self.horizon, self.device, self.actions)
            told = (*self._situation(new), new["state"], *self._draw(new), *before)
            # The way back through the network rounds differently at different places of a group: one by one, then.
            plan, actions = in_groups(1 if before else self.micro_batch, self._decide, *told)
        new |= {"plan": plan, "planned": torch.ones_like(new["planned"]), "count": new["count"] + 1}
        return self.actions.real(actions), new

    def foresee(self, memory: Memory) -> dict[str, np.ndarray]:
        """What the last frame in memory leads to, `foresight_steps` later: camera -> uint8 (N, size, size, 3).

        The plan of the last `act` is decoded; where the memory has none since its last frame, one is made. Without foresight
        in the policy there is no camera.
        """
        if not self.scales:
            return {}
        with still(self, self.device):
            plan, planned = memory["plan"], memory["planned"]
            if not planned.all():
                (fresh,) = in_groups(self.micro_batch, self._imagine, *self._situation(memory), self._draw(memory)[0])
                plan = torch.where(planned.view(-1, *[1] * (plan.ndim - 1)), plan, fresh)
            (pixels,) = in_groups(self.micro_batch, self._show, plan, memory[f"picture.{self.camera}"])
        return {self.camera: pixels.cpu().numpy()}

    def _blank(self, *shape: int) -> Tensor:
        """Memory for tokens."""
        if self.tokenizer.discrete:
            return torch.zeros(shape, dtype=torch.int64, device=self.device)
        return torch.zeros(*shape, self.tokenizer.latent, device=self.device)

    def _draw(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """Uniform numbers (N, n) for the plan's tokens and normal ones (N, chunk, A) for its actions."""
        tokens, drawn = self.tokenizer.length(self.scales), []
        for pair in zip(memory["seed"].tolist(), memory["count"].tolist(), strict=True):
            # Philox is a function of (seed, count): a world's numbers do not depend on what was drawn elsewhere.
            generator = np.random.Generator(np.random.Philox(key=pair))
            normal = generator.standard_normal((self.horizon, self.actions.kinds.count), dtype=np.float32)
            drawn.append((generator.random(tokens, dtype=np.float32), normal))
        uniform, normal = (torch.from_numpy(np.stack(x)).to(self.device) for x in zip(*drawn, strict=True))
        return uniform, normal

    def _situation(self, memory: Memory) -> tuple[Tensor, ...]:
        pictures = torch.stack([memory[f"picture.{c}"] for c in self.spec.cameras], dim=1)
        return memory["language"], pictures, memory["history"][:, :: self.stride]

    def _take_in(self, words: Tensor, *images: Tensor) -> tuple[Tensor, ...]:
        return self.model.understanding.language(words), *(self.transform.resize(i[:, None])[:, 0] for i in images)

    def _plan(self, language: Tensor, pictures: Tensor, history: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Any]:
        images = {c: normalise(resize(pictures[:, i], self.sees)) for i, c in enumerate(self.spec.cameras)}
        seen, valid = self.model.understanding(images, language)
        known = self._known(history) if self.scales else seen
        return valid, *self.model.imagine(self.tokenizer, seen, valid, known, uniform, **self.sampling)

    def _decide(
        self,
        language: Tensor,
        pictures: Tensor,
        history: Tensor,
        state: Tensor,
        uniform: Tensor,
        noise: Tensor,
        *before: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Foresight tokens and actions, which go on from those decided `before`."""
        valid, plan, cache = self._plan(language, pictures, history, uniform)
        actions = self.model.act(valid, cache, state, noise, self.steps, *before)
        actions = self.actions.kinds.decided(actions)
        return plan, keep(actions, *before) if before else actions

    def _imagine(self, *situation: Tensor) -> tuple[Tensor]:
        return (self._plan(*situation)[1],)

    def _show(self, plan: Tensor, now: Tensor) -> tuple[Tensor]:
        if self.fill:
            plan = torch.cat([plan, self._tokens(now)[:, plan.shape[1] :]], dim=1)
        return (from_signed(self.tokenizer.pixels(plan)),)


def _mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask`; 0 where nothing counts."""
    weight = mask.float()
    return (values * weight).sum() / weight.sum().clamp(min=1e-6)
