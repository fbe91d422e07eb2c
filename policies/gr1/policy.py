"""GR-1 as a policy: the loss on a batch of windows, and acting with a memory of frame tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from policies.gr1 import foresight as frames_to_come
from policies.gr1.auxiliary import Auxiliary
from policies.gr1.heads import Flow, build_head, weighted_mean
from policies.gr1.model import GR1
from policies.gr1.stream import Stream
from policies.gr1.window import Window
from policies.nn.acting import in_groups, still
from policies.nn.actions import Actions
from policies.nn.images import Transform, as_bytes, chosen_cameras, draw_swap, normalise, shift_pixels, swap_margin, to_pixels
from policies.nn.inpainting import read_plan
from policies.nn.refusal import LEAST_ODDS, Refusal
from vla.spec import ACTION, STATE, TASK, Spec, UserError, image_key

FUTURE_PREFIX = "future.images."
PATH_PREFIX = "path."
TASK_NAME = "task.name"
HAND_PATH = 12
"""Points of the hand's path that are kept free when parts of pictures are swapped."""
UNSAID = ""
"""The instruction where there is none."""
Memory = dict[str, Tensor]


class GR1Policy(nn.Module):
    """Meets `vla.policy.Policy` and `vla.policy.Imagining`, with a flow head `vla.policy.Continuing`; is trained by `loss`.

    spec: what the data or the world offers. Parts that it lacks (a camera, the state, the action) are left out: on a video
    dataset this is GR-1's pre-training model of language, frames and [OBS] queries only.
    statistics: feature name -> {"mean", "std"} of state and actions. None when a checkpoint brings them.
    size: side of the network's images in pixels; cameras: name -> {"pad": largest random shift in those pixels}.
    history: number of frames in the window, `history_stride` control steps apart; time: `index`, the place in the window, or
    `rotary`, how long ago (policies/gr1/stream.py), which is trained on windows of `sequence` frames (None: 2 * history - 1).
    chunk: actions predicted, by `action_queries` parallel queries; foresight: {"steps": how far ahead, "fraction": part of a
    batch it is trained on, "queries": [OBS] tokens per camera, "decoder": its numbers, "epsilon": where patches' deviations get
    it, `inside` or `outside` (policies.gr1.foresight.statistics)}; supervise: `all` places of a window or only the `last`.
    augment: changes of pictures at training, largest `brightness` and `colour` (see policies.nn.images.draw_jitter), and
    `swap`, the chance that parts of a picture which the hand does not visit are another's (draw_swap; 0 on video).
    auxiliary: what else is predicted while training, `progress` and `objects` (policies/gr1/auxiliary.py); empty for nothing.
    loss: weights of the loss's parts (`arm`, `gripper`, `flow`, `foresight`, `progress`, `objects`), the smooth-L1 `beta`, and
    `decay` of later actions of a chunk.
    instruction_dropout: the share of windows that are trained without their instruction; guidance: when acting, actions are
    extrapolated by this factor from those without the instruction to those with it (1: no second pass; see heads.py).
    micro_batch: worlds are computed in groups of exactly this many, so that an action never depends on its neighbours.
    precision: when acting, `fp32`, or `bf16` for matrix products in bfloat16.
    The other numbers are GR1's (policies/gr1/model.py).
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
        action_queries: int,
        state: str,
        head: Mapping[str, Any],
        gripper_rule: str,
        supervise: str,
        loss: Mapping[str, float],
        foresight: Mapping[str, Any],
        augment: Mapping[str, float],
        resize: str,
        micro_batch: int,
        width: int,
        auxiliary: Mapping[str, Any] | None = None,
        instruction_dropout: float = 0.0,
        guidance: float = 1.0,
        precision: str = "fp32",
        sequence: int | None = None,
        time: str = "index",
        **network: Any,
    ):
        super().__init__()
        names = chosen_cameras(cameras, spec)
        if chunk % action_queries:
            raise UserError(f"chunk {chunk} is not a multiple of action_queries {action_queries}: change one of them.")
        if supervise not in ("all", "last"):
            raise UserError(f"supervise {supervise!r} is unknown: use all or last.")
        if not 0.0 <= instruction_dropout < 1.0:
            raise UserError(f"instruction_dropout is {instruction_dropout}: give a share of at least 0 and below 1.")
        if guidance != 1.0 and not instruction_dropout:
            raise UserError(
                f"guidance is {guidance} but the policy has instruction_dropout 0 and never acts without an instruction: "
                "train it with instruction_dropout=0.1, say, or use guidance=1."
            )
        if precision not in ("fp32", "bf16"):
            raise UserError(f"precision {precision!r} is unknown: use fp32 or bf16.")
        self.instruction_dropout, self.guidance, self.precision = instruction_dropout, guidance, precision
        self.spec = replace(spec, cameras={c: spec.cameras[c] for c in names}, environment_state=())
        self.history, self.stride = history > 1, history_stride
        self.window = _sequence(sequence, history, time)
        rotary = time == "rotary"
        self.past = Stream(history, history_stride, micro_batch) if rotary else Window(history, history_stride)
        self.horizon, self.supervise, self.weights, self.micro_batch = chunk, supervise, dict(loss), micro_batch
        self.size, self.foresight_steps, self.fraction = size, int(foresight["steps"]), float(foresight["fraction"])
        self.patch, self.epsilon = int(foresight["decoder"]["patch"]), foresight.get("epsilon", "inside")
        if self.epsilon not in ("inside", "outside"):
            raise UserError(f"foresight.epsilon {self.epsilon!r} is unknown: use inside or outside.")
        augment = dict(augment)
        swap = float(augment.pop("swap"))
        self.swap = swap if spec.action else 0.0
        self.hand_path = HAND_PATH if self.swap else 0
        self.transform = Transform(size, {c: cameras[c]["pad"] for c in names}, **augment, mode=resize)
        self.model = GR1(
            names,
            size,
            (state, spec.state) if spec.state else None,
            action_queries if spec.action else 0,
            width=width,
            window=history,
            time=time,
            queries=foresight["queries"],
            decoder=foresight["decoder"],
            **network,
        )
        self._learnt: Sequence[str] = ()
        self._refusal: Refusal | None = None
        self.actions = Actions(spec.action, statistics)
        self.head = (
            build_head(head, self.actions.kinds, width, action_queries, chunk, loss, gripper_rule) if spec.action else None
        )
        self.continues = isinstance(self.head, Flow)
        more = dict(auxiliary or {})
        wanted = spec.action and any(more.values())
        self.auxiliary = Auxiliary(action_queries * width, spec, statistics, **more) if wanted else None
        if statistics is not None and self.model.state_token is not None:
            self.model.state_token.standardise(statistics)

    @property
    def aliases(self) -> dict[str, str]:
        """Where parts that a pretrained checkpoint lacks may start from instead: prefix -> prefix (see vla.checkpoint)."""
        first, *rest = self.model.cameras
        parts = {"obs_query": ".", "latent_token": ".", "cls_token": ".", "vision": "."}
        return {f"model.{p}.{c}": f"model.{p}.{first}" for p in parts for c in rest}

    @property
    def environment_state(self) -> bool:
        """Whether training needs the privileged state; acting never does."""
        return self.auxiliary is not None and self.auxiliary.objects is not None

    @property
    def device(self) -> torch.device:
        return self.model.norm.weight.device

    # Training

    def learnt(self, sentences: Sequence[str]) -> None:
        """Told by a checkpoint: the sentences that it was trained on, with which new ones are compared."""
        self._learnt, self._refusal = sentences, None
        self.model.text.learnt([*sentences, *([UNSAID] if self.instruction_dropout else [])])

    def discerns(self) -> bool:
        """Whether `refusal` can tell anything: it needs the sentences, and a text encoder for which it was calibrated."""
        return bool(self._learnt) and self.model.text.name in LEAST_ODDS

    def refusal(self, sentence: str) -> str | None:
        """Why not to act on an instruction, in one sentence naming the nearest known ones; None if it may be acted on.

        The first call takes some seconds (policies/nn/refusal.py).
        """
        if not self.discerns():
            return None
        if self._refusal is None:
            text = self.model.text
            self._refusal = Refusal(self._learnt, text.pooled, LEAST_ODDS[text.name])
        return self._refusal.reason(sentence)

    def prepare(self, sentences: Sequence[str]) -> None:
        """Encode a dataset's sentences before training on it, in this order (the cache's order decides the order of sums)."""
        self.model.text.rows(sentences)

    def forward(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """`loss`, under the name that wrappers of modules (DDP, autocast, compile) expect."""
        return self.loss(batch)

    def loss(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted loss of a batch of windows (see vla/data/windows.py for its keys) and its unweighted parts, detached."""
        cameras = self.model.cameras
        b, t = batch[image_key(cameras[0])].shape[:2]
        valid = batch.get("frame.mask", torch.ones(b, t, dtype=torch.bool, device=self.device))
        jitters = {c: self.transform.jitter(c, b, self.device) if self.training else None for c in cameras}
        dtype = torch.get_autocast_dtype(self.device.type) if torch.is_autocast_enabled(self.device.type) else torch.float32
        pictures = {c: self.transform.resize(batch[image_key(c)]) for c in cameras}
        donors = {c: p[:, -1] for c, p in pictures.items()}
        swaps = {
            c: draw_swap(batch[PATH_PREFIX + c], batch[TASK_NAME], self.swap, self.size, swap_margin(self.spec, c))
            for c in cameras
            if self.training and self.swap and PATH_PREFIX + c in batch
        }
        pictures |= {c: swap(pictures[c], donors[c]) for c, swap in swaps.items()}
        images = {c: self.transform(p, jitters[c], dtype).flatten(0, 1) for c, p in pictures.items()}
        said = batch[TASK]
        if self.training and self.instruction_dropout:
            kept = torch.rand(b) >= self.instruction_dropout
            said = [sentence if keep else UNSAID for sentence, keep in zip(said, kept.tolist(), strict=True)]
        language = self.model.text(said).repeat_interleave(t, dim=0)
        state = batch[STATE].flatten(0, 1) if self.model.state_token is not None else None
        frames, patches = self.model.frame(images, state, language)
        frames = frames.unflatten(0, (b, t))
        steps = list(range(t)) if self.supervise == "all" else [t - 1]
        some = max(1, round(b * self.fraction)) if self.weights["foresight"] > 0 else 0
        act = self.head is not None
        # Batches are shuffled: their first windows are a random part, and the only ones whose future is decoded.
        features, obs = self.model.think(frames[:some], valid[:some], steps, act, True) if some else (None, {})
        rest = self.model.think(frames[some:], valid[some:], steps, True, False)[0] if act and some < b else None
        parts: dict[str, Tensor] = {}
        if self.head is not None:
            features = torch.cat([f for f in (features, rest) if f is not None]).flatten(0, 1)
            mask = (batch["action.mask"][:, steps] & valid[:, steps, None]).flatten(0, 1)
            parts |= self.head.loss(features, self.actions.normal(batch[ACTION][:, steps].flatten(0, 1)), mask)
            if self.auxiliary is not None:
                whole = torch.ones(b, dtype=torch.bool, device=self.device)
                for swap in swaps.values():
                    whole = whole & ~swap.mask.any((1, 2))
                parts |= self.auxiliary.loss(features, batch, steps, whole)
        for camera, tokens in obs.items():
            now = patches[camera].unflatten(0, (b, t))[:some, steps].flatten(0, 1)
            prediction = self.model.imagine(tokens.flatten(0, 1), now)
            future = self.transform.resize(batch[FUTURE_PREFIX + camera][:some, steps])
            if camera in swaps:
                moves = camera in self.spec.hand_projections
                donor = self.transform.resize(batch[FUTURE_PREFIX + camera][:, -1:])[:, 0] if moves else donors[camera]
                future = swaps[camera](future, donor)
            jitter = jitters[camera]
            if jitter is not None:
                jitter = type(jitter)(*(x[:some] for x in jitter))
                future = shift_pixels(future, jitter.shift)
            future = normalise(future, jitter).flatten(0, 1)
            target = frames_to_come.targets(future, self.patch, self.epsilon)
            pixels = target.shape[-1]
            error = (prediction[..., :pixels].float() - target).square().mean((1, 2))
            mask = (batch["future.mask"][:some, steps] & valid[:some, steps]).flatten().float()
            parts[f"foresight_{camera}"] = weighted_mean(error, mask)
            if self.model.decoder.levels is not None:
                current = images[camera].unflatten(0, (b, t))[:some, steps].flatten(0, 1)
                change = frames_to_come.level_changes(future, current, self.patch)
                error = (prediction[..., pixels:].float() - change).square().mean((1, 2))
                parts[f"foresight_{camera}_levels"] = weighted_mean(error, mask)
        total = torch.stack([self.weights[name.split("_")[0]] * part for name, part in parts.items()]).sum()
        return total, {name: part.detach() for name, part in parts.items()}

    # Acting

    def begin(self, seeds: Sequence[int]) -> Memory:
        """Memory of `len(seeds)` fresh worlds: past frames, the instruction that they are for, random counters."""
        n, device = len(seeds), self.device
        memory: Memory = {
            "seed": torch.tensor([s & (2**63 - 1) for s in seeds], dtype=torch.int64, device=device),
            "count": torch.zeros(n, dtype=torch.int64, device=device),
            "instruction": torch.zeros(n, dtype=torch.int64, device=device),
            **self.past.begin(self.model, n),
        }
        if self.guidance != 1.0:
            memory["frames.unsaid"] = torch.zeros_like(memory["frames"])
        for camera in self.model.cameras:
            memory[f"picture.{camera}"] = torch.zeros(n, self.size, self.size, 3, dtype=torch.uint8, device=device)
            if self.model.skip:
                encoder: Any = self.model.vision[self.model.vision_of[camera]]
                memory[f"patches.{camera}"] = torch.zeros(n, encoder.grid**2, encoder.patch_width, device=device)
        return memory

    def remember(self, observation: Mapping[str, Any], memory: Memory) -> Memory:
        """Encode the new frame, and only it, into the memory. A new instruction starts a world's history anew."""
        with still(self, self.device, self.precision):
            hashes = [int.from_bytes(hashlib.sha256(s.encode()).digest()[:7]) for s in observation[TASK]]
            instruction = torch.tensor(hashes, dtype=torch.int64, device=self.device)
            n = len(observation[TASK])
            rows = self.model.text.rows([*observation[TASK], *([UNSAID] * n if self.guidance != 1.0 else [])])
            rows, unsaid = rows[:n], rows[n:]
            arrays = [np.ascontiguousarray(observation[image_key(c)]) for c in self.model.cameras]
            images = [torch.from_numpy(a).to(self.device) for a in arrays]
            state = torch.as_tensor(np.asarray(observation[STATE], np.float32), device=self.device) if self.spec.state else rows
            tokens, *rest = in_groups(self.micro_batch, self._encode, rows, state, *images)
            seen = {"frames": tokens}
            if self.guidance != 1.0:
                seen["frames.unsaid"] = in_groups(self.micro_batch, self._encode, unsaid, state, *images)[0]
            same = memory["instruction"] == instruction
            new = {**memory, **self.past.take(self.model, memory, same, seen), "instruction": instruction}
            for i, camera in enumerate(self.model.cameras):
                new[f"picture.{camera}"] = rest[i]
                if self.model.skip:
                    new[f"patches.{camera}"] = rest[len(images) + i]
            return new

    def act(self, observation: Mapping[str, Any], memory: Memory) -> tuple[np.ndarray, Memory]:
        """Observation of N worlds -> actions float32 (N, chunk, A) in the spec's range, and the new memory."""
        if self.head is None:
            raise UserError("this policy was pretrained on video and has no action head: train it on robot data first.")
        new = self.remember(observation, memory)
        pairs = zip(new["seed"].tolist(), new["count"].tolist(), strict=True)
        # Philox is a function of (seed, count): a world's numbers do not depend on what was drawn elsewhere.
        drawn = np.stack([self.head.draw(np.random.Generator(np.random.Philox(key=pair))) for pair in pairs])
        with still(self, self.device, self.precision):
            plan = read_plan(observation, self.horizon, self.device, self.actions) if self.continues else ()
            noise = torch.from_numpy(drawn).to(self.device)
            unsaid = [self.past.view(new, "frames.unsaid")[0]] if self.guidance != 1.0 else []
            (actions,) = in_groups(self.micro_batch, self._decide, *self.past.view(new), noise, *unsaid, *plan)
        return self.actions.real(actions), {**new, "count": new["count"] + 1}

    def foresee(self, memory: Memory) -> dict[str, np.ndarray]:
        """What the last frame in memory leads to, `foresight_steps` later: camera -> uint8 (N, size, size, 3).

        The network predicts how patches look, not their brightness and contrast: those are taken from the current frame
        (see policies.gr1.foresight.imagine).
        """
        cameras = self.model.cameras
        skips = [memory[f"patches.{c}"] for c in cameras] if self.model.skip else []
        with still(self, self.device, self.precision):
            pictures = [memory[f"picture.{c}"] for c in cameras]
            imagined = in_groups(self.micro_batch, self._imagine, *self.past.view(memory), *pictures, *skips)
        return {c: image.cpu().numpy() for c, image in zip(cameras, imagined, strict=True)}

    def _encode(self, rows: Tensor, state: Tensor, *images: Tensor) -> tuple[Tensor, ...]:
        """Frame tokens, the pictures at the network's size, the vision patches."""
        pictures = [self.transform.resize(i[:, None])[:, 0] for i in images]
        normal = {c: normalise(p) for c, p in zip(self.model.cameras, pictures, strict=True)}
        tokens, patches = self.model.frame(normal, state if self.spec.state else None, self.model.text.heard(rows))
        return (tokens, *(as_bytes(p) for p in pictures), *(patches[c] for c in self.model.cameras))

    def _decide(self, frames: Tensor, when: Tensor, drawn: Tensor, *rest: Tensor) -> tuple[Tensor]:
        assert self.head is not None
        if self.guidance == 1.0:
            return (self.head.act(self._features(frames, when), drawn, *rest),)
        unsaid, *plan = rest
        free = self._features(unsaid, when)
        return (self.head.act(self._features(frames, when), drawn, *plan, free=free, guidance=self.guidance),)

    def _features(self, frames: Tensor, when: Tensor) -> Tensor:
        features, _ = self.past.think(self.model, frames, when, True, False)
        assert features is not None
        return features

    def _imagine(self, frames: Tensor, when: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        cameras = self.model.cameras
        _, obs = self.past.think(self.model, frames, when, False, True)
        images = []
        for i, camera in enumerate(cameras):
            patches = rest[len(cameras) + i] if self.model.skip else None
            prediction = self.model.imagine(obs[camera], patches)
            images.append(to_pixels(frames_to_come.imagine(prediction, normalise(rest[i]), self.patch, self.epsilon)))
        return tuple(images)


def _sequence(sequence: int | None, history: int, time: str) -> int:
    """Frames in a window for training."""
    if sequence is not None and (time != "rotary" or sequence < history):
        raise UserError(
            f"sequence is {sequence} with time {time} and history {history}: it is for time=rotary, and at least the history."
        )
    return history if time != "rotary" else 2 * history - 1 if sequence is None else sequence
