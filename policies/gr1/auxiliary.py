"""What [ACT] outputs are also asked for while training, and never acted on: the task's progress, where things are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.gr1.heads import weighted_mean
from vla.spec import ENVIRONMENT_STATE, Spec, UserError

PROGRESS, PROGRESS_MASK = "progress", "progress.mask"


class Auxiliary(nn.Module):
    """Two linear readouts of a window's [ACT] outputs, each a switch and trained by a smooth-L1 loss.

    progress: the share of the segment that is past, 0 at its first frame and 1 at its last (GR-MG's head, here not fed back).
    objects: entries of the environment state to be predicted, standardised; 0 for none. Windows whose pictures show parts
    of others do not count: what is seen there is not what the state says. spec and statistics are those of the data; no
    statistics: those of a checkpoint come. Raises UserError where the data's environment state has another length.
    """

    def __init__(
        self,
        features: int,
        spec: Spec,
        statistics: Mapping[str, Mapping[str, Any]] | None,
        *,
        progress: bool = False,
        objects: int = 0,
    ):
        super().__init__()
        if objects and statistics is not None and objects != len(spec.environment_state):
            raise UserError(
                f"auxiliary.objects is {objects} but the data's environment state has {len(spec.environment_state)} entries: "
                "set that number, or 0 to predict none."
            )
        self.progress = nn.Linear(features, 1) if progress else None
        self.objects = nn.Linear(features, objects) if objects else None
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(objects))
        self.register_buffer("std", torch.ones(objects))
        if objects and statistics is not None:
            for name, buffer in (("mean", self.mean), ("std", self.std)):
                buffer.copy_(torch.as_tensor(np.asarray(statistics[ENVIRONMENT_STATE][name])))
            self.std.clamp_(min=1e-4)

    def loss(self, features: Tensor, batch: Mapping[str, Any], steps: list[int], whole: Tensor) -> dict[str, Tensor]:
        """[ACT] outputs (B * S, queries, width) at `steps` S of a batch of windows -> unweighted parts.

        whole: bool (B,), the windows whose pictures show the state that they were taken in.
        """
        features, parts = features.flatten(1), {}
        needs = {"progress": (self.progress, PROGRESS), "objects": (self.objects, ENVIRONMENT_STATE)}
        for name, (readout, key) in needs.items():
            if readout is not None and key not in batch:
                raise UserError(f"auxiliary.{name} needs {key!r}, which the training data does not give: switch it off.")
        if self.progress is not None:
            share, mask = (batch[name][:, steps].flatten() for name in (PROGRESS, PROGRESS_MASK))
            error = F.smooth_l1_loss(self.progress(features)[:, 0].float(), share, beta=0.1, reduction="none")
            parts["progress"] = weighted_mean(error, mask.float())
        if self.objects is not None:
            state = (batch[ENVIRONMENT_STATE][:, steps].flatten(0, 1) - self.mean) / self.std
            error = F.smooth_l1_loss(self.objects(features).float(), state, beta=0.1, reduction="none")
            mask = (whole[:, None] & batch["frame.mask"][:, steps]).flatten().float()
            parts["objects"] = weighted_mean(error, mask[:, None])
        return parts
