"""Published weights: our network gives the numbers of the original code (official.md), and a snapshot is read whole or not."""

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from official_snapshot import draw, features, observation, reference, snapshot, write_tokenizer
from small_gr1 import SPEC

from envs.playtable.world import STATE_ENTRIES
from policies.gr1 import foresight
from policies.gr1.official import convert, from_state_dict
from vla.checkpoint import load_policy, read_checkpoint
from vla.spec import UserError

EXACT = {"atol": 1e-5, "rtol": 0}
MASK = torch.ones(10, 10).tril()


def thin(name: str, out: torch.Tensor) -> np.ndarray:
    return (out[:, :, ::39, ::48] if name in ("static", "wrist") else out).numpy()


@pytest.fixture(scope="module")
def official():
    return from_state_dict(snapshot())


def test_windows_with_padding(official):
    out = official.from_features(**features(10), mask=MASK)
    assert {k: tuple(v.shape[2:]) for k, v in out.items()} == {
        "arm": (6,),
        "gripper": (1,),
        "static": (196, 768),
        "wrist": (196, 768),
    }
    for name, tensor in out.items():
        np.testing.assert_allclose(thin(name, tensor), reference()[f"windows.{name}"], **EXACT)


@pytest.mark.parametrize("frames", [1, 2, 5, 9, 10])
def test_windows_without_padding(official, frames):
    window = {k: v[frames - 1 : frames] for k, v in features(10).items()}
    window = {k: v if k == "language" else v[:, :frames] for k, v in window.items()}
    for name, tensor in official.from_features(**window, mask=torch.ones(1, frames, dtype=torch.bool)).items():
        np.testing.assert_allclose(thin(name, tensor), reference()[f"windows.{name}"][frames - 1 : frames, :frames], **EXACT)


def test_what_absent_frames_hold_does_not_matter_and_queries_are_seen_by_nobody(official):
    window = {k: v[3:4] for k, v in features(10).items()}
    other = {k: v.clone() for k, v in window.items()}
    for name in ("static_cls", "static_patch", "wrist_cls", "wrist_patch", "arm"):
        other[name][:, 4:] = 9.0
    one, two = (official.from_features(**w, mask=MASK[3:4]) for w in (window, other))
    for name in one:
        torch.testing.assert_close(one[name][:, :4], two[name][:, :4], **EXACT)
    model = official.policy.model
    frames, valid = torch.randn(1, 10, model.inputs, 48), torch.ones(1, 10, dtype=torch.bool)
    with torch.no_grad():
        alone, _ = model.think(frames, valid, [9], True, False)
        beside, _ = model.think(frames, valid, list(range(10)), True, True)
    torch.testing.assert_close(alone[:, 0], beside[:, 9], **EXACT)


def test_chunks_of_gr1_training():
    official = from_state_dict(snapshot("snapshot_with_chunks"))
    out = official.from_features(**features(2), mask=MASK[[9, 3]])
    assert out["arm"].shape == (2, 10, 3, 6)
    for name, tensor in out.items():
        np.testing.assert_allclose(thin(name, tensor), reference()[f"chunks.{name}"], **EXACT)
    assert official.report.used["model.position"] == "transformer.wpe.weight"
    assert official.config["resize"] == "bicubic_antialias"


@pytest.mark.parametrize(("camera", "scale"), [("static", 1.0), ("wrist", 1e-4)])
def test_targets(official, camera, scale):
    noise = draw("noise", 1, 10, 3, 224, 224)[0, :2]
    images = torch.where(torch.arange(224) < 112, noise, 0.5).permute(0, 2, 3, 1) * scale
    ours = foresight.targets(images, 16, official.config["foresight"]["epsilon"])
    np.testing.assert_allclose(ours[:, ::13, ::16].numpy(), reference()[f"targets.{camera}"], **EXACT)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A snapshot with encoders, as DDP saves it, made a checkpoint; and what was told."""
    folder = tmp_path_factory.mktemp("official")
    state = {f"module.{name}": tensor for name, tensor in snapshot("snapshot_with_encoders").items()}
    torch.save({"state_dict": state, "epoch": 3}, folder / "snapshot.pt")
    write_tokenizer(folder / "tokenizer")
    report = convert(str(folder / "snapshot.pt"), str(folder / "out"), SPEC, tokenizer=str(folder / "tokenizer"))
    return folder / "out", report


def test_from_bytes_to_actions_as_the_original_evaluation(converted):
    policy = load_policy(converted[0])
    memory, actions = policy.begin([0]), []
    for step in range(13):
        chunk, memory = policy.act(observation(step), memory)
        actions.append(chunk[0, 0])
    expected = reference()["steps"]
    np.testing.assert_allclose(np.stack(actions), np.clip(expected, -1, 1), **EXACT)
    assert policy.foresee(memory)["static"].shape == (1, 224, 224, 3)


def test_every_key_is_reported(converted):
    folder, report = converted
    names = set(snapshot("snapshot_with_encoders"))
    assert set(report.used.values()) | set(report.dead) == names
    assert not set(report.used.values()) & set(report.dead)
    assert all(
        n == "transformer.wte.weight" or n.split(".")[-1] in ("masked_bias", "bias", "logit_scale") or ".visual." in n
        for n in report.dead
    )
    assert report.unused == report.absent == report.skipped == []
    assert report.assumed == {"trunk": 12, "resampler": 4, "decoder": 16}
    told = report.lines()
    assert all(any(name in line.split() for line in told) for name in names)
    assert told[-1] == f"{len(report.used)} tensors used, {len(report.dead)} dead, 0 unused, none missing"
    source = read_checkpoint(folder).training["source"]
    assert source["used"] == report.used
    assert not [name for name in read_checkpoint(folder).tensors() if "visual" in name]


def test_an_unknown_tensor_is_reported_and_the_rest_is_used():
    report = from_state_dict({**snapshot(), "ema_decay": torch.ones(1)}).report
    assert report.unused == report.skipped == ["ema_decay"]
    assert report.absent == ["image encoder", "text encoder"]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_and_half_precision(official, prefix):
    state = {prefix + name: tensor.half() for name, tensor in snapshot().items()}
    own = official.policy.state_dict()
    for name, tensor in from_state_dict(state).policy.state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, own[name], atol=2e-3, rtol=0)


@pytest.mark.parametrize("kind", ["snapshot_with_chunks", "snapshot_with_encoders"])
def test_every_tensor_that_is_missing_or_misshapen_is_one_sentence(kind):
    """Any of them (some are tried), but for those whose absence says something: chunks, positions of tokens."""
    state = snapshot(kind)
    used = sorted(set(from_state_dict(state).report.used.values()) - {"action_chunk_queries.weight", "transformer.wpe.weight"})
    for name in used[:: len(used) // 12]:
        rest = {k: v for k, v in state.items() if k != name}
        with pytest.raises(UserError, match=rf"^the snapshot lacks '{name}' \(\d+ in all\)[^\n]*$"):
            from_state_dict(rest)
        with pytest.raises(UserError, match=r"^[^\n]*(has shape|wide, which)[^\n]*$"):
            from_state_dict({**state, name: torch.cat([state[name], state[name], state[name]], dim=-1)})


def test_files_of_encoders_join_the_snapshot(tmp_path, converted):
    state = snapshot("snapshot_with_encoders")
    parts = {
        prefix: {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        for prefix in ("model_mae.", "model_clip.")
    }
    torch.save({"model": parts["model_mae."]}, tmp_path / "mae.pth")
    torch.save(parts["model_clip."], tmp_path / "clip.pt")
    torch.save({"state_dict": {k: v for k, v in state.items() if not k.startswith(tuple(parts))}}, tmp_path / "bare.pt")
    torch.save(state, tmp_path / "whole.pt")
    with initialize_config_module("conf", version_base="1.3"):
        files = [
            f"{k}={tmp_path / v}"
            for k, v in (("mae", "mae.pth"), ("clip", "clip.pt"), ("checkpoint", "bare.pt"), ("out", "out"))
        ]
        config = compose("convert", overrides=["source=gr1", *files])
    report = instantiate(config, _convert_="all")
    assert report.used == converted[1].used
    ours, theirs = (read_checkpoint(f).tensors() for f in (tmp_path / "out", converted[0]))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert read_checkpoint(tmp_path / "out").spec.state == STATE_ENTRIES
    with pytest.raises(UserError, match=r"has an encoder model_mae\.\* of its own: leave out mae="):
        convert(str(tmp_path / "whole.pt"), str(tmp_path / "out"), SPEC, mae=str(tmp_path / "mae.pth"))


class Thing:
    pass


def write(path, what):
    if what == "another object":
        torch.save({"state_dict": snapshot(), "config": Thing()}, path)
    elif what == "half a file":
        torch.save(snapshot(), path)
        path.write_bytes(path.read_bytes()[:5000])
    elif what == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1")
    elif what == "a list":
        torch.save([1, 2], path)
    elif what == "no tensor":
        torch.save({**snapshot(), "lr": 0.1}, path)
    elif what == "nothing of GR-1":
        torch.save({"weight": torch.ones(3)}, path)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("another object", "more than tensors"),
        ("half a file", "is damaged"),
        ("text", "is damaged"),
        ("a list", "holds no state dict but a list"),
        ("no tensor", "'lr' of the snapshot is a float, not a tensor"),
        ("nothing of GR-1", "lacks 'embed_timestep.weight'"),
        ("nothing", "is not a file"),
    ],
)
def test_what_is_no_snapshot_is_one_sentence_and_writes_nothing(tmp_path, what, message):
    write(tmp_path / "file.pt", what)
    with pytest.raises(UserError, match=message) as raised:
        convert(str(tmp_path / "file.pt"), str(tmp_path / "out"), SPEC)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_heads_that_no_tensor_tells(official):
    other = from_state_dict(snapshot(), heads={"trunk": 6})
    assert other.config["heads"] == 6
    window = features(1)
    assert not torch.allclose(*(o.from_features(**window, mask=MASK[-1:])["arm"] for o in (other, official)), atol=1e-3)
    with pytest.raises(UserError, match="the trunk is 48 wide, which 7 heads do not divide"):
        from_state_dict(snapshot(), heads={"trunk": 7})
    longer = {k: v if k == "language" else torch.cat([v, v[:, :1]], dim=1) for k, v in window.items()}
    with pytest.raises(UserError, match="11 frames but this model knows 10 places"):
        official.from_features(**longer, mask=torch.ones(1, 11))


def test_a_model_without_encoders_says_so(official):
    with pytest.raises(UserError, match="without its text encoder"):
        official.policy.act(observation(0), official.policy.begin([0]))
