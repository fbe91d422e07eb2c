"""One attention, computed at once or piece by piece: causality, caches, published sizes."""

import pytest
import torch
from omegaconf import OmegaConf
from small_f1 import SPEC, batch, composed, config, pictures, policy

from policies.f1.tokenizer import to_signed
from vla.checkpoint import build_policy
from vla.spec import UserError


def count(parameters) -> int:
    return sum(p.numel() for p in parameters)


def situation(net, b: int = 3, seed: int = 0):
    """Random tokens of understanding, tokens of frames seen and to come, state, noise."""
    g = torch.Generator().manual_seed(seed)
    seen = torch.randn(b, 7, net.model.understanding.width, generator=g)
    frames = net.tokenizer.tokens(to_signed(pictures(b * net.window, seed))).unflatten(0, (b, net.window))
    future = net.tokenizer.tokens(to_signed(pictures(b, seed + 50)), net.scales)
    state, noise = torch.randn(b, 15, generator=g), torch.randn(b, 4, 7, generator=g)
    return seen, torch.ones(b, 7, dtype=torch.bool), net._known(frames), future, state, noise


@torch.no_grad()
@pytest.mark.parametrize("kind", ["vq", "vae"])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_teacher_forced_equals_step_by_step_and_cached_equals_uncached(kind, norm):
    net = policy(kind=kind, norm=norm, foresight={"scales": 3}, history=2).eval()
    seen, valid, known, _, state, noise = situation(net)
    uniform = torch.rand(3, net.tokenizer.length(3))
    plan, cache = net.model.imagine(net.tokenizer, seen, valid, known, uniform, top_k=5, top_p=0.9)
    # All at once, told its own plan: the same predictions, so the same plan again.
    level = torch.ones(3, 1)
    prediction, velocity = net.model.think(seen, valid, known, net.tokenizer.inputs(plan), (state, noise[:, None], level))
    again = net.tokenizer.choose(prediction, uniform, 5, 0.9)
    torch.testing.assert_close(again, plan, atol=1e-4, rtol=0)
    # The first Euler step beside the cache follows the same velocity.
    torch.testing.assert_close(net.model.act(valid, cache, state, noise, 1), noise - velocity[:, 0], atol=1e-4, rtol=0)
    steps = noise
    for i in range(4):
        acting = (state, steps[:, None], torch.full((3, 1), 1 - i / 4))
        steps = steps - net.model.think(seen, valid, known, net.tokenizer.inputs(plan), acting)[1][:, 0] / 4
    torch.testing.assert_close(net.model.act(valid, cache, state, noise, 4), steps, atol=1e-4, rtol=0)


@torch.no_grad()
def test_padding_of_a_sentence_changes_nothing():
    net = policy().eval()
    seen, valid, known, future, state, noise = situation(net)
    acting = (state, noise[:, None], torch.ones(3, 1))
    before = net.model.think(seen, valid, known, net.tokenizer.inputs(future), acting)
    longer = torch.cat([seen, torch.randn(3, 2, seen.shape[2])], dim=1)
    padded = torch.cat([valid, torch.zeros(3, 2, dtype=torch.bool)], dim=1)
    after = net.model.think(longer, padded, known, net.tokenizer.inputs(future), acting)
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@torch.no_grad()
def test_changing_what_comes_later_changes_nothing_earlier():
    net = policy(foresight={"scales": 3}).eval()
    seen, valid, known, future, state, noise = situation(net)
    other = situation(net, seed=1)
    level, lengths = torch.ones(3, 1), [net.tokenizer.length(k) for k in range(4)]

    def think(future, state, noise):
        return net.model.think(seen, valid, known, net.tokenizer.inputs(future), (state, noise[:, None], level))

    prediction, velocity = think(future, state, noise)
    for scale in (1, 2, 3):  # other tokens from this scale on
        mixed = torch.cat([future[:, : lengths[scale - 1]], other[3][:, lengths[scale - 1] :]], dim=1)
        changed, moved = think(mixed, state, noise)
        same = lengths[scale]  # this scale itself is predicted from coarser ones alone
        assert torch.equal(changed[:, :same], prediction[:, :same])
        if scale < 3:
            assert not torch.equal(changed[:, same:], prediction[:, same:])
            assert not torch.equal(moved, velocity)  # actions see what is foreseen
    assert torch.equal(think(future, other[4], other[5])[0], prediction)  # foresight does not see actions
    one_more = torch.stack([noise, other[5]], dim=1)
    both = net.model.think(seen, valid, known, net.tokenizer.inputs(future), (state, one_more, torch.ones(3, 2)))[1]
    torch.testing.assert_close(both[:, :1], velocity, atol=1e-5, rtol=0)  # draws are strangers to each other


@torch.no_grad()
def test_fewer_scales_are_the_beginning_of_more():
    few, many = policy(foresight={"scales": 2}).eval(), policy(foresight={"scales": 3}).eval()
    assert {k: v.shape for k, v in few.state_dict().items()} == {k: v.shape for k, v in many.state_dict().items()}
    few.load_state_dict(many.state_dict())
    seen, valid, known, *_ = situation(many)
    uniform = torch.zeros(3, many.tokenizer.length(3))
    long, _ = many.model.imagine(many.tokenizer, seen, valid, known, uniform, 1, 1.0)
    short, _ = few.model.imagine(few.tokenizer, seen, valid, known, uniform[:, : few.tokenizer.length(2)], 1, 1.0)
    assert torch.equal(long[:, : few.tokenizer.length(2)], short)


def test_published_shape():
    settings = composed("f1")
    settings.understanding.weights = None
    with torch.device("meta"):
        net = build_policy(settings, SPEC)
    model, million = net.model, 1e6
    ending = model.understanding.layers[-2]  # the last layer has keys and values only: nobody reads more of it
    dropped = count(ending.mlp.parameters()) + count([ending.self_attn.q_proj.weight, ending.self_attn.o_proj.weight])
    dropped += count([ending.post_attention_layernorm.weight, torch.zeros(2048)])  # and the final norm
    assert round((count(model.understanding.parameters()) + dropped) / million) == 2923
    assert count(model.generation.layers.parameters()) == count(model.action.layers.parameters())
    assert round(count(model.action.layers.parameters()) / million) == 311
    assert net.tokenizer.length(10) == 680
    assert net.tokenizer.length(net.scales) == 30
    assert net.tokenizer.outputs == 4096
    assert model.generation.history == 679
    assert len(model.action.layers) == 18


@pytest.mark.parametrize(("name", "limit"), [("f1_small", 25), ("f1_medium", 80)])
def test_smaller_sizes(name, limit):
    with torch.device("meta"):
        net = build_policy(composed(name), SPEC)
    assert count(p for p in net.parameters() if p.requires_grad) <= limit * 1e6
    assert net.tokenizer.length(net.scales) == 30


def test_paligemma_reads_bytes_without_weights_and_tells_padding():
    net = policy(understanding=PALIGEMMA, size=28, head_width=8, norm="rms")
    words = net.model.understanding.words(["abc", "a much longer sentence"])
    assert words[0].tolist() == [97, 98, 99, *[-1] * 5]
    tokens, valid = net.model.understanding({c: torch.zeros(2, 28, 28, 3) for c in SPEC.cameras}, words)
    assert tokens.shape == (2, 2 * 4 + 8, 16)
    assert valid.sum(1).tolist() == [8 + 3, 8 + 8]
    loss, _ = net.loss(batch(2))
    loss.backward()
    assert [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None] == []
    with pytest.raises(UserError, match="set layers, heads"):
        policy(understanding=PALIGEMMA, size=28, head_width=16)
    with pytest.raises(UserError, match="not on this machine"):
        policy(understanding={**PALIGEMMA, "weights": "nowhere/at-all"}, size=28, head_width=8)


PALIGEMMA = {
    "name": "paligemma",
    "weights": None,
    "sentence": 8,
    "shape": {
        "vision_config": {
            "model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14, "hidden_size": 16, "intermediate_size": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2, "vision_use_head": False,
        },
        "text_config": {
            "model_type": "gemma", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 300,
        },
        "projection_dim": 16,
        "hidden_size": 16,
    },
}  # fmt: skip


def test_mistakes_are_one_sentence():
    for changes, words in (
        ({"foresight": {"scales": 9}}, "0 to 3"),
        ({"foresight": {"camera": "top"}}, "foresees camera 'top'"),
        ({"trained": ["hands"]}, "choose among"),
        ({"understanding": {"name": "mystic"}}, "'mystic' is unknown"),
    ):
        with pytest.raises(UserError, match=words):
            build_policy(OmegaConf.merge(config(), changes), SPEC)
