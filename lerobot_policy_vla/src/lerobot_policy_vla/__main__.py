"""One of our checkpoints as a folder that LeRobot's `--policy.path` takes: python -m lerobot_policy_vla CHECKPOINT OUT

(The other way needs no command: what lerobot-train saves of our policies is a checkpoint of ours, too.)
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from omegaconf import OmegaConf

from lerobot_policy_vla import F1Config, Gr1Config
from lerobot_policy_vla.config import VlaConfig
from vla.checkpoint import load_policy, read_checkpoint
from vla.commands.common import fail
from vla.spec import ACTION, STATE, Spec, UserError, image_key

KINDS: dict[str, type[VlaConfig]] = {"policies.gr1.policy.GR1Policy": Gr1Config, "policies.f1.policy.F1Policy": F1Config}


def export(checkpoint: str | Path, out: str | Path) -> None:
    """Write `out` for LeRobot. Raises UserError for a checkpoint of another policy, and for an `out` that exists."""
    found, out = read_checkpoint(checkpoint), Path(out)
    target = found.config._target_
    if target not in KINDS:
        raise UserError(f"checkpoint {checkpoint} is of {target}: LeRobot knows those of {' and '.join(KINDS)}.")
    if out.exists():
        raise UserError(f"{out} exists already: give another folder, or remove it.")
    network: Any = OmegaConf.merge(found.config, {"augment": {"swap": 0.0}})
    config = KINDS[target](
        network=OmegaConf.to_container(network),  # type: ignore[arg-type]
        spec=found.spec.to_dict(),
        input_features=_inputs(found.spec),
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (len(found.spec.action),))},
        device="cpu",
        push_to_hub=False,
    )
    policy = get_policy_class(config.type)(config)
    policy.policy.load_state_dict(load_policy(checkpoint).state_dict())  # type: ignore[union-attr]
    policy.save_pretrained(out)
    for processor in make_pre_post_processors(config):
        processor.save_pretrained(out)


def _inputs(spec: Spec) -> dict[str, PolicyFeature]:
    pictures = {image_key(c): PolicyFeature(FeatureType.VISUAL, (3, *size)) for c, size in spec.cameras.items()}
    return pictures | ({STATE: PolicyFeature(FeatureType.STATE, (len(spec.state),))} if spec.state else {})


if __name__ == "__main__":
    if len(sys.argv) != 3:
        fail("give two folders: python -m lerobot_policy_vla CHECKPOINT OUT")
    try:
        export(*sys.argv[1:])
    except UserError as error:
        fail(str(error))
