"""What is seen and said now, as tokens of the understanding expert.

    understanding.words(sentences)             int64 (B, ...), a value that can be kept
    understanding.language(words)              (B, ...), what the pictures' encoders may listen to
    understanding.silence(count)               of that, something of the same shape for the time before the first sentence
    understanding(images, language)            tokens (B, U, width), which of them are real bool (B, U)

images: camera -> (B, size, size, 3) with ImageNet's mean and deviation removed. `layers` are those of its expert.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from policies.f1.mixture import Heads, keep_keys, layers
from policies.nn.images import MEAN, STD
from policies.nn.text import Text
from policies.nn.transformer import Resampler
from policies.nn.vision import build_vision
from vla.spec import UserError


class Compact(nn.Module):
    """Small and trained from nothing: a language token, and of each camera a few latents and the vision encoder's summary."""

    def __init__(
        self,
        cameras: Sequence[str],
        size: int,
        depth: int,
        heads: Heads,
        *,
        width: int,
        hidden: int,
        language: int,
        text: Mapping[str, Any],
        vision: Mapping[str, Any],
        resampler: Mapping[str, Any],
    ):
        super().__init__()
        self.width = width
        self.text = Text(text, language)
        self.vision = nn.ModuleDict({c: build_vision(vision, size, language) for c in cameras})
        first: Any = self.vision[cameras[0]]
        self.resampler = Resampler(first.patch_width, **resampler)
        self.language_token = nn.Linear(language, width)
        self.latent_token = nn.ModuleDict({c: nn.Linear(first.patch_width, width) for c in cameras})
        self.cls_token = nn.ModuleDict({c: nn.Linear(first.cls_width, width) for c in cameras})
        self.layers = layers(depth, width, hidden, heads, keys_at_the_end=True)

    def words(self, sentences: Sequence[str]) -> Tensor:
        return self.text.rows(sentences)

    def language(self, words: Tensor) -> Tensor:
        return self.text.vector(words)

    def silence(self, count: int) -> Tensor:
        return torch.zeros(count, self.text.project.out_features, device=self.text.project.weight.device)

    def forward(self, images: Mapping[str, Tensor], language: Tensor) -> tuple[Tensor, Tensor]:
        tokens = [self.language_token(language)[:, None]]
        for camera, encoder in self.vision.items():
            cls, patches = encoder(images[camera], language)
            tokens += [self.latent_token[camera](self.resampler(patches)), self.cls_token[camera](cls)[:, None]]
        out = torch.cat([t.to(tokens[0].dtype) for t in tokens], dim=1)
        return out, torch.ones(out.shape[:2], dtype=torch.bool, device=out.device)


class PaliGemma(nn.Module):
    """transformers' PaliGemma: SigLIP tokens of each camera and the sentence's tokens, as published.

    weights: hub name or folder ("google/paligemma-3b-pt-224"), or None for the architecture alone, in which words are the
    bytes of the sentence; `shape` then is the config, where it differs from transformers'. sentence: tokens of a sentence.
    Its language head is not kept.
    """

    def __init__(
        self,
        cameras: Sequence[str],
        size: int,
        depth: int,
        heads: Heads,
        *,
        weights: str | None,
        sentence: int,
        shape: Mapping[str, Any],
    ):
        super().__init__()
        from transformers import PaliGemmaConfig, PaliGemmaModel

        if weights is None:
            model: Any = PaliGemmaModel(PaliGemmaConfig(**shape))
        else:
            try:
                model = PaliGemmaModel.from_pretrained(weights)
            except OSError as error:
                raise UserError(
                    f"understanding weights {weights!r} are not on this machine and cannot be reached: fetch them or "
                    "use policy=f1_small."
                ) from error
        text, vision = model.config.text_config, model.config.vision_config
        own = (text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads, text.head_dim, vision.image_size)
        asked = (depth, *heads[:3], size)
        if own != asked:
            raise UserError(
                f"PaliGemma has {own} layers, heads, key-value heads, head width and pixels but the policy {asked}: "
                "set layers, heads, kv_heads, head_width and size to its."
            )
        self.cameras, self.weights, self.sentence, self.width = tuple(cameras), weights, sentence, text.hidden_size
        self.vision, self.project, self.embed = (
            model.vision_tower,
            model.multi_modal_projector,
            model.language_model.embed_tokens,
        )
        self.layers = model.language_model.layers
        keep_keys(self.layers[-1])
        self._tokenizer: Any = None

    def words(self, sentences: Sequence[str]) -> Tensor:
        """Token numbers (B, sentence), -1 behind the end."""
        if self.weights is None:
            found = [list(s.encode()) for s in sentences]
        else:
            if self._tokenizer is None:
                from transformers import AutoTokenizer

                self._tokenizer = AutoTokenizer.from_pretrained(self.weights)
            found = [self._tokenizer(s + "\n").input_ids for s in sentences]
        rows = [(ids + [-1] * self.sentence)[: self.sentence] for ids in found]
        return torch.tensor(rows, device=self.embed.weight.device)

    def language(self, words: Tensor) -> Tensor:
        return words

    def silence(self, count: int) -> Tensor:
        return self.words([""] * count)

    def forward(self, images: Mapping[str, Tensor], language: Tensor) -> tuple[Tensor, Tensor]:
        tokens = []
        for camera in self.cameras:
            image = images[camera]
            mean, std = torch.tensor(MEAN, device=image.device), torch.tensor(STD, device=image.device)
            signed = ((image * std + mean) * 2 - 1).permute(0, 3, 1, 2)  # SigLIP's own normalisation
            tokens.append(self.project(self.vision(signed).last_hidden_state))
        real = language >= 0
        tokens.append(self.embed(language.clamp(min=0)).to(tokens[0].dtype))
        seen = torch.ones(len(real), sum(t.shape[1] for t in tokens[:-1]), dtype=torch.bool, device=real.device)
        return torch.cat(tokens, dim=1), torch.cat([seen, real], dim=1)


def build_understanding(config: Mapping[str, Any], cameras: Sequence[str], size: int, depth: int, heads: Heads) -> Any:
    """The part named by config["name"]: `compact` or `paligemma`; the other keys are its numbers."""
    config = dict(config)
    kinds: dict[str, Any] = {"compact": Compact, "paligemma": PaliGemma}
    name = config.pop("name")
    if name not in kinds:
        raise UserError(f"understanding {name!r} is unknown: use one of {sorted(kinds)}.")
    return kinds[name](cameras, size, depth, heads, **config)
