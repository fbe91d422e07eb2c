"""One session with an arm, as a script for the rollout loop: instructions one after the other, until someone stops it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from vla.control.desk import Desk
from vla.control.events import Events
from vla.control.recording import Recorder
from vla.rollout import Follow, Script

MARKS = {"y": True, "n": False}


def session(
    desk: Desk,
    recorder: Recorder,
    events: Events,
    instructions: Sequence[str],
    steps: int,
    seed: int,
    stay: bool,
) -> Script:
    """Follow each instruction for `steps` control steps, or until it is marked; what is typed comes first.

    stay: when all are done, hold and wait for more instead of ending. Returns why it ended.
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
        recorder.begin(sentence)
        events.tell("instruction", sentence=sentence)
        follow = Follow(sentence, seed + number)
        number += 1
        marks: list[bool] = []
        reason = yield from _until(desk, waiting, follow, steps, marks.append)
        success = marks[0] if marks else None
        events.tell("instruction_over", sentence=sentence, success=success)
        recorder.end(success)
        if reason is not None:
            return reason


def _until(
    desk: Desk, waiting: deque[str], follow: Follow, steps: int | None, mark: Callable[[bool], None] | None = None
) -> Script:
    """Go on with `follow` for `steps`, or until a line is typed; returns why all shall end, or None."""
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
        yield follow
        done += 1
    return None
