"""A snapshot of GR-1, as torch saved it: reading it safely, what its tensors are called, and how they are laid out."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from torch import Tensor

from vla.spec import UserError

MAE, CLIP = "model_mae.", "model_clip."
QUERY, CHUNKS = "action_queries.weight", "action_chunk_queries.weight"
PREFIXES = re.compile(r"^(?:(?:module|_orig_mod)\.)+")
DEAD = re.compile(
    r"transformer\.wte\.|transformer\.h\.\d+\.attn\.(bias|masked_bias)$"
    r"|model_clip\.(visual\.|logit_scale$|input_resolution$|context_length$|vocab_size$)"
)
"""What the original carries along and never computes with: word embeddings, causal masks, CLIP's vision tower and scale."""

NAMES = {
    r"head\.layers\.": "pred_act_mlps.",
    r"head\.arm\.": "pred_arm_act.",
    r"head\.gripper\.": "pred_gripper_act.",
    r"model\.time$": "embed_timestep.weight",
    r"model\.position$": "transformer.wpe.weight",
    r"model\.norm\.": "embed_ln.",
    r"model\.state_token\.arm\.": "embed_arm_state.",
    r"model\.state_token\.gripper\.": "embed_gripper_state.",
    r"model\.state_token\.fuse\.": "embed_state.",
    r"model\.text\.project\.": "embed_lang.",
    r"model\.latent_token\.static\.": "embed_patch.",
    r"model\.latent_token\.wrist\.": "embed_hand_patch.",
    r"model\.cls_token\.static\.": "embed_img.",
    r"model\.cls_token\.wrist\.": "embed_hand_img.",
    r"model\.act_query$": QUERY,
    r"model\.obs_query\.static$": "obs_queries.weight",
    r"model\.obs_query\.wrist$": "obs_hand_queries.weight",
    r"model\.trunk\.norm\.": "transformer.ln_f.",
    r"model\.trunk\.blocks\.": "transformer.h.",
    r"model\.resampler\.layers\.(\d+)\.(norm|up|down)\.": r"perceiver_resampler.layers.\1.1.\2.",
    r"model\.resampler\.layers\.(\d+)\.": r"perceiver_resampler.layers.\1.0.",
    r"model\.resampler\.media$": "perceiver_resampler.media_pos_emb",
    r"model\.resampler\.": "perceiver_resampler.",
    r"model\.decoder\.mask$": "mask_token",
    r"model\.decoder\.position$": "decoder_pos_embed",
    r"model\.decoder\.project\.": "decoder_embed.",
    r"model\.decoder\.norm\.": "decoder_norm.",
    r"model\.decoder\.pixels\.": "decoder_pred.",
    r"model\.decoder\.blocks\.": "decoder_blocks.",
    r"model\.vision\.all\.cls$": "model_mae.cls_token",
    r"model\.vision\.all\.position$": "model_mae.pos_embed",
    r"model\.vision\.all\.embed\.": "model_mae.patch_embed.proj.",
    r"model\.vision\.all\.": "model_mae.",
    r"model\.text\.clip\.tokens$": "model_clip.token_embedding.weight",
    r"model\.text\.clip\.position$": "model_clip.positional_embedding",
    r"model\.text\.clip\.norm\.": "model_clip.ln_final.",
    r"model\.text\.clip\.project\.weight$": "model_clip.text_projection",
    r"model\.text\.clip\.blocks\.": "model_clip.transformer.resblocks.",
}
"""Beginning of our name -> of theirs; the first that matches counts."""

WITHIN = {
    "transformer.h.": {
        "norm1.": "ln_1.", "norm2.": "ln_2.", "attention.qkv.": "attn.c_attn.", "attention.out.": "attn.c_proj.",
        "up.": "mlp.c_fc.", "down.": "mlp.c_proj.",
    },
    "model_clip.transformer.resblocks.": {
        "norm1.": "ln_1.", "norm2.": "ln_2.", "attention.qkv.": "attn.in_proj_", "attention.out.": "attn.out_proj.",
        "up.": "mlp.c_fc.", "down.": "mlp.c_proj.",
    },
    "decoder_blocks.": {"attention.out.": "attn.proj.", "attention.": "attn.", "up.": "mlp.fc1.", "down.": "mlp.fc2."},
    "model_mae.blocks.": {"attention.out.": "attn.proj.", "attention.": "attn.", "up.": "mlp.fc1.", "down.": "mlp.fc2."},
    "perceiver_resampler.layers.": {
        "norm_patches.": "norm_media.", "q.": "to_q.", "kv.": "to_kv.", "out.": "to_out.",
        "norm.": "0.", "up.": "1.", "down.": "3.",
    },
}  # fmt: skip
"""Beginning of their name -> what parts of a block are called."""

TRANSPOSED = re.compile(r"transformer\.h\.\d+\.(attn|mlp)\..*weight$|model_clip\.text_projection$")
"""Stored with inputs before outputs. (CLIP's own blocks are not: their names do not match from the beginning.)"""


def read(path: str | Path) -> dict[str, Any]:
    """The state dict in a file that torch saved, itself or under `state_dict` or `model`. Nothing in the file is run.

    Raises UserError if it cannot be read, or holds anything but tensors and plain values.
    """
    if not Path(path).is_file():
        raise UserError(f"{str(path)!r} is not a file: give one that torch saved.")
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        LookupError,
        AttributeError,
        BadZipFile,
    ) as error:
        reason = str(error).strip().split("\n")[0][:150]
        raise UserError(
            f"{str(path)!r} is damaged, or holds more than tensors, which is not read for safety ({reason}): "
            "save its state_dict alone and give that."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(payload, Mapping) and isinstance(payload.get(key), Mapping):
            payload = payload[key]
    if not isinstance(payload, Mapping) or not all(isinstance(name, str) for name in payload):
        raise UserError(f"{str(path)!r} holds no state dict but a {type(payload).__name__}: give a snapshot of GR-1.")
    return dict(payload)


def their_name(ours: str) -> str:
    """A parameter of ours -> the snapshot's name of it."""
    name = next(re.sub(rf"^{begin}", theirs, ours) for begin, theirs in NAMES.items() if re.match(begin, ours))
    for begin, parts in WITHIN.items():
        if match := re.match(rf"{re.escape(begin)}(?:\d+\.)+", name):
            part = name[match.end() :]
            found = next((p for p in parts if part.startswith(p)), "")
            return match[0] + (parts[found] + part.removeprefix(found) if found else part)
    return name


class Shapes:
    """Sizes of a snapshot's tensors."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self._tensors = tensors

    def any(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self._tensors)

    def __call__(self, name: str, dimensions: int) -> tuple[int, ...]:
        if name not in self._tensors:
            raise missing([name])
        shape = tuple(self._tensors[name].shape)
        if len(shape) != dimensions or 0 in shape:
            raise UserError(f"{name} has shape {shape} but must have {dimensions} dimensions: the snapshot is not one of GR-1.")
        return shape

    def layers(self, prefix: str) -> int:
        """How many layers are numbered after `prefix`; at least 1."""
        places = [re.match(rf"{re.escape(prefix)}(\d+)\.", name) for name in self._tensors]
        return 1 + max((int(match[1]) for match in places if match), default=0)


def fitted(name: str, tensors: Mapping[str, Tensor], own: Tensor) -> Tensor:
    """A snapshot's tensor in the form of `own`: outputs before inputs, without leading axes of length 1."""
    turned = TRANSPOSED.match(name) is not None
    tensor = tensors[name].T if turned and tensors[name].ndim == 2 else tensors[name]
    while tensor.ndim > own.ndim and len(tensor) == 1:
        tensor = tensor[0]
    wanted = own[:1] if name == QUERY and CHUNKS in tensors else own
    if tensor.shape != wanted.shape:
        raise _misshapen(name, tensors, tuple(wanted.T.shape) if turned else tuple(wanted.shape))
    if wanted is not own:  # one query for all actions of a chunk, and what each has of its own
        if tensors[CHUNKS].shape != own.shape:
            raise _misshapen(CHUNKS, tensors, tuple(own.shape))
        return tensor.to(own.dtype) + tensors[CHUNKS].to(own.dtype)
    return tensor.to(own.dtype)


def _misshapen(name: str, tensors: Mapping[str, Tensor], wanted: tuple[int, ...]) -> UserError:
    shape = tuple(tensors[name].shape)
    return UserError(f"{name} has shape {shape} but the others ask for {wanted}: the snapshot is damaged or mixed from two.")


def missing(names: list[str]) -> UserError:
    return UserError(f"the snapshot lacks {names[0]!r} ({len(names)} in all): give the whole state_dict of a GR-1.")
