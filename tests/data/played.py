"""Small made-up datasets whose every number tells where it belongs."""

import numpy as np

from vla.data.store import DatasetWriter, Segment
from vla.spec import Entry, Spec

SIZE = {"static": (6, 4), "wrist": (3, 5)}
SPEC = Spec(
    cameras=SIZE,
    state=(Entry("x", "m"), Entry("y", "m")),
    environment_state=(Entry("drawer", "m"),),
    action=(Entry("dx", "m", -1, 1), Entry("dy", "m", -1, 1), Entry("gripper", "1", -1, 1)),
    action_kind="relative_pose",
    control_hz=30,
)


def episode(seed: int, length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng((seed, length))
    return {
        "observation.images.static": rng.integers(0, 256, (length, 6, 4, 3), np.uint8),
        "observation.images.wrist": rng.integers(0, 256, (length, 3, 5, 3), np.uint8),
        "observation.state": rng.normal(size=(length, 2)).astype(np.float32),
        "observation.environment_state": rng.normal(size=(length, 1)).astype(np.float32),
        "action": rng.uniform(-1, 1, (length, 3)).astype(np.float32),
    }


def write(path, lengths, segments=None, spec=SPEC, first_seed=0):
    """Episodes of these lengths; segments per episode, default one over all of it. Gives what was written."""
    written = [episode(first_seed + i, length) for i, length in enumerate(lengths)]
    with DatasetWriter(path, spec, {"made": "up"}) as writer:
        for i, frames in enumerate(written):
            labels = [Segment(0, lengths[i], "whole", "do it all")] if segments is None else segments[i]
            writer.append_episode(frames, labels, scene="AB"[i % 2], seed=first_seed + i)
    return written
