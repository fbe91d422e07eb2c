"""The published weights of GR-1 in this network: ByteDance's snapshots, and those of GR1-Training with its chunks.

    vla-convert source=gr1 checkpoint=snapshot_ABC.pt mae=mae_pretrain_vit_base.pth out=runs/published

Nothing is computed here that `policy=gr1` does not compute: that is the published model, and this module reads a snapshot's
sizes and gives its tensors our names. Numbers of attention heads leave no trace in tensors; they are the published ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from math import isqrt
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from policies.gr1.snapshot import CHUNKS, CLIP, DEAD, MAE, PREFIXES, Shapes, fitted, missing, read, their_name
from vla.checkpoint import build_policy, save_checkpoint
from vla.spec import Entry, Spec, UserError

ENCODER_HEAD_WIDTH = 64
"""Of MAE's and CLIP's heads, at all sizes that were published."""
TOKENIZER = "openai/clip-vit-base-patch32"
STATISTICS = ("model.state_token.mean", "model.state_token.std")
"""Ours alone: the published state is not normalised."""
SHAPE = Spec(
    cameras={"static": (200, 200), "wrist": (84, 84)},
    state=tuple(Entry(f"robot_obs_{i}", "1") for i in range(15)),
    action=(*(Entry(f"rel_action_{i}", "1", -1.0, 1.0) for i in range(6)), Entry("gripper", "1", -1.0, 1.0)),
    action_kind="relative_pose",
    control_hz=30.0,
)
"""As much as the network needs to know; a checkpoint that acts gets the Spec of its world."""


@dataclass(frozen=True)
class Report:
    """What became of each tensor of a snapshot.

    used: our name -> theirs. dead: known, but nothing is computed with them. unused: not known. absent: encoders that the
    snapshot is without. assumed: heads of each part. Missing ones are an error, so there are none.
    """

    used: Mapping[str, str]
    dead: list[str]
    unused: list[str]
    absent: list[str]
    assumed: Mapping[str, int]

    @property
    def skipped(self) -> list[str]:
        """What should perhaps have been converted and was not."""
        return self.unused

    def lines(self) -> list[str]:
        """For people to read, the totals last."""
        told = [f"used: {theirs} as {ours}" for ours, theirs in self.used.items()]
        told += [f"dead: {name}" for name in self.dead]
        told += [f"unused: {name}" for name in self.unused]
        told += [f"absent: {part}; it will be read from where it was published" for part in self.absent]
        told += [f"assumed, as no tensor says it: {heads} heads in the {part}" for part, heads in self.assumed.items()]
        return [*told, f"{len(self.used)} tensors used, {len(self.dead)} dead, {len(self.unused)} unused, none missing"]


class Official(nn.Module):
    """The published model as `policy` (policies.gr1.policy.GR1Policy), with the `config` to build it and the `report`."""

    def __init__(self, policy: Any, config: Mapping[str, Any], report: Report):
        super().__init__()
        self.policy, self.config, self.report = policy, dict(config), report

    @torch.no_grad()
    def from_features(
        self,
        *,
        static_cls: Tensor,
        static_patch: Tensor,
        wrist_cls: Tensor,
        wrist_patch: Tensor,
        arm: Tensor,
        gripper: Tensor,
        language: Tensor,
        mask: Tensor,
    ) -> dict[str, Tensor]:
        """What the network makes of B windows of T frames, from what the frozen encoders give.

        cls (B, T, C) and patch (B, T, P, C): MAE's outputs after its last norm. arm (B, T, 6): TCP position and Euler angles.
        gripper (B, T, 2): closed, open. language (B, L): CLIP's projected vector; its length is normalised here. mask (B, T):
        which frames exist. A frame's place in the window is its index.
        Gives "arm" (B, T, 6), "gripper" (B, T, 1) logits, with (B, T, chunk, 6) and (B, T, chunk, 1) where there are chunks,
        and the predicted frames "static" and "wrist" (B, T, P, patch * patch * 3). Those of absent frames mean nothing.
        """
        model, head = self.policy.model, self.policy.head
        b, t = mask.shape
        if t > model.window:
            raise UserError(f"the window has {t} frames but this model knows {model.window} places: give at most so many.")
        direction = language / (language.norm(dim=1, keepdim=True) + 1e-6)
        sentence = model.text.project(direction).repeat_interleave(t, dim=0)
        state = model.state_token.raw(arm.flatten(0, 1), gripper.flatten(0, 1))
        seen = {"static": (static_cls, static_patch), "wrist": (wrist_cls, wrist_patch)}
        features = {camera: (cls.flatten(0, 1), patch.flatten(0, 1)) for camera, (cls, patch) in seen.items()}
        frames = model.tokens(sentence, state, features).unflatten(0, (b, t))
        places = torch.arange(t, device=mask.device).expand(b, t)
        acts, obs = model.think(frames, mask > 0, list(range(t)), act=True, foresee=True, places=places)
        actions, logits = head(acts.flatten(0, 1))
        shape = (b, t) if self.policy.horizon == 1 else (b, t, self.policy.horizon)
        out = {"arm": actions.reshape(*shape, 6), "gripper": logits.reshape(*shape, 1)}
        return out | {c: model.imagine(tokens.flatten(0, 1), None).unflatten(0, (b, t)) for c, tokens in obs.items()}


def from_state_dict(
    state_dict: Mapping[str, Tensor],
    spec: Spec = SHAPE,
    tokenizer: str = TOKENIZER,
    heads: Mapping[str, int] | None = None,
) -> Official:
    """The model that a snapshot's state dict describes, in evaluation mode.

    Names may begin with `module.` or `_orig_mod.`. Encoders (`model_mae.`, `model_clip.`) may be there or not; without them
    it is given features, and its config names the published ones. spec: of the world that it is for. tokenizer: hub name or
    folder of CLIP's. heads: of the `trunk`, `resampler` and `decoder`, where they are not the published ones.
    Raises UserError naming the tensor if one is missing, or has another shape than the others ask for.
    """
    theirs = {PREFIXES.sub("", name): tensor for name, tensor in state_dict.items()}
    for name, tensor in theirs.items():
        if not isinstance(tensor, Tensor):
            raise UserError(f"{name!r} of the snapshot is a {type(tensor).__name__}, not a tensor: give the state_dict alone.")
    shapes = Shapes(theirs)
    assumed = _heads(shapes) | dict(heads or {})
    config: Any = OmegaConf.to_container(OmegaConf.merge(_published(), _sizes(shapes, assumed)))
    present = _encoders(shapes, tokenizer)
    policy = build_policy({**config, **_stand_ins(shapes), **present}, spec)
    own = dict(policy.state_dict())
    named = {name: their_name(name) for name in own if name not in STATISTICS}
    lacking = sorted(set(named.values()) - set(theirs))
    if lacking:
        raise missing(lacking)
    loaded = {ours: fitted(name, theirs, own[ours]) for ours, name in named.items()}
    policy.load_state_dict(own | loaded)
    used = {*named.values(), *({CHUNKS} & set(theirs))}
    rest = sorted(set(theirs) - used)
    absent = [name for name, prefix in (("image encoder", MAE), ("text encoder", CLIP)) if not shapes.any(prefix)]
    report = Report(
        used=named | ({"model.act_query (its chunk's part)": CHUNKS} if CHUNKS in theirs else {}),
        dead=[name for name in rest if DEAD.match(name)],
        unused=[name for name in rest if not DEAD.match(name)],
        absent=absent,
        assumed=assumed,
    )
    text = {"text": {**config["text"], "weights": tokenizer}}  # where an absent encoder is read from, with its tokenizer
    return Official(policy, {**config, **text, **present}, report).eval()


def convert(
    checkpoint: str,
    out: str,
    spec: Spec,
    mae: str | None = None,
    clip: str | None = None,
    tokenizer: str = TOKENIZER,
    heads: Mapping[str, int] | None = None,
) -> Report:
    """Make a checkpoint folder `out` of a snapshot, and of MAE's and CLIP's files where they are not in it already.

    spec: of the world that it is for. Raises UserError; then `out` is as it was before.
    """
    tensors = {PREFIXES.sub("", name): tensor for name, tensor in read(checkpoint).items()}
    for path, prefix, key in ((mae, MAE, "mae"), (clip, CLIP, "clip")):
        if path and any(name.startswith(prefix) for name in tensors):
            raise UserError(f"{checkpoint!r} has an encoder {prefix}* of its own: leave out {key}={path}.")
        tensors |= {prefix + name: tensor for name, tensor in read(path).items()} if path else {}
    made = from_state_dict(tensors, spec, tokenizer, heads)
    source = {"checkpoint": str(checkpoint), "mae": mae, "clip": clip, **asdict(made.report)}
    save_checkpoint(out, made.policy, made.config, {"step": 0, "source": source})
    return made.report


def _published() -> DictConfig:
    """`policy=gr1` put together without Hydra, which may be at work already."""
    folder = files("conf")
    config = cast(DictConfig, OmegaConf.load(str(folder / "policy" / "gr1.yaml")))
    del config["defaults"]
    config.head = OmegaConf.load(str(folder / "head" / "published.yaml"))
    return config


def _heads(shapes: Shapes) -> dict[str, int]:
    """The published number where it divides the width, else heads of the published width."""
    widths = {
        "trunk": (shapes("embed_timestep.weight", 2)[1], 12, 32),
        "resampler": (shapes("perceiver_resampler.layers.0.0.to_q.weight", 2)[0], 4, 128),
        "decoder": (shapes("decoder_embed.weight", 2)[0], 16, 24),
    }
    return {part: heads if width % heads == 0 else max(1, width // each) for part, (width, heads, each) in widths.items()}


def _sizes(shapes: Shapes, heads: Mapping[str, int]) -> dict[str, Any]:
    """What a snapshot says about the config of `policy=gr1`."""
    window, width = shapes("embed_timestep.weight", 2)
    latents, channels = shapes("perceiver_resampler.latents", 2)
    inner = shapes("perceiver_resampler.layers.0.0.to_q.weight", 2)[0]
    pixels, decoder_width = shapes("decoder_pred.weight", 2)
    patch, grid = isqrt(pixels // 3), isqrt(shapes("decoder_pos_embed", 3)[1])
    chunk = shapes(CHUNKS, 2)[0] if shapes.any(CHUNKS) else 1
    for name, number in (("trunk", width), ("resampler", inner), ("decoder", decoder_width)):
        if number % heads[name]:
            raise UserError(f"the {name} is {number} wide, which {heads[name]} heads do not divide: give heads.{name}.")
    return {
        "size": grid * patch,
        "history": window,
        "chunk": chunk,
        "action_queries": chunk,
        "token_positions": shapes("transformer.wpe.weight", 2)[0] if shapes.any("transformer.wpe.") else 0,
        "resize": "bicubic_antialias" if shapes.any(CHUNKS) else "bicubic",
        "width": width,
        "language": width,
        "layers": shapes.layers("transformer.h."),
        "heads": heads["trunk"],
        "expansion": _ratio(shapes("transformer.h.0.mlp.c_fc.weight", 2)[1], width),
        "resampler": {
            "latents": latents,
            "layers": shapes.layers("perceiver_resampler.layers."),
            "heads": heads["resampler"],
            "head_width": inner // heads["resampler"],
            "expansion": _ratio(shapes("perceiver_resampler.layers.0.1.1.weight", 2)[0], channels),
        },
        "head": {"hidden": [shapes(f"pred_act_mlps.{i}.weight", 2)[0] for i in range(shapes.layers("pred_act_mlps."))]},
        "foresight": {
            "queries": shapes("obs_queries.weight", 2)[0],
            "decoder": {
                "patch": patch,
                "width": decoder_width,
                "layers": shapes.layers("decoder_blocks."),
                "heads": heads["decoder"],
            },
        },
    }


def _encoders(shapes: Shapes, tokenizer: str) -> dict[str, Any]:
    """The configs of those encoders that are in the snapshot."""
    found: dict[str, Any] = {}
    if shapes.any(MAE):
        width, _, patch, _ = shapes(f"{MAE}patch_embed.proj.weight", 4)
        layers, heads = shapes.layers(f"{MAE}blocks."), max(1, width // ENCODER_HEAD_WIDTH)
        found["vision"] = {"name": "vit", "patch": patch, "width": width, "layers": layers, "heads": heads}
    if shapes.any(CLIP):
        vocabulary, width = shapes(f"{CLIP}token_embedding.weight", 2)
        found["text"] = {
            "name": "clip",
            "pooling": 0,
            "tokenizer": tokenizer,
            "vocabulary": vocabulary,
            "tokens": shapes(f"{CLIP}positional_embedding", 2)[0],
            "width": width,
            "layers": shapes.layers(f"{CLIP}transformer.resblocks."),
            "heads": max(1, width // ENCODER_HEAD_WIDTH),
            "summary": shapes(f"{CLIP}text_projection", 2)[1],
        }
    return found


def _stand_ins(shapes: Shapes) -> dict[str, Any]:
    """What to build in place of encoders that are not there."""
    width, cls_width = shapes("perceiver_resampler.latents", 2)[1], shapes("embed_img.weight", 2)[1]
    grid = isqrt(shapes("decoder_pos_embed", 3)[1])
    return {
        "vision": {"name": "elsewhere", "grid": grid, "cls_width": cls_width, "patch_width": width},
        "text": {"name": "elsewhere", "pooling": 0, "summary": shapes("embed_lang.weight", 2)[1]},
    }


def _ratio(large: int, small: int) -> float:
    """large / small, such that int(ratio * small) is `large` whatever is rounded."""
    return large // small if large % small == 0 else (large + 0.5) / small
