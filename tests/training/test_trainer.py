"""The trainer on a tiny real problem: it learns, it repeats itself bit by bit, and a kill leaves no trace."""

import json
import multiprocessing
import random
import time

import pytest
import torch
from toy import Finder, Squares, make_trainer

from vla.spec import UserError
from vla.training.loader import prefetch
from vla.training.optimizer import adamw
from vla.training.resume import begin, checkpoints, require_same_config

STEPS = 300


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def files(folder):
    """The bytes of the weights and of the state in the newest checkpoint."""
    newest = checkpoints(folder)[-1]
    assert newest.name == f"checkpoint-{STEPS:08d}"
    return [(newest / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "uninterrupted"
    torch.set_num_threads(1)
    make_trainer(out, steps=STEPS).fit()
    return out


def test_it_learns_and_leaves_a_curve(uninterrupted):
    training = json.loads((uninterrupted / "last" / "training.json").read_text())
    losses = [entry["train/loss"] for entry in training["history"] if "train/loss" in entry]
    held_out = [entry["validation/loss"] for entry in training["history"] if "validation/loss" in entry]
    assert losses[-1] < 0.4 * losses[0]
    assert held_out[-1] < 0.6 * held_out[0]
    assert training["step"] == STEPS
    assert training["data"] == "none"
    assert training["versions"]["torch"]
    assert training["cpu_seconds"] > 0
    assert (uninterrupted / "first_batch.png").stat().st_size > 1000
    assert list((uninterrupted / "tensorboard").iterdir())
    assert len(checkpoints(uninterrupted)) == 2


def test_same_seed_same_bytes_other_seed_other_bytes(uninterrupted, tmp_path):
    make_trainer(tmp_path / "again", steps=STEPS).fit()
    make_trainer(tmp_path / "other", steps=STEPS, seed=1).fit()
    assert files(tmp_path / "again") == files(uninterrupted)
    assert files(tmp_path / "other")[0] != files(uninterrupted)[0]


def test_looking_on_the_way_changes_nothing(uninterrupted, tmp_path):
    looks = {"log_every": 7, "save_every": 33, "validate_every": 13, "picture_every": 60, "keep": 5}
    make_trainer(tmp_path / "run", steps=STEPS, **looks).fit()
    assert files(tmp_path / "run") == files(uninterrupted)
    assert len(list((tmp_path / "run/foresight").iterdir())) == 5


def train(out):
    torch.set_num_threads(1)
    make_trainer(out, steps=STEPS, save_every=5, log_every=100).fit()


def test_killed_at_any_moment_it_goes_on_bit_by_bit(uninterrupted, tmp_path):
    processes = multiprocessing.get_context("forkserver")  # it imports once what all the children need
    processes.set_forkserver_preload(["vla.training.setup", "torch._dynamo"])
    places = []
    for _ in range(5):
        child = processes.Process(target=train, args=(tmp_path,))
        child.start()
        before, patience = checkpoints(tmp_path), time.monotonic() + 60
        while checkpoints(tmp_path) == before and child.is_alive() and time.monotonic() < patience:
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.2))
        child.kill()
        child.join()
        places.append(checkpoints(tmp_path)[-1].name)
        if child.exitcode == 0:
            break
    assert places[0] < f"checkpoint-{STEPS:08d}", "the kill came too late to mean anything"
    train(tmp_path)
    assert files(tmp_path) == files(uninterrupted)
    assert json.loads((tmp_path / "last/training.json").read_text())["step"] == STEPS


def test_a_finished_run_is_left_as_it_is(uninterrupted, capsys):
    before = files(uninterrupted)
    make_trainer(uninterrupted, steps=STEPS).fit()
    assert "nothing to do" in capsys.readouterr().out
    assert files(uninterrupted) == before


def test_the_commits_of_a_run_are_those_at_which_it_was_started(tmp_path, monkeypatch):
    def commits(now, **changes):
        monkeypatch.setattr("vla.training.logging._commit", lambda: now)
        trainer = make_trainer(tmp_path, save_every=10, **changes)
        monkeypatch.setattr("vla.training.logging._commit", lambda: "a later one")  # somebody commits while it trains
        trainer.fit()
        training = json.loads((tmp_path / "last/training.json").read_text())
        return training["commit"], training.get("commits")

    assert commits("first", steps=20) == ("first", None)
    assert commits("first", steps=30) == ("first", None)
    assert commits("second", steps=40) == ("first", ["first", "second"])
    assert commits("second", steps=50) == ("first", ["first", "second"])
    assert commits("first", steps=60) == ("first", ["first", "second", "first"])


def test_a_time_budget_ends_and_says_that_it_is_not_reproducible(tmp_path):
    trainer = make_trainer(tmp_path, cpu_seconds=0.5)
    trainer.fit()
    assert trainer.step > 10
    assert 0.5 <= trainer.cpu_seconds < 5
    assert "not give the same bits" in json.loads((tmp_path / "last/training.json").read_text())["budget"]


def test_accumulated_batches_are_one_larger_batch(tmp_path):
    class Larger:
        def batch(self, number):
            first, second = Squares(1).batch(2 * number), Squares(1).batch(2 * number + 1)
            return {
                key: value + second[key] if isinstance(value, list) else torch.cat([value, second[key]])
                for key, value in first.items()
            }

    trainers = [make_trainer(tmp_path / "a", steps=5, accumulate=2), make_trainer(tmp_path / "b", steps=5)]
    trainers[1].train = Larger()
    for trainer in trainers:
        trainer.policy.net[3].p = 0.0
        trainer.fit()
    for a, b in zip(*(trainer.policy.parameters() for trainer in trainers), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_rollouts_on_the_way_see_the_averaged_weights(tmp_path):
    seen = []
    trainer = make_trainer(tmp_path, steps=20, evaluate_every=10)

    def evaluate(policy):
        seen.append(torch.equal(policy.net[1].weight, trainer.ema.average["net.1.weight"]) and not policy.training)
        return {"length": 3.0}

    trainer.evaluate = evaluate
    trainer.fit()
    assert seen == [True, True]
    assert [e["rollout/length"] for e in trainer.history if "rollout/length" in e] == [3.0, 3.0]


def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(tmp_path):
    trainer = make_trainer(tmp_path, steps=40, save_every=10, log_every=15)
    honest = trainer.policy.loss
    trainer.policy.loss = lambda batch: (honest(batch)[0] * (float("nan") if trainer.step == 12 else 1), {})
    with pytest.raises(FloatingPointError, match=r"lower trainer\.learning_rate"):
        trainer.fit()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-00000010"]


def test_decay_is_for_matrices_only():
    groups = adamw(Finder(), 1e-3, 0.5, torch.device("cpu")).param_groups
    assert [(group["weight_decay"], {p.ndim for p in group["params"]}) for group in groups] == [(0.5, {2}), (0.0, {1})]


def test_prefetch_gives_its_share_in_order_and_passes_errors_on():
    class Numbers:
        def batch(self, number):
            if number > 10:
                raise UserError("the data end at 10: take less.")
            return {"number": torch.tensor(number)}

    batches = prefetch(Numbers(), 1, 3, torch.device("cpu"))
    assert [next(batches)["number"].item() for _ in range(4)] == [1, 4, 7, 10]
    with pytest.raises(UserError, match="end at 10"):
        next(batches)


def test_a_changed_config_is_told_by_its_key(tmp_path):
    config = {"policy": {"width": 3, "cameras": ["a"]}, "trainer": {"steps": 5, "clip": 1.0}, "seed": 0, "out": "x"}
    require_same_config(tmp_path / "run", config)
    begin(tmp_path / "run", config)
    begin(tmp_path / "run", {**config, "seed": 3})  # the first one counts
    tmp_path = tmp_path / "run"
    require_same_config(tmp_path, config)
    require_same_config(tmp_path, {**config, "trainer": {"steps": 9, "clip": 1.0}, "out": "y"})
    with pytest.raises(UserError, match=r"policy\.width was 3 .* and is 4 now"):
        require_same_config(tmp_path, {**config, "policy": {"width": 4, "cameras": ["a"]}})
    with pytest.raises(UserError, match=r"trainer\.clip was 1\.0 .* and is None"):
        require_same_config(tmp_path, {**config, "trainer": {"steps": 5}})
