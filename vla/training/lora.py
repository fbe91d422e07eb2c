"""Low-rank adapters: a trained policy is adapted by small matrices beside its layers, and nothing else of it moves.

    adapter = LoRA(rank=1, alpha=2, dropout=0.0, layers="all")
    adapter.inject(policy)            # in place; it still acts as before
    ... train ...
    adapter.merged(policy)            # the weights of an ordinary policy that acts as the adapted one

A layer's weight W becomes W + alpha / rank * B A, A with `rank` rows, B with `rank` columns and zero at the beginning (Hu et
al. 2021, arXiv 2106.09685). The layers are those of the library peft, which is imported only here and only when it is used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vla.spec import UserError

NAME = "default"  # peft's name of an adapter that is alone


class LoRA:
    """What conf/adapter/lora.yaml says.

    layers: `all` linear and convolution layers that the policy would train, or a list of names, of layers (`qkv`) or of
    parts that hold some (`trunk`): a layer is adapted if a name is among the parts of its own, or are neighbours in it
    (`readout.cls`). What the policy keeps frozen is never adapted.
    """

    def __init__(self, rank: int, alpha: float, dropout: float, layers: str | Sequence[str]) -> None:
        if not isinstance(rank, int) or rank < 1:
            raise UserError(f"adapter.rank is {rank!r}: give a whole number of at least 1.")
        if not alpha > 0:
            raise UserError(f"adapter.alpha is {alpha}: give a number above 0.")
        if not 0 <= dropout < 1:
            raise UserError(f"adapter.dropout is {dropout}: give a share of at least 0 and below 1.")
        if layers != "all" and (isinstance(layers, str) or not layers):
            raise UserError(f"adapter.layers is {layers!r}: give all, or a list of names such as [qkv,out].")
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.layers = layers if layers == "all" else list(layers)

    def inject(self, policy: nn.Module) -> None:
        """Put the matrices beside the layers, in place, and freeze all else. What the policy does is not yet changed.

        Raises UserError for a name that no layer has.
        """
        from peft import LoraConfig, inject_adapter_in_model

        # A pattern is matched against whole names; in a list of names, peft would take each for an ending, too.
        names = "|".join(re.escape(name) for name in self.chosen(policy))
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=names)  # pyright: ignore[reportArgumentType]
        inject_adapter_in_model(config, policy, NAME)

    def chosen(self, policy: nn.Module) -> list[str]:
        """Names of the layers to adapt. Raises UserError for a name that no layer has."""
        trained = [
            name
            for name, module in policy.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.requires_grad
        ]
        if not trained:
            raise UserError(f"{type(policy).__name__} trains no linear layer that could be adapted: use adapter=none.")
        if self.layers == "all":
            return trained
        found = {part: [name for name in trained if f".{part}." in f".{name}."] for part in self.layers}
        for part, names in found.items():
            if not names:
                known = sorted({name.split(".")[-1] for name in trained if not name.split(".")[-1].isdigit()})
                raise UserError(
                    f"adapter.layers has {part!r}, which is in the name of no layer that {type(policy).__name__} trains: "
                    f"use all, or names such as {', '.join(known)}."
                )
        return [name for name in trained if any(name in names for names in found.values())]

    @torch.no_grad()
    def merged(self, policy: nn.Module) -> dict[str, Tensor]:
        """The state of an ordinary policy that acts as the adapted one does now."""
        weights = self.base(policy)
        for name, layer in _adapted(policy).items():
            weights[f"{name}.weight"] = weights[f"{name}.weight"] + layer.get_delta_weight(NAME)
        return weights

    def base(self, policy: nn.Module) -> dict[str, Tensor]:
        """The state of the policy into which the matrices were put, as it was."""
        weights = policy.state_dict()
        for name in _adapted(policy):
            own = {key: weights.pop(key) for key in list(weights) if key.startswith(f"{name}.")}
            inner = f"{name}.base_layer."
            weights |= {f"{name}.{key.removeprefix(inner)}": value for key, value in own.items() if key.startswith(inner)}
        return weights

    def facts(self, policy: nn.Module) -> dict[str, Any]:
        """What was put into the policy, for the log and for training.json: so many numbers trained, beside its parameters."""
        count = {kind: sum(p.numel() for p in policy.parameters() if p.requires_grad == kind) for kind in (True, False)}
        numbers = {"rank": self.rank, "alpha": self.alpha, "layers": len(_adapted(policy))}
        return {"kind": "LoRA", **numbers, "trained": count[True], "parameters": count[False]}


def _adapted(policy: nn.Module) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in policy.named_modules() if isinstance(module, LoraLayer)}
