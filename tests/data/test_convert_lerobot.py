import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from calvin_folder import play
from hydra import compose, initialize_config_module

from vla.checkpoint import build_policy
from vla.data.convert import lerobot, to_lerobot  # to_lerobot first tells huggingface_hub to stay offline
from vla.data.store import Dataset, check
from vla.data.windows import Windows
from vla.spec import ACTION, ENVIRONMENT_STATE, STATE, UserError

from lerobot.configs.types import FeatureType  # isort: skip
from lerobot.datasets.lerobot_dataset import LeRobotDataset  # isort: skip
from lerobot.policies.act.configuration_act import ACTConfig  # isort: skip
from lerobot.policies.act.modeling_act import ACTPolicy  # isort: skip
from lerobot.policies.act.processor_act import make_act_pre_post_processors  # isort: skip
from lerobot.utils.feature_utils import dataset_to_policy_features  # isort: skip

DATA = "data/chunk-000/file-000.parquet"


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    cameras = "{static:[48,48],wrist:[32,40]}"
    return play(tmp_path_factory.mktemp("play") / "play", 90, "manner.tasks=[1,1]", cameras=cameras)


@pytest.fixture(scope="module")
def pictures(played, tmp_path_factory):
    out = tmp_path_factory.mktemp("lerobot") / "pictures"
    assert to_lerobot.convert(played.path, out, form="image", environment_state=True).made["frames"] == played.num_frames
    return out


@pytest.fixture(scope="module")
def film(played, tmp_path_factory):
    out = tmp_path_factory.mktemp("lerobot") / "film"
    return out, to_lerobot.convert(played.path, out)


@pytest.fixture
def copy(pictures, tmp_path):
    return shutil.copytree(pictures, tmp_path / "copy")


def segments(dataset):
    return [(s["start"], s["end"], dataset.tasks[s["task"]], dataset.instructions[s["instruction"]]) for s in dataset.segments]


def test_pictures_there_and_back_are_exact(played, pictures, tmp_path):
    summary = lerobot.convert(pictures, tmp_path / "out")
    assert (summary.made["episodes"], dict(summary.skipped)) == (played.num_episodes, {})
    dataset = check(tmp_path / "out")
    assert dataset.spec == played.spec
    every = np.arange(played.num_frames)
    for camera in ("static", "wrist"):
        np.testing.assert_array_equal(dataset.images(camera, every), played.images(camera, every))
    for name in (STATE, ACTION, ENVIRONMENT_STATE):
        np.testing.assert_array_equal(dataset.vectors[name], played.vectors[name])
    assert segments(dataset) == segments(played)
    assert dataset.scenes == played.scenes
    np.testing.assert_array_equal(dataset.episode_ends, played.episode_ends)
    assert lerobot.convert(pictures, tmp_path / "out").made == summary.made  # all is there
    assert Dataset(tmp_path / "out").digest == dataset.digest


def test_film_has_the_error_that_it_states(played, film, tmp_path):
    folder, summary = film
    assert [note.split(":")[0] for note in summary.notes] == ["video of static", "video of wrist"]
    lerobot.convert(folder, tmp_path / "out")
    dataset, every = check(tmp_path / "out"), np.arange(played.num_frames)
    for camera, note in zip(("static", "wrist"), summary.notes, strict=True):
        error = np.abs(dataset.images(camera, every).astype(int) - played.images(camera, every)).mean()
        stated = float(note.split("mean absolute error ")[1].split()[0])
        assert error < 1.3 * stated + 0.5 < 8
    np.testing.assert_array_equal(dataset.vectors[ACTION], played.vectors[ACTION])


@pytest.mark.parametrize("form", ["pictures", "film"])
def test_lerobot_trains_act_on_what_we_write(form, pictures, film, played):
    root = pictures if form == "pictures" else film[0]
    dataset = LeRobotDataset(
        "local/test", root=root, delta_timestamps={ACTION: [i / 30 for i in range(4)]}, video_backend="pyav"
    )
    assert (len(dataset), dataset.num_episodes) == (played.num_frames, played.num_episodes)
    assert dataset[0]["task"] == played.instructions[played.segments[0]["instruction"]]
    np.testing.assert_allclose(dataset.meta.stats[STATE]["mean"], played.vectors[STATE].mean(0), atol=1e-4)
    features = dataset_to_policy_features(dataset.meta.features)
    outputs = {k: f for k, f in features.items() if f.type is FeatureType.ACTION}
    config = ACTConfig(
        input_features={k: f for k, f in features.items() if k not in outputs}, output_features=outputs, device="cpu",
        chunk_size=4, n_action_steps=4, dim_model=32, n_heads=2, dim_feedforward=32, n_encoder_layers=1, n_vae_encoder_layers=1,
        pretrained_backbone_weights=None, push_to_hub=False,
    )  # fmt: skip
    policy = ACTPolicy(config)
    prepare, _ = make_act_pre_post_processors(config, dataset_stats=dataset.meta.stats)
    items = [dataset[i] for i in (0, 5)]
    batch = {
        k: torch.stack([i[k] for i in items]) if isinstance(v, torch.Tensor) else [i[k] for i in items]
        for k, v in items[0].items()
    }
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-4)
    loss, _ = policy.forward(prepare(batch))
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)


def test_gr1_trains_on_what_lerobot_writes(copy, played, tmp_path):
    (copy / "meta/vla.json").unlink()  # what is left is LeRobot's own
    lerobot.convert(copy, tmp_path / "plain")
    plain = Dataset(tmp_path / "plain").spec
    assert [e.name for e in plain.state] == [e.name for e in played.spec.state]
    assert (plain.control_hz, plain.action_kind) == (30.0, "joints")
    lerobot.convert(copy, tmp_path / "out", like=played.path)
    dataset = Dataset(tmp_path / "out")
    assert dataset.spec == played.spec
    assert {text for *_, text in segments(dataset)} == {text for *_, text in segments(played)}
    with initialize_config_module("conf", version_base="1.3"):
        policy = build_policy(compose("train", ["policy=gr1_small"]).policy, dataset.spec)
    windows = Windows(
        dataset, batch_size=2, history=policy.window, history_stride=policy.stride, foresight_steps=policy.foresight_steps,
        chunk=policy.horizon, image_size=policy.size,
    )  # fmt: skip
    loss, _ = policy.loss(windows.batch(0))
    loss.backward()
    torch.optim.AdamW(p for p in policy.parameters() if p.requires_grad).step()
    assert torch.isfinite(loss)


def rewrite(path, change):
    table = pq.read_table(path)
    pq.write_table(change(table), path)


def replaced(table, name, values):
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def split_data(root):
    """One data file per episode, so that one can be spoilt."""
    table = pq.read_table(root / DATA)
    for path in (root / "meta/episodes").glob("*/*.parquet"):
        rewrite(path, lambda t: replaced(t, "data/file_index", t["episode_index"].to_pylist()))
    for episode in set(table["episode_index"].to_pylist()):
        rows = table.filter(pa.compute.field("episode_index") == episode)
        pq.write_table(rows, root / DATA.replace("000.parquet", f"{episode:03d}.parquet"))


@pytest.mark.parametrize(
    ("fault", "spoil"),
    [
        ("lacks the column action", lambda t: t.drop_columns([ACTION])),
        ("something else than numbers in action", lambda t: replaced(t, ACTION, ["text"] * t.num_rows)),
        ("has action of (3,) numbers where 7", lambda t: replaced(t, ACTION, [[1.0, 2.0, 3.0]] * t.num_rows)),
        ("not finite", lambda t: replaced(t, STATE, [[float("nan")] * 15] * t.num_rows)),
        ("frames of episode 0 where", lambda t: t.slice(2)),
        ("has no frames of episode 0", lambda t: t.slice(0, 0)),
        ("picture", lambda t: replaced(t, "observation.images.static", [{"bytes": b"no", "path": ""}] * t.num_rows)),
        ("climbs out", lambda t: replaced(t, "observation.images.static", [{"bytes": None, "path": "../x"}] * t.num_rows)),
        ("a task_index that", lambda t: replaced(t, "task_index", [99] * t.num_rows)),
    ],
)
def test_damaged_data_is_named_and_the_rest_converted(copy, played, tmp_path, fault, spoil):
    split_data(copy)
    rewrite(copy / DATA, spoil)
    summary = lerobot.convert(copy, tmp_path / "out")
    assert list(summary.skipped) == ["episode 0"]
    assert DATA in summary.skipped["episode 0"]
    assert fault in summary.skipped["episode 0"]
    assert summary.made["episodes"] == played.num_episodes - 1 > 0
    check(tmp_path / "out")


def test_damaged_tables(copy, tmp_path):
    split_data(copy)
    (copy / DATA).write_bytes((copy / DATA).read_bytes()[:-20])
    assert "cannot be read" in lerobot.convert(copy, tmp_path / "a").skipped["episode 0"]
    (copy / DATA).unlink()
    assert "is missing" in lerobot.convert(copy, tmp_path / "b").skipped["episode 0"]

    episodes = next((copy / "meta/episodes").glob("*/*.parquet"))
    rewrite(episodes, lambda t: pa.concat_tables([t, t.slice(1, 1)]))
    rewrite(episodes, lambda t: replaced(t, "length", [0, *t["length"].to_pylist()[1:]]))
    skipped = lerobot.convert(copy, tmp_path / "c").skipped
    assert skipped == {"episode 0": "is empty", f"{episodes.relative_to(copy)} episode 1": "is there twice"}


def test_damaged_descriptions_and_films(copy, film, played, tmp_path):
    info = json.loads((copy / "meta/info.json").read_text())
    (copy / "meta/info.json").write_text(json.dumps(info | {"data_path": "../{chunk_index}/{file_index}"}))
    with pytest.raises(UserError, match="climbs out"):
        lerobot.convert(copy, tmp_path / "d")
    (copy / "meta/info.json").write_text(json.dumps(info | {"data_path": "{chunk_index.__class__}{0}"}))
    with pytest.raises(UserError, match="no usable data_path"):
        lerobot.convert(copy, tmp_path / "e")
    (copy / "meta/tasks.parquet").unlink()
    with pytest.raises(UserError, match=r"tasks.parquet is missing"):
        lerobot.convert(copy, tmp_path / "f")
    (copy / "meta/info.json").write_text("{")
    with pytest.raises(UserError, match=r"info.json is not that of a LeRobotDataset"):
        lerobot.convert(copy, tmp_path / "g")

    spoilt = shutil.copytree(film[0], tmp_path / "film")
    clip = next(spoilt.glob("videos/observation.images.wrist/*/*.mp4"))
    whole = clip.read_bytes()
    clip.write_bytes(whole[: len(whole) * 2 // 3])
    summary = lerobot.convert(spoilt, tmp_path / "h")
    assert {fault.split(" ")[0] for fault in summary.skipped.values()} == {str(clip.relative_to(spoilt))}
    assert summary.made["episodes"] + len(summary.skipped) == played.num_episodes
    clip.write_bytes(whole.replace(b"moov", b"junk"))  # without its index
    with pytest.raises(UserError, match=r"wrist/chunk-000/file-000.mp4 cannot be decoded"):
        lerobot.convert(spoilt, tmp_path / "i")


def test_mistakes_are_told(played, pictures, tmp_path):
    with pytest.raises(UserError, match="exists already"):
        to_lerobot.convert(played.path, pictures)
    with pytest.raises(UserError, match="form is 'gif'"):
        to_lerobot.convert(played.path, tmp_path / "x", form="gif")
    with pytest.raises(UserError, match="check path"):
        lerobot.convert(tmp_path, tmp_path / "x")
