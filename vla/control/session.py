"""One session with an arm, as a script for the rollout loop: instructions one after the other, until someone stops it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from vla.control.desk import Desk
from vla.control.events import Events
from vla.control.recording import Recorder
from vla.rollout import Follow, Script

MARKS = {"y": True, "n": False}


class Check(Protocol):
    """A rule that says when an instruction is done. It only looks, and raises nothing."""

    def begin(self, sentence: str) -> str:
        """From now on it is this instruction; gives the name of its task, "" if there is no rule for it."""
        ...

    def solved(self) -> bool: ...


def session(
    desk: Desk,
    recorder: Recorder,
    events: Events,
    instructions: Sequence[str],
    steps: int,
    seed: int,
    stay: bool,
    check: Check | None = None,
    judge: Callable[[str], str | None] | None = None,
) -> Script:
    """Follow each instruction for `steps` control steps, or until it is marked; what is typed comes first.

    stay: when all are done, hold and wait for more instead of ending. check: marks instructions that it has a rule for, as
    done when they are, as failed when their time is over. judge: says why an instruction is refused, "" if it is not; the arm
    is held until it has said so (None). Returns why it ended.
    """
    waiting, number = deque(instructions), 0
    idle = Follow("")
    while True:
        if not waiting:
            if not stay:
                return "all instructions are done"
            events.tell("ready")
            reason = yield from _until(desk, waiting, idle, None)
            if reason is not None:
                return reason
            continue
        sentence = waiting.popleft()
        if judge is not None:
            while (refused := judge(sentence)) is None:
                reason = yield from _until(desk, waiting, idle, 1)
                if reason is not None:
                    return reason
            if refused:
                events.tell("refused", sentence=sentence, why=refused)
                continue
        task = check.begin(sentence) if check is not None else ""
        recorder.begin(sentence, task)
        events.tell("instruction", sentence=sentence, **({"task": task} if task else {}))
        follow = Follow(sentence, seed + number)
        number += 1
        marks: list[bool] = []
        reason = yield from _until(desk, waiting, follow, steps, marks.append, check if task else None)
        success = marks[0] if marks else None
        events.tell("instruction_over", sentence=sentence, success=success)
        recorder.end(success)
        if reason is not None:
            return reason


def _until(
    desk: Desk,
    waiting: deque[str],
    follow: Follow,
    steps: int | None,
    mark: Callable[[bool], None] | None = None,
    check: Check | None = None,
) -> Script:
    """Go on with `follow` for `steps`, or until a line is typed; returns why all shall end, or None. An instruction's time
    stands still while a person drives."""
    done = 0
    while steps is None or done < steps:
        if (reason := desk.stopped()) is not None:
            return reason
        line = desk.typed()
        if line in MARKS and mark is not None:
            mark(MARKS[line])
            return None
        if line and line not in MARKS:
            waiting.appendleft(line)
            return None
        if mark is not None and check is not None and check.solved():
            mark(True)
            return None
        yield follow
        done += mark is None or not desk.taken
    if mark is not None and check is not None:
        mark(False)
    return None
