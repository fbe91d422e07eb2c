"""A policy knows from its checkpoint which instructions it was trained on."""

from small_gr1 import config, policy

from envs.playtable.language import instructions
from envs.playtable.tasks import TASKS
from vla.checkpoint import load_policy, read_checkpoint, save_checkpoint
from vla.policy import Discerning

SOME = [instructions(task, "train")[0] for task in TASKS]


def test_a_policy_refuses_by_what_its_checkpoint_says(tmp_path):
    save_checkpoint(tmp_path / "silent", policy(), config(), {"step": 1})
    save_checkpoint(tmp_path / "taught", policy(), config(), {"step": 1, "instructions": SOME})
    silent, taught = load_policy(tmp_path / "silent"), load_policy(tmp_path / "taught")
    assert isinstance(silent, Discerning)
    assert not silent.discerns()
    assert silent.refusal("open the fridge") is None
    assert taught.discerns()
    assert taught.refusal(SOME[0].upper()) is None
    assert "'fridge'" in taught.refusal("open the fridge")
    assert read_checkpoint(tmp_path / "taught").training["instructions"] == SOME
