"""The pyramid of tokens: round trips, prefixes, learning, measures."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_f1 import SPEC, pictures, tokenizer_config, tokenizer_policy

from policies.f1.reconstruction import psnr
from policies.f1.tokenizer import build_tokenizer, from_signed, to_signed
from vla.checkpoint import build_policy, load_policy, save_checkpoint
from vla.images import ssim
from vla.spec import UserError

KINDS = ("vq", "vae")


def made(kind: str):
    torch.manual_seed(0)
    return build_tokenizer(tokenizer_config(kind)).eval()


def test_pixels_there_and_back():
    images = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(-1, -1, -1, 3)
    assert torch.equal(from_signed(to_signed(images)), images)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_fewer_scales_are_the_first_of_all_tokens(kind):
    net = made(kind)
    images = to_signed(pictures(3))
    every = net.tokens(images)
    assert every.shape[:2] == (3, 1 + 4 + 16)
    for scales in (1, 2, 3):
        assert torch.equal(net.tokens(images, scales), every[:, : net.length(scales)])
        assert net.pixels(every[:, : net.length(scales)]).shape == images.shape


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_known_before_a_scale_depends_on_coarser_tokens_alone(kind):
    net = made(kind)
    tokens, others = net.tokens(to_signed(pictures(4, 0))), net.tokens(to_signed(pictures(4, 1)))
    for scales in (1, 2):
        cut = net.length(scales)
        mixed = torch.cat([tokens[:, :cut], others[:, cut:]], dim=1)
        upto = net.length(scales + 1) - 1  # the first scale has no input
        assert torch.equal(net.inputs(mixed)[:, :upto], net.inputs(tokens)[:, :upto])
        torch.testing.assert_close(net.next_inputs(tokens[:, :cut]), net.inputs(tokens)[:, cut - 1 : upto])
    assert net.inputs(tokens[:, :1]).shape == (4, 0, 8)


@torch.no_grad()
def test_all_scales_of_continuous_tokens_give_back_the_map_and_the_codes_of_vq_come_ever_nearer():
    vae = made("vae")
    images = to_signed(pictures(2))
    z = vae._encode(images)
    torch.testing.assert_close(vae._sums(vae.tokens(images))[-1], z, atol=1e-5, rtol=0)
    vq = made("vq")
    vectors = vq._encode(images).flatten(2).transpose(1, 2)
    nearest = (vectors[:, :, None] - vq.codebook).square().sum(-1).argmin(-1)
    assert torch.equal(vq.snap(vectors), nearest)
    assert torch.equal(vq.snap(vq.vectors(nearest)), nearest)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_learns_and_goes_through_a_checkpoint(kind, tmp_path):
    net = tokenizer_policy(kind)
    net.truncate = 0.0
    batch = {f"observation.images.{c}": pictures(16, i, size)[:, None] for i, (c, (size, _)) in enumerate(SPEC.cameras.items())}
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], 1e-2)
    told = []
    for _ in range(40):
        loss, parts = net.loss(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        told.append({k: float(v) for k, v in parts.items()})
    assert told[-1]["psnr"] > told[0]["psnr"] + 1.5
    assert told[-1]["ssim"] > told[0]["ssim"]
    assert net.tokenizer.steps == 40
    if kind == "vq":
        assert told[-1]["use"] > 0.5
    config = {"_target_": "policies.f1.reconstruction.TokenizerPolicy", **tokenizer_policy.config(kind)}
    again = load_policy(save_checkpoint(tmp_path / "a", net, config, {}))
    images = to_signed(pictures(3, 5))
    with torch.no_grad():
        assert torch.equal(again.tokenizer.tokens(images), net.eval().tokenizer.tokens(images))


def test_unused_codes_are_moved_onto_the_data_and_used_ones_stay():
    net = made("vq")
    vectors = torch.randn(4, 50, 8)
    net._renew(torch.zeros(4, 50, dtype=torch.long), vectors)  # at first every code but the one in use is new
    assert torch.cdist(net.codebook[1:], vectors.flatten(0, 1)).amin(1).max() < 0.01
    before = net.codebook.clone()
    for _ in range(200):
        net._renew(torch.zeros(4, 50, dtype=torch.long), torch.randn(4, 50, 8))
    assert torch.equal(net.codebook[0], before[0])
    assert (net.codebook[1:] != before[1:]).any(1).all()


def test_choosing_a_code_follows_the_probabilities():
    net = made("vq")
    chances = torch.tensor([0.5, 0.25, 0.15, 0.1])
    logits = torch.full((1, 4000, net.outputs), -math.inf)
    logits[..., [3, 9, 5, 7]] = chances.log()
    draws = torch.rand(1, 4000, generator=torch.Generator().manual_seed(0))
    assert set(net.choose(logits, draws, 1, 1.0).unique().tolist()) == {3}
    drawn = net.choose(logits, draws, net.outputs, 1.0)
    for code, chance in zip([3, 9, 5, 7], chances, strict=True):
        assert abs((drawn == code).float().mean() - chance) < 0.03
    assert set(net.choose(logits, draws, net.outputs, 0.7).unique().tolist()) == {3, 9}
    assert set(net.choose(logits, draws, 3, 1.0).unique().tolist()) == {3, 9, 5}


def test_measures_know_equal_pictures_noise_and_blur():
    x = to_signed(pictures(4, 0, 32))
    assert torch.allclose(ssim(x, x), torch.ones(4))
    assert (psnr(x, x) == 100).all()
    torch.testing.assert_close(psnr(x, (x + 0.02)), torch.full((4,), 40.0), atol=1e-2, rtol=0)
    blurred, noisy = F.avg_pool2d(x, 5, 1, 2), x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert (ssim(x, blurred) < 0.995).all()
    assert (ssim(x, noisy) < 0.9).all()
    assert (ssim(x, -x) < 0.1).all()


def test_mistakes_are_one_sentence():
    with pytest.raises(UserError, match="end at the encoder's map, 4 on a side"):
        build_tokenizer({**tokenizer_config("vq"), "scales": [1, 2, 3]})
    with pytest.raises(UserError, match="'pca' is unknown"):
        build_tokenizer({"name": "pca"})
    with pytest.raises(UserError, match="are not among"):
        build_policy(
            {
                "_target_": "policies.f1.reconstruction.TokenizerPolicy",
                **tokenizer_policy.config("vq"),
                "cameras": {"top": {"pad": 0}},
            },
            SPEC,
        )
