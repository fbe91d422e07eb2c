"""Chains played on the way, with the config that a user would give."""

from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from vla.training.rollouts import Chains


def test_the_expert_does_its_chains():
    with initialize_config_module("conf", version_base="1.3"):
        asked = ["trainer=watched", "trainer.evaluation.chains=2:4", "out=run", "data.path=data"]
        config = compose("train", asked).trainer
        expert = instantiate(compose("evaluate", ["policy=expert", "out=run"]).policy)
    play = instantiate(config.evaluation)
    assert isinstance(play, Chains)
    found = play(expert)
    assert found["average_length"] > 3
    assert found["average_length"] == sum(found[f"{k}_in_a_row"] for k in range(1, 6))
    assert play(expert) == found
