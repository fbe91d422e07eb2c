"""Pictures as a pyramid of tokens: one that says how the whole looks, then finer and finer maps of what is still missing.

    picture -> encoder -> map z (C, g, g)

    scale 1x1   what of z a single vector can say        token 0             z ~ sum of all scales, each enlarged to (g, g)
    scale 2x2   what of the rest 2x2 vectors can say     tokens 1..4
    scale 3x3   ...                                      tokens 5..13        first k scales alone: a coarse picture

This is the residual pyramid of VAR (Tian et al. 2024). Two kinds share it: in `VQ` each vector is one of a codebook's and a
token is its number; in `VAE` the vectors are as they come. Encoder and decoder are diffusers'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import Decoder, DiagonalGaussianDistribution, Encoder
from torch import Tensor, nn

from vla.spec import UserError


def to_signed(images: Tensor) -> Tensor:
    """uint8 (M, H, W, 3) -> float (M, 3, H, W) in -1..1, as tokenizers read pictures."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def from_signed(images: Tensor) -> Tensor:
    """The inverse of `to_signed`."""
    return ((images.float().permute(0, 2, 3, 1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


class Tokenizer(nn.Module):
    """Pictures <-> tokens of several scales; see the module's docstring.

    size: side of the pictures in pixels. unshuffle: pixels of blocks of this side become channels first (1: published), which
    is what makes a small tokenizer quick. channels, decoder_channels: of diffusers' Encoder and Decoder, a stage each,
    halving the map from one to the next; layers: residual blocks per stage; attention: self-attention on the coarsest map.
    latent: numbers per vector. scales: sides of the maps, rising; the last must be the encoder's.
    """

    outputs: int
    """Numbers that a network gives to predict one token."""
    discrete: bool

    def __init__(
        self,
        size: int,
        unshuffle: int,
        channels: Sequence[int],
        decoder_channels: Sequence[int],
        layers: int,
        groups: int,
        attention: bool,
        latent: int,
        scales: Sequence[int],
        moments: int,
    ):
        super().__init__()
        self.size, self.unshuffle, self.latent, self.scales = size, unshuffle, latent, tuple(scales)
        self.grid = size // unshuffle // 2 ** (len(channels) - 1)
        if self.scales[-1] != self.grid or any(a >= b for a, b in pairwise(self.scales)):
            raise UserError(f"tokenizer.scales {list(scales)} must rise and end at the encoder's map, {self.grid} on a side.")
        self.counts = [side * side for side in self.scales]
        pixels = 3 * unshuffle**2
        shared: dict[str, Any] = {"layers_per_block": layers, "norm_num_groups": groups}
        self.encoder = Encoder(
            pixels, latent, ("DownEncoderBlock2D",) * len(channels), tuple(channels), double_z=moments == 2,
            mid_block_add_attention=attention, **shared,
        )  # fmt: skip
        self.decoder = Decoder(
            latent, pixels, ("UpDecoderBlock2D",) * len(decoder_channels), tuple(decoder_channels),
            mid_block_add_attention=attention, **shared,
        )  # fmt: skip
        # Frozen parameters travel from one stage's checkpoint to the next; a buffer would stay behind.
        self.steps = nn.Parameter(torch.zeros(()), requires_grad=False)

    def length(self, scales: int) -> int:
        """Number of tokens of the first `scales` scales."""
        return sum(self.counts[:scales])

    def tokens(self, images: Tensor, scales: int | None = None) -> Tensor:
        """Pictures (M, 3, size, size) in -1..1 -> the tokens of the first `scales` scales (M, T) or (M, T, latent)."""
        return torch.cat(self._read(self._encode(images), scales or len(self.scales))[0], dim=1)

    def inputs(self, tokens: Tensor) -> Tensor:
        """Tokens of k scales -> what is known before scales 2..k, at their size: (M, tokens of scales 2..k, latent)."""
        sums = self._sums(tokens)
        known = [_flat(_resize(s, side)) for s, side in zip(sums[:-1], self.scales[1:], strict=False)]
        return torch.cat(known, dim=1) if known else sums[0].new_zeros(len(tokens), 0, self.latent)

    def next_inputs(self, tokens: Tensor) -> Tensor:
        """Tokens of k scales -> what is known before scale k + 1 at its size: (M, its tokens, latent)."""
        sums = self._sums(tokens)
        return _flat(_resize(sums[-1], self.scales[len(sums)]))

    def pixels(self, tokens: Tensor) -> Tensor:
        """Tokens of the first scales, as many as there are -> pictures (M, 3, size, size) in -1..1."""
        return self._decode(self._sums(tokens)[-1])

    def vectors(self, tokens: Tensor) -> Tensor:
        """Tokens (M, T) or (M, T, latent) -> (M, T, latent)."""
        raise NotImplementedError

    def snap(self, vectors: Tensor) -> Tensor:
        """The tokens that stand for vectors (M, T, latent)."""
        raise NotImplementedError

    def score(self, prediction: Tensor, tokens: Tensor) -> Tensor:
        """How wrong the predictions (M, T, outputs) of tokens are: (M, T), the lower the better."""
        raise NotImplementedError

    def choose(self, prediction: Tensor, draws: Tensor, top_k: int, top_p: float) -> Tensor:
        """Tokens from predictions (M, T, outputs) and uniform numbers (M, T)."""
        raise NotImplementedError

    def lift(self, vectors: Tensor, scale: int) -> Tensor:
        """Vectors of a scale (M, side * side, latent) -> what they add to the map, (M, latent, grid, grid)."""
        side = self.scales[scale]
        return _resize(vectors.transpose(1, 2).unflatten(2, (side, side)).float(), self.grid)

    def _encode(self, images: Tensor) -> Tensor:
        if self.unshuffle > 1:
            images = F.pixel_unshuffle(images, self.unshuffle)
        return self.encoder(images.contiguous(memory_format=torch.channels_last))

    def _decode(self, z: Tensor) -> Tensor:
        images = self.decoder(z)
        return F.pixel_shuffle(images, self.unshuffle) if self.unshuffle > 1 else images

    def _read(self, z: Tensor, scales: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Map (M, latent, g, g) -> of each scale its tokens, its vectors before they became tokens, and the map so far."""
        with torch.autocast(z.device.type, enabled=False):
            z, tokens, seen, sums = z.float(), [], [], []
            total = torch.zeros_like(z)
            for i, side in enumerate(self.scales[:scales]):
                seen.append(_flat(_resize(z - total.detach() if self.discrete else z - total, side)))
                tokens.append(self.snap(seen[-1]))
                total = total + self.lift(self.vectors(tokens[-1]), i)
                sums.append(total)
        return tokens, seen, sums

    def _sums(self, tokens: Tensor) -> list[Tensor]:
        """Tokens of the first scales -> the map after each of them, (M, latent, g, g)."""
        scales = next(k for k in range(1, len(self.scales) + 1) if self.length(k) == tokens.shape[1])
        with torch.autocast(tokens.device.type, enabled=False):
            parts = self.vectors(tokens).split(self.counts[:scales], dim=1)
            sums = [self.lift(parts[0], 0)]
            for i in range(1, scales):
                sums.append(sums[-1] + self.lift(parts[i], i))
        return sums


class Phi(nn.Module):
    """A convolution that mends an enlarged map, mixed half and half with it."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x + 0.5 * self.conv(x)


class VQ(Tokenizer):
    """Tokens are numbers of a codebook of `codes` vectors; `phis` convolutions are shared by the scales in order.

    Codes that nothing needs are moved onto vectors of the batch: at the first step that is all of them, so the codebook
    starts as a sample of the data. commitment: how much the encoder is drawn to its codes, beside the codes to it.
    """

    discrete = True
    RENEW = 0.02
    """Share of an equal use below which a code counts as unused."""

    def __init__(self, codes: int, phis: int, commitment: float, **shape: Any):
        super().__init__(**shape, moments=1)
        self.outputs, self.commitment = codes, commitment
        self.codebook = nn.Parameter(torch.randn(codes, self.latent))
        self.phis = nn.ModuleList(Phi(self.latent) for _ in range(phis))
        self.use = nn.Parameter(torch.zeros(codes), requires_grad=False)

    def vectors(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.codebook)

    def snap(self, vectors: Tensor) -> Tensor:
        # |v - c|^2 without |v|^2, which is the same for all codes.
        codes = self.codebook.detach()
        return (
            torch.addmm(codes.square().sum(1), vectors.detach().flatten(0, 1), codes.T, alpha=-2)
            .argmin(1)
            .view(vectors.shape[:2])
        )

    def lift(self, vectors: Tensor, scale: int) -> Tensor:
        place = scale / max(len(self.scales) - 1, 1)
        return self.phis[round(place * (len(self.phis) - 1))](super().lift(vectors, scale))

    def score(self, prediction: Tensor, tokens: Tensor) -> Tensor:
        return F.cross_entropy(prediction.flatten(0, 1).float(), tokens.flatten(), reduction="none").view(tokens.shape)

    def choose(self, prediction: Tensor, draws: Tensor, top_k: int, top_p: float) -> Tensor:
        """Samples among the `top_k` likeliest codes that make up `top_p` of the probability; top_k 1 takes the likeliest."""
        chances, codes = prediction.float().softmax(-1).topk(min(top_k, self.outputs), dim=-1)
        before = chances.cumsum(-1) - chances
        chances = chances * (before < top_p)
        reached = chances.cumsum(-1)
        place = (reached < draws[..., None] * reached[..., -1:]).sum(-1, keepdim=True)
        return codes.gather(-1, place.clamp(max=codes.shape[-1] - 1))[..., 0]

    def loss(self, images: Tensor, scales: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Pictures -> what `scales` scales rebuild of them, unweighted losses, and measures."""
        z = self._encode(images).float()
        tokens, seen, sums = self._read(z, len(self.scales))
        # The map so far is drawn to the encoder's at every scale, and the encoder's to it.
        near = torch.stack([(s - z.detach()).square().mean() for s in sums]).mean()
        far = torch.stack([(s.detach() - z).square().mean() for s in sums]).mean()
        found = torch.cat(tokens, dim=1)
        if self.training:
            self._renew(found, torch.cat(seen, dim=1).detach())
        used = torch.bincount(found.flatten(), minlength=self.outputs) > 0
        rebuilt = self._decode(z + (sums[scales - 1] - z).detach())
        live = (self.use > self.RENEW / self.outputs) if self.training else used
        return rebuilt, {"codes": near + self.commitment * far}, {"use": live.float().mean()}

    @torch.no_grad()
    def _renew(self, tokens: Tensor, vectors: Tensor) -> None:
        share = torch.bincount(tokens.flatten(), minlength=self.outputs) / tokens.numel()
        self.use.lerp_(share, 0.05)
        unused = self.use < self.RENEW / self.outputs
        fresh = vectors.flatten(0, 1)[torch.randint(tokens.numel(), (self.outputs,), device=tokens.device)]
        self.codebook.copy_(torch.where(unused[:, None], fresh, self.codebook))
        self.use.masked_fill_(unused, 1 / self.outputs)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for tensor in (self.codebook.data, self.use):
                torch.distributed.broadcast(tensor, 0)


class VAE(Tokenizer):
    """Tokens are vectors as they come from a variational encoder; all scales together give back its map exactly."""

    discrete = False

    def __init__(self, **shape: Any):
        super().__init__(**shape, moments=2)
        self.outputs = self.latent

    def vectors(self, tokens: Tensor) -> Tensor:
        return tokens

    def snap(self, vectors: Tensor) -> Tensor:
        return vectors

    def score(self, prediction: Tensor, tokens: Tensor) -> Tensor:
        return (prediction.float() - tokens).square().mean(-1)

    def choose(self, prediction: Tensor, draws: Tensor, top_k: int, top_p: float) -> Tensor:
        """The prediction itself: a mean, of which nothing is drawn."""
        return prediction.float()

    def loss(self, images: Tensor, scales: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Pictures -> what `scales` scales rebuild of them, unweighted losses, and measures."""
        found = DiagonalGaussianDistribution(super()._encode(images).float())
        z = found.sample() if self.training else found.mode()
        rebuilt = self._decode(self._read(z, scales)[2][-1])
        return rebuilt, {"kl": found.kl().mean() / self.grid**2}, {"deviation": z.std()}

    def _encode(self, images: Tensor) -> Tensor:
        return DiagonalGaussianDistribution(super()._encode(images).float()).mode()


def build_tokenizer(config: Mapping[str, Any]) -> VQ | VAE:
    """The tokenizer named by config["name"]: `vq` or `vae`; the other keys are its numbers."""
    config = dict(config)
    kinds, name = {"vq": VQ, "vae": VAE}, config.pop("name")
    if name not in kinds:
        raise UserError(f"tokenizer {name!r} is unknown: use one of {sorted(kinds)}.")
    return kinds[name](**config)


def _resize(x: Tensor, side: int) -> Tensor:
    """Maps (M, C, h, h) -> (M, C, side, side): averaged when shrinking, bicubic when growing."""
    if x.shape[-1] == side:
        return x
    return F.interpolate(x, (side, side), mode="area") if x.shape[-1] > side else F.interpolate(x, (side, side), mode="bicubic")


def _flat(x: Tensor) -> Tensor:
    """Maps (M, C, h, h) -> vectors (M, h * h, C)."""
    return x.flatten(2).transpose(1, 2)
