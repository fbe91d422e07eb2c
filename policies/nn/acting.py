"""What policies share when they act: groups of fixed size, and a network that stands still."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def in_groups(size: int, function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
    """`function` on groups of exactly `size` rows: matrix products round differently at different batch sizes."""
    n = len(tensors[0])
    places = torch.arange(-(-n // size) * size, device=tensors[0].device).clamp(max=n - 1)
    groups = [function(*(x[part] for x in tensors)) for part in places.split(size)]
    return tuple(torch.cat(outputs)[:n] for outputs in zip(*groups, strict=True))


@contextmanager
def still(network: nn.Module, device: torch.device, precision: str = "fp32") -> Iterator[None]:
    """Evaluation mode without gradients, in float32 or with matrix products in bfloat16 (`bf16`), and back."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        network.train(training)
