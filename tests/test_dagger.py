import itertools
from typing import cast

import numpy as np
import pytest
from pointworld import PointPlay, PointPolicy, PointWorld

from vla.collect import Manner, Tape, Unit, supply
from vla.dagger import Handover
from vla.data.writer import Segment
from vla.executor import RecedingHorizon
from vla.rollout import rollout
from vla.spec import ACTION, STATE, UserError

LEARNER, EXPERT = 1.0, -1.0
"""What the two have in the action's third entry, which moves nothing."""


class OneStepExpert(PointPolicy):
    """Knows the way; chunks of one action, marked."""

    def __init__(self):
        super().__init__(horizon=1, wrong=0.0, noise=0.0)

    def begin(self, seeds):
        return None

    def act(self, observation, memory):
        chunk, _ = super().act(observation, super().begin([0] * len(observation["task"])))
        chunk[:, :, 2] = EXPERT
        return chunk, None


def handover(steps=(0, 20), execute=4, horizon=5, history=False):
    return Handover(PointPolicy(horizon=horizon, wrong=0.5, history=history), OneStepExpert(), steps, execute)


def play(policy, num_worlds=3, frames=1200):
    world = PointWorld(num_worlds, "A")
    units = [Unit(k, "A", frames // 4) for k in range(4)]
    jobs = supply(world.scenes, world.vla_spec, units, PointPlay(), Manner(noisy=0.0), 5, policy.handover)
    played: dict[int, tuple[dict[str, np.ndarray], list[Segment]]] = {}
    for job, segments in rollout(world, policy, jobs, RecedingHorizon(4)):
        (_, number), tape = cast(tuple[Unit, int], job.key), cast(Tape, job.recorder)
        played[number] = tape.arrays(), segments
    return played


@pytest.mark.parametrize("history", [False, True])
def test_what_the_expert_does_is_labelled_and_what_the_learner_did_before_is_not(history):
    labelled = before = 0
    for arrays, segments in play(handover(history=history)).values():
        who, places = arrays[ACTION][:, 2], arrays[STATE]
        ends = [0, *(segment.end for segment in segments)]
        for segment, last in zip(segments, ends, strict=False):
            assert (who[segment.start : segment.end] == EXPERT).all()
            labelled += segment.end - segment.start
            before += int((who[last : segment.start] == LEARNER).sum())
            if (
                segment.start > last and who[segment.start - 1] == LEARNER
            ):  # within a task the learner acts first, for whole chunks
                alone = list(itertools.takewhile(lambda mark: mark == LEARNER, who[last : segment.start][::-1]))
                assert len(alone) >= 4
        assert np.abs(np.diff(places, axis=0)).max() <= 0.1 + 1e-6
    assert labelled > 100
    assert before > 100


def test_without_a_turn_for_the_learner_everything_is_the_experts():
    for arrays, segments in play(handover(steps=(0, 0))).values():
        assert (arrays[ACTION][:, 2] == EXPERT).all()
        assert all(a.end == b.start for a, b in itertools.pairwise(segments))


def test_the_same_is_played_by_any_number_of_worlds():
    few, many = play(handover(), 1), play(handover(), 4)
    assert few.keys() == many.keys()
    for number, (arrays, segments) in few.items():
        assert segments == many[number][1]
        np.testing.assert_array_equal(arrays[ACTION], many[number][0][ACTION])


def test_turns_are_drawn_from_the_seed_in_whole_chunks():
    policy = handover(steps=(5, 20), execute=5)
    turns = [policy.handover(seed) for seed in range(200)]
    assert set(turns) == {5, 10, 15, 20}
    assert turns == [policy.handover(seed) for seed in range(200)]


def test_impossible_turns_are_refused():
    with pytest.raises(UserError, match=r"learner_steps is \[9, 5\]"):
        handover(steps=(9, 5))
    with pytest.raises(UserError, match="execute is 8 but the learner's chunks have 5 actions"):
        play(handover(steps=(8, 16), execute=8))
