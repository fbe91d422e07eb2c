import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from pointworld import GOALS, near

from vla.collect import Bursts, Manner, collect, plan
from vla.data.store import Dataset
from vla.spec import ACTION, ENVIRONMENT_STATE, STATE, UserError, image_key


def config(out, **changes):
    manner = dataclasses.asdict(Manner()) | changes.pop("manner", {})
    world = {"_target_": "pointworld.PointWorld", "num_worlds": 4, "scene": "AB"}
    plain = {
        "env": {"world": world, "play": {"_target_": "pointworld.PointPlay"}},
        "policy": {"_target_": "pointworld.PointPolicy", "wrong": 0.05},
        "executor": {"_target_": "vla.executor.RecedingHorizon", "execute": 2},
        **{"out": str(out), "frames": 900, "unit_frames": 150, "seed": 3, "workers": 1, "manner": manner},
        **{"learner": None, "learner_steps": [0, 8], "execute": 2},
    }
    return OmegaConf.merge(plain, changes)


def episodes(out):
    """Everything in a dataset by episode seed."""
    data = Dataset(str(out))
    found = {}
    for k, (start, end) in enumerate(zip(data.episode_starts, data.episode_ends, strict=True)):
        segments = data.segments[data.segments["episode"] == k]
        found[int(data.episode_seeds[k])] = {
            "scene": data.scenes[k],
            "segments": [
                (int(s["start"] - start), int(s["end"] - start), data.tasks[s["task"]], data.instructions[s["instruction"]])
                for s in segments
            ],
            STATE: data.vectors[STATE][start:end],
            ACTION: data.vectors[ACTION][start:end],
            "static": data.images("static", np.arange(start, end)),
        }
    assert len(found) == data.num_episodes  # no seed twice
    return found


def assert_same(a, b):
    assert a.keys() == b.keys()
    for seed in a:
        for name, value in a[seed].items():
            np.testing.assert_array_equal(value, b[seed][name], err_msg=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("play") / "whole"
    list(collect(config(out)))
    return out


def test_the_same_is_collected_by_any_number_of_processes_and_worlds(whole, tmp_path):
    list(collect(config(tmp_path / "two", workers=2)))
    assert len(Dataset(str(tmp_path / "two")).parts) == 2
    assert_same(episodes(tmp_path / "two"), episodes(whole))
    list(collect(config(tmp_path / "wide", env={"world": {"num_worlds": 2}})))
    assert_same(episodes(tmp_path / "wide"), episodes(whole))


def test_a_killed_run_goes_on_and_writes_nothing_twice(whole, tmp_path):
    for count in (2, 4, 3):
        steps = collect(config(tmp_path / "cut"))
        list(itertools.islice(steps, count))
        steps.close()
    assert 0 < Dataset(str(tmp_path / "cut")).num_frames < 900
    list(collect(config(tmp_path / "cut")))
    assert_same(episodes(tmp_path / "cut"), episodes(whole))
    frames, solved = next(collect(config(tmp_path / "cut")))
    assert frames == Dataset(str(whole)).num_frames >= 900
    assert solved == len(Dataset(str(whole)).segments)
    assert list(collect(config(tmp_path / "cut")))[1:] == []


def test_a_killed_run_at_a_url_goes_on_too(whole):
    """Where nothing looks like a file of this machine."""
    out = "memory://bucket/cut"
    steps = collect(config(out))
    list(itertools.islice(steps, 3))
    steps.close()
    assert 0 < Dataset(out).num_frames < 900
    list(collect(config(out)))
    assert_same(episodes(out), episodes(whole))


def test_segments_are_the_tasks_that_were_solved(whole):
    data = episodes(whole)
    assert {e["scene"] for e in data.values()} == {"A", "B"}
    for episode in data.values():
        states = episode[STATE]
        assert np.abs(np.diff(states, axis=0)).max() <= 0.1 + 1e-6  # never reset within
        assert episode["segments"] == sorted(episode["segments"])
        for (_, end, *_), (start, *_) in itertools.pairwise(episode["segments"]):
            assert end == start
        for start, end, task, sentence in episode["segments"]:
            assert sentence.split()[-1] == task.removeprefix("reach_")
            assert not near(states[start], task)
            close = [near(s, task) for s in states[start:end]]
            assert sum(close) <= 4  # solved at the last step, or up to 4 steps before
            colour = np.array(GOALS[task.removeprefix("reach_")])
            after = states[end] if end < len(states) else states[end - 1]
            assert np.hypot(*(after - colour)) < 0.1 + 5 * 0.1


def test_overrun_sets_how_far_a_task_goes_on_after_success(tmp_path):
    for share in (0.0, 1.0):
        out = tmp_path / str(share)
        list(collect(config(out, frames=300, manner={"overrun": share, "noisy": 0.0})))
        late = [
            sum(near(s, task) for s in episode[STATE][start:end])
            for episode in episodes(out).values()
            for start, end, task, _ in episode["segments"]
        ]
        assert len(late) > 5
        assert (max(late) == 0) if share == 0 else (max(late) >= 1)


def test_labels_are_clean_while_the_world_feels_the_bursts(tmp_path):
    for noisy in (0.0, 1.0):
        out = tmp_path / str(noisy)
        list(collect(config(out, frames=300, policy={"noise": 0.0, "wrong": 0.0}, manner={"noisy": noisy, "overrun": 0.0})))
        bent = total = 0
        for episode in episodes(out).values():
            for start, end, task, _ in episode["segments"]:
                goal = np.array(GOALS[task.removeprefix("reach_")])
                for t in range(start, end - 1):
                    label, here, after = episode[ACTION][t, :2], episode[STATE][t], episode[STATE][t + 1]
                    if t == start:  # a fresh plan: this label is exactly the policy's answer to what it saw
                        seen = np.argwhere(episode["static"][t, :, :, 0])[0] / 15
                        np.testing.assert_allclose(label, np.clip((goal - seen) * 5, -0.5, 0.5), atol=1e-5)
                    bent += not np.allclose(np.clip(here + 0.1 * label, 0, 1), after, atol=1e-5)
                    total += 1
        assert (bent == 0) if noisy == 0 else (0.1 < bent / total < 0.6)


def test_play_from_another_seed_is_not_mixed_in(whole):
    with pytest.raises(UserError, match=r"an episode of seed 3, unit \d, scene \w, which this command \(seed=4\)"):
        next(collect(config(whole, seed=4)))


def test_a_dataset_in_one_piece_is_left_alone(tmp_path):
    (tmp_path / "zarr.json").write_text("{}")
    with pytest.raises(UserError, match="in one piece"):
        next(collect(config(tmp_path)))


@given(frames=st.integers(1, 10**6), unit=st.integers(10**3, 10**5), scenes=st.sampled_from(["A", "ABC", "ABCD"]))
def test_units_share_the_frames_evenly_among_the_scenes(frames, unit, scenes):
    units = plan(frames, unit, scenes)
    assert frames <= sum(u.quota for u in units) < frames + len(units)
    assert [sum(u.scene == s for u in units) for s in scenes] == [len(units) // len(scenes)] * len(scenes)
    assert [u.number for u in units] == list(range(len(units)))


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_bursts_are_constant_offsets_of_the_pose_alone(seed):
    bursts = Bursts(np.random.default_rng(seed), Manner(burst=0.2))
    label = np.array([*[0.0] * 6, -1.0], np.float32)
    bent = np.array([bursts(label) for _ in range(400)])
    assert (bent[:, 6] == -1).all()
    assert np.abs(bent).max() <= 1
    noisy = (bent[:, :6] != 0).any(1)
    assert 0.2 < noisy.mean() < 0.8
    runs = [len(list(group)) for _, group in itertools.groupby(map(tuple, bent[noisy][:, :6]))]
    assert max(runs[:-1]) <= 8
    assert min(runs[:-1]) >= 3
    assert not label[:6].any()


def test_what_is_recorded_is_what_the_spec_names(whole):
    data = Dataset(str(whole))
    assert ENVIRONMENT_STATE not in data.vectors
    assert data.images("wrist", np.arange(3)).shape == (3, 16, 16, 3)
    assert image_key("static") in [image_key(c) for c in data.spec.cameras]
    assert data.provenance[0]["config"]["seed"] == 3
    assert data.provenance[0]["versions"]["python"]
