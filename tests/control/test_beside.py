"""Chunks of a policy beside the loop are joined by time stamp: the same actions as in a rollout with that delay.

The loop's side is real; the child and the courier between them are played by `Answers`, so that time is exact. At the end
both are real, too.
"""

import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_arm import SPEC
from toy_policy import Continuing, ToyPolicy

from vla.control.beside import Beside
from vla.control.cadence import Cadence
from vla.control.events import Board
from vla.control.paced import CYCLE, TIME
from vla.executor import RealTime, RecedingHorizon, TemporalEnsemble
from vla.spec import PLAN, PLAN_WEIGHT, STATE, TASK, UserError, image_key

PERIOD = 10_000_000
JOINERS = (RecedingHorizon, TemporalEnsemble, RealTime)


def chunk_of(step, horizon):
    """Entry 0 says when it was asked for, entry 1 for which step an action is meant."""
    return np.stack([np.full(horizon, step), step + np.arange(horizon), np.zeros(horizon)], axis=1).astype(np.float32)


def seen(k, age=0):
    """The observation of cycle k, measured `age` cycles before."""
    now = 10**9 + k * PERIOD
    return {
        image_key("static"): np.zeros((1, 4, 4, 3), np.uint8),
        **{STATE: np.zeros((1, 2), np.float32), TASK: ["go"]},
        **{CYCLE: np.array([now]), TIME: np.array([now - age * PERIOD])},
    }


class Answers(Beside):
    """Answers `delay` cycles after the question; `asked` keeps the questions by their cycle."""

    def __init__(self, executor, horizon, delay):
        super().__init__(lambda: None, 1e9 / PERIOD, Board(), None, Cadence(), executor)
        self.spec, self._every = SPEC, False
        self.process = SimpleNamespace(is_alive=lambda: True)
        self.horizon, self.delay = horizon, delay
        self.asked, self.coming = {}, None

    def cycle(self, k, memory, age=0):
        """The action of cycle k, None where the board demands a hold instead."""
        if self.coming is not None and k >= self.coming[0]:
            self._inbox.put(self.coming[1])
            self.coming = None
        chunk, _ = self.act(seen(k, age), memory)
        while not self._outbox.empty():
            kind, episode, value, stamps = self._outbox.get()
            if kind == "act":
                self.asked[k] = value
                answer = chunk_of(k - age, self.horizon)
                self.coming = k + max(1, self.delay), ("chunk", episode, (answer, stamps[1] + 1), stamps)
        return None if self._board.take_demands() else chunk[0, 0]


def in_a_rollout(executor, horizon, delay, begins, steps):
    """What vla.rollout does with a delay of at least one step."""
    actions, asked, coming = [], [], None
    executor.begin(0)
    for step in range(begins, steps):
        if coming is not None and step == coming[0]:
            executor.give(0, coming[1], delay)
            coming = None
        if coming is None and executor.asks(0):
            asked.append(step)
            coming = step + delay, chunk_of(step, horizon)
        actions.append(executor.action(0))
    return actions, asked


def same(a, b):
    return (a is None and b is None) or (a is not None and b is not None and np.array_equal(a, b))


@given(
    make=st.sampled_from(JOINERS),
    execute=st.integers(1, 8),
    horizon=st.integers(1, 12),
    delay=st.integers(1, 12),
)
def test_the_same_actions_as_in_a_rollout_with_that_delay(make, execute, horizon, delay):
    beside = Answers(make(execute), horizon, delay)
    memory = beside.begin([0])
    first = beside.cycle(0, memory)  # the policy is told that an instruction begins, and asked in the next cycle
    assert first is None
    found = [beside.cycle(k, memory) for k in range(1, 40)]
    expected, asked = in_a_rollout(make(execute), horizon, delay, 1, 40)
    assert list(beside.asked) == asked
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))


@given(missed=st.sets(st.integers(2, 38), max_size=20), delay=st.integers(1, 5))
def test_after_missed_cycles_it_goes_on_with_what_is_due_now(missed, delay):
    beside = Answers(RecedingHorizon(4), 12, delay)
    memory = beside.begin([0])
    for k in range(40):
        if k not in missed:
            action = beside.cycle(k, memory)
            assert action is None or action[1] == k


@pytest.mark.parametrize("age", [0, 1, 3])
def test_the_plan_that_is_shown_is_frozen_for_as_long_as_answers_took(age):
    beside = Answers(RealTime(4), 12, 3)
    memory = beside.begin([0])
    actions = {k: beside.cycle(k, memory, age=age) for k in range(30)}
    questions = [(k, value) for k, value in beside.asked.items() if value[PLAN].shape[1]]
    assert questions
    assert next(iter(beside.asked.values()))[PLAN].shape == (1, 0, 3)  # nothing is planned yet
    for k, value in questions:
        plan, weight = value[PLAN][0], value[PLAN_WEIGHT][0]
        np.testing.assert_array_equal(plan[:, 1], k - age + np.arange(len(plan)))  # from where the observation was made
        assert (weight == 1).sum() == min(3 + age, len(plan))
        for later in range(k, min(k + 3, 30)):  # what is executed until the answer is what was shown
            np.testing.assert_array_equal(actions[later], plan[later - k + age])


def test_a_process_continues_the_plan():
    board = Board()
    beside = Beside(Continuing, 1e9 / PERIOD, board, None, Cadence(), RealTime(4), delay_s=0.03)
    beside.start()
    try:
        memory, last, chunks = beside.begin([0]), None, set()
        for k in range(5000):
            action = beside.act(seen(k), memory)[0][0, 0, 0]
            notes = board.take_notes()
            if board.take_demands():
                last = None  # an answer took longer than the plan lasted: it begins anew
            else:
                assert last is None or action == pytest.approx(last + 0.01, abs=1e-4)
                last = action
                chunks.add(notes["chunk"])
            if len(chunks) > 5:
                break
            time.sleep(PERIOD / 1e9)
        assert len(chunks) > 5
    finally:
        beside.close()


def test_a_process_that_cannot_continue_plans_is_refused():
    beside = Beside(ToyPolicy, 1e9 / PERIOD, Board(), None, Cadence(), RealTime(4))
    with pytest.raises(UserError, match="ToyPolicy cannot"):
        beside.start()
    beside.process.join()
