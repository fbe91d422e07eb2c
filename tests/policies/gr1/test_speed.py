"""What acting leaves out changes nothing: our step beside the original's, and what encoders are asked."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from official_snapshot import observation, write_tokenizer
from omegaconf import OmegaConf
from small_gr1 import SPEC, composed, policy
from small_gr1 import observation as noise

from benchmarks.original import Evaluation
from vla.checkpoint import build_policy

TINY = {
    "size": 32, "width": 24, "language": 24, "layers": 2, "heads": 2, "history": 4, "gripper_rule": "threshold",
    "resampler": {"latents": 3, "layers": 1, "heads": 2, "head_width": 8, "expansion": 2},
    "foresight": {"queries": 2, "decoder": {"patch": 16, "width": 16, "layers": 1, "heads": 2}},
}  # fmt: skip
VIT = {"name": "vit", "patch": 8, "width": 16, "layers": 2, "heads": 2}
CLIP = {
    "name": "clip", "pooling": 0, "vocabulary": 60, "tokens": 30, "width": 16, "layers": 1, "heads": 2, "summary": 16,
}  # fmt: skip


@pytest.fixture
def published(tmp_path):
    """The published model, tiny, with encoders of its own."""
    write_tokenizer(tmp_path / "tokenizer")
    config = OmegaConf.merge(composed("gr1"), TINY)
    config.vision, config.text = VIT, {**CLIP, "tokenizer": str(tmp_path / "tokenizer")}
    torch.manual_seed(0)
    *arm, gripper = SPEC.action
    wide = replace(SPEC, action=(*(replace(e, low=None, high=None) for e in arm), gripper))  # nothing is cut off
    net = build_policy(config, wide)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, parameter[0].numel() ** -0.5)
    return net.eval()


def test_our_step_gives_the_actions_of_the_original_step(published):
    original, memory, actions = Evaluation(published), published.begin([0]), []
    for step in range(7):
        ours, memory = published.act(observation(step), memory)
        actions.append(ours[0])
        np.testing.assert_allclose(ours[0], original.act(observation(step)), atol=1e-5, rtol=0)
    assert np.std(actions, axis=0)[..., :6].min() > 1e-3


def test_a_step_encodes_one_frame_of_each_camera_in_one_go(published):
    encoded = []
    published.model.vision["all"].register_forward_hook(lambda m, inputs, out: encoded.append(len(inputs[0])))
    memory = published.begin([0])
    for step in range(3):
        _, memory = published.act(observation(step), memory)
    assert encoded == [2, 2, 2]


def test_bfloat16_acts_nearly_alike_and_remembers_in_float32():
    nets = [policy(history=2, gripper_rule="threshold", precision=precision) for precision in ("fp32", "bf16")]
    (exact, _), (rough, memory) = (net.act(noise(4), net.begin(range(4))) for net in nets)
    assert 0 < np.abs(exact - rough)[..., :6].max() < 0.02
    assert memory["frames"].dtype == torch.float32
