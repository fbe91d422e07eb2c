"""Published sizes, encoders, the state token."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import cbook
from PIL import Image
from scipy.spatial.transform import Rotation
from small_gr1 import SENTENCES, SPEC, composed, config, policy

from policies.nn.state import StateToken, rotation_columns
from policies.nn.text import Text
from policies.nn.vision import FrozenMAE, build_vision, lite0
from vla.checkpoint import build_policy
from vla.spec import UserError


def count(parameters) -> int:
    return sum(p.numel() for p in parameters)


def test_published_size():
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = composed("gr1")
    config.vision.weights = None
    with torch.device("meta"):
        net = build_policy(config, SPEC)
        clip = CLIPTextModelWithProjection(
            CLIPTextConfig(hidden_size=512, intermediate_size=2048, num_attention_heads=8, projection_dim=512)
        )
    trained = count(p for p in net.parameters() if p.requires_grad)
    frozen = count(net.model.vision["all"].model.parameters()) + count(clip.parameters())
    table = net.model.decoder.position.numel()  # the original counts the decoder's fixed positions as a parameter
    assert round(trained / 1e6, 2) == 45.99
    assert round((trained + frozen + table) / 1e6, 2) == 195.29
    assert net.model.inputs == 22


@pytest.mark.parametrize(("name", "limit"), [("gr1_small", 8e6), ("gr1_medium", 40e6)])
def test_smaller_sizes(name, limit):
    with torch.device("meta"):
        net = build_policy(composed(name), SPEC)
    assert count(net.parameters()) == count(p for p in net.parameters() if p.requires_grad) <= limit


def test_frozen_mae_keeps_patch_order_and_stays_out_of_the_checkpoint():
    options = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    encoder = FrozenMAE(32, None, options)
    image = torch.randn(1, 32, 32, 3)
    moved = image.clone()
    moved[:, :16, 16:] += 1  # the second of four patches
    cls, patches = encoder(image, None)
    assert cls.shape == (1, 16)
    assert patches.shape == (1, 4, 16)
    change = (encoder(moved, None)[1] - patches).abs().sum(-1)[0]
    assert change.argmax() == 1
    assert not encoder.state_dict()
    assert not list(encoder.parameters())
    assert next(encoder.to(torch.float64).model.parameters()).dtype == torch.float64


LITE0 = {"name": "lite0", "pretrained": True, "trained": True}


@pytest.mark.parametrize("name", ["conv", "resnet", "lite0"])
def test_trained_encoders_know_where_things_are_and_hear_the_instruction(name):
    torch.manual_seed(0)
    numbers = LITE0 if name == "lite0" else {"name": name, "channels": [16] * 4}
    numbers = {**numbers, "reduced": 4, "cls_width": 12, "film": True}
    encoder, size = build_vision(numbers, 32, 8), 32
    left, right = torch.zeros(1, size, size, 3), torch.zeros(1, size, size, 3)
    left[:, 10:20, 2:8], right[:, 10:20, 24:30] = 3, 3
    (cls, patches), (other, _) = encoder(left, torch.zeros(1, 8)), encoder(right, torch.zeros(1, 8))
    assert patches.shape == (1, encoder.grid**2, encoder.patch_width)
    assert (cls - other).abs().max() > 1e-2
    with torch.no_grad():
        for film in encoder.modules():
            if type(film).__name__ == "Film":
                film.linear.weight.normal_()
    assert not torch.equal(encoder(left, torch.ones(1, 8))[0], encoder(left, torch.zeros(1, 8))[0])


@given(st.lists(st.floats(-np.pi, np.pi), min_size=3, max_size=3))
def test_rotation_columns_are_those_of_scipy(euler):
    expected = Rotation.from_euler("xyz", euler).as_matrix()
    ours = rotation_columns(torch.tensor(euler, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(ours, np.concatenate([expected[:, 0], expected[:, 1]]), atol=1e-9)


def test_the_state_token_is_continuous_where_euler_angles_jump():
    token = StateToken("rotation6d", 8, SPEC.state)
    state = torch.zeros(2, 15)
    state[:, 3] = torch.tensor([np.pi - 1e-4, -np.pi + 1e-4])
    a, b = token(state)
    torch.testing.assert_close(a, b, atol=1e-3, rtol=0)
    state[1, 14] = -1.0
    assert (token(state)[0] - token(state)[1]).abs().max() > 1e-3


def test_statistics_normalise_the_state_and_a_constant_entry_does_no_harm():
    mean, std = np.arange(15.0), np.full(15, 2.0)
    std[2] = 0.0
    net = build_policy(config(), SPEC, {"observation.state": {"mean": mean, "std": std}})
    token = net.model.state_token
    np.testing.assert_array_equal(token.mean.numpy(), mean)
    assert token.std[2] == 1.0
    assert torch.isfinite(token(torch.zeros(1, 15))).all()


def test_text_remembers_a_bounded_number_of_sentences_while_acting(monkeypatch):
    monkeypatch.setattr("policies.nn.text.REMEMBERED", 4)
    torch.manual_seed(0)
    text = Text({"name": "minilm", "pooling": 2}, 16).eval()
    before = text(SENTENCES)
    for n in range(6):
        text([f"sentence number {n}", SENTENCES[n % 3]])
        assert len(text._states) == len(text._rows) <= 4
    torch.testing.assert_close(text(SENTENCES), before, atol=1e-5, rtol=0)
    text.train()([f"sentence number {n}" for n in range(9)])
    assert len(text._rows) > 9  # a dataset's are all kept


def test_text_vectors_do_not_depend_on_company_and_differ_between_opposites():
    torch.manual_seed(0)
    text = Text({"name": "minilm", "pooling": 2}, 16).eval()
    alone = text([SENTENCES[0]])
    text(["a much longer sentence than the one that was encoded before it"])
    assert torch.equal(text([SENTENCES[0]]), alone)
    torch.testing.assert_close(text([*SENTENCES, SENTENCES[0]])[[0, 3]], alone.expand(2, -1), atol=1e-5, rtol=0)
    opposite = text(["close the drawer"])
    assert (opposite - alone).norm() > 0.05 * alone.norm()
    assert not [k for k in text.state_dict() if k.startswith("_")]


@pytest.fixture
def clip_folder(tmp_path):
    """A CLIP text tower as the hub has it, but tiny: letters as vocabulary, no merges."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "projection_dim": 512,
    }
    tokens = {"vocab_size": len(words), "bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    CLIPTextModelWithProjection(CLIPTextConfig(**sizes, **tokens)).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}))
    return tmp_path


def test_clip_text_from_weights_on_disk(clip_folder):
    text = Text({"name": "clip_vit_b32", "pooling": 0, "weights": str(clip_folder)}, 8)
    vectors = text(["open the drawer", "close the drawer"])
    assert vectors.shape == (2, 8)
    assert not torch.equal(vectors[0], vectors[1])
    torch.testing.assert_close(text._summaries.norm(dim=-1), torch.ones(2))


def test_mae_from_weights_on_disk(tmp_path):
    from transformers import ViTMAEConfig, ViTMAEModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32}
    source = ViTMAEModel(ViTMAEConfig(**sizes))
    source.save_pretrained(tmp_path)
    encoder = FrozenMAE(32, str(tmp_path))
    assert encoder.model.config.mask_ratio == 0
    assert torch.equal(encoder.model.embeddings.cls_token, source.embeddings.cls_token)
    with pytest.raises(UserError, match="images of 32 px, the policy asks for 48"):
        FrozenMAE(48, str(tmp_path))


def test_imagenet_weights_recognise_a_photo_and_stay_as_they_are_if_told():
    photo = Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)).crop((0, 30, 512, 542)).resize((224, 224))
    network = lite0(pretrained=True).eval()
    with torch.no_grad():
        scores = network((torch.tensor(np.asarray(photo), dtype=torch.float32).permute(2, 0, 1)[None] - 127) / 128)
    assert scores.argmax() == 652  # "military uniform"
    encoder = build_vision({**LITE0, "trained": False, "reduced": 4, "cls_width": 12, "film": True}, 64, 8).train()
    assert torch.equal(encoder.stem[0].weight, network.conv_stem.weight)
    before = {name: tensor.clone() for name, tensor in encoder.stem.state_dict().items()}
    cls, patches = encoder(torch.randn(2, 64, 64, 3), torch.zeros(2, 8))
    (cls.sum() + patches.sum()).backward()
    assert all(parameter.grad is None for parameter in encoder.stem.parameters())
    assert encoder.readout.cls.weight.grad is not None
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.stem.state_dict().items())


@pytest.mark.parametrize(
    "load", [lambda at: FrozenMAE(32, at), lambda at: Text({"name": "clip_vit_b32", "pooling": 0, "weights": at}, 8)(["a"])]
)
def test_missing_weights_are_one_sentence(tmp_path, load):
    with pytest.raises(UserError, match="not on this machine"):
        load(str(tmp_path / "nowhere"))


def test_text_weights_are_neither_trained_nor_saved():
    net = policy()
    net.model.text(SENTENCES)
    assert count(net.parameters()) < 1e6
    assert not [k for k in net.state_dict() if "tower" in k]
