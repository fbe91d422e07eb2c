"""What is known to be wrong with published copies of CALVIN's dataset, looked for in a converted split.

Scene ranges were wrong until 2023, a few frames of validation are also in training, the annotations of the validation split
of ABC are mostly repeats, and the README's order of blocks in scene_obs holds for two scenes of four. None of that can be
mended without choosing for the user, so it is told.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vla.data.convert.files import Fault
from vla.data.convert.objects import load_objects
from vla.data.store import Dataset
from vla.spec import ENVIRONMENT_STATE, STATE


class Place(NamedTuple):
    """How a scene is told from another: x of the hand in metres that works its button or switch; the blocks' order."""

    button: float
    switch: float
    blocks: tuple[str, str, str]


PLACES = {
    "A": Place(-0.27, 0.26, ("pink", "blue", "red")),
    "B": Place(0.28, -0.31, ("red", "blue", "pink")),
    "C": Place(-0.11, -0.32, ("blue", "red", "pink")),
    "D": Place(-0.12, 0.28, ("red", "blue", "pink")),
}
NEAR = 0.08  # metres between where a hand works a control and where it should
LEAST = 5  # frames or annotations before anything is said
PRESSED, MOVED = 5e-3, 2e-3  # metres that the button is down, that the switch moves in a frame
BUTTON, SWITCH, BLOCKS, BLOCK = 2, 3, 6, 6  # places in scene_obs


def find_faults(
    folder: Path,
    dataset: Dataset,
    recordings: Sequence[tuple[int, int]],
    annotations: Sequence[Any],
    scenes: Mapping[str, tuple[int, int]],
) -> list[str]:
    """Sentences, one per fault."""
    return [
        *_leaks(folder, recordings),
        *_repeats(annotations),
        *_scene_ranges(recordings, scenes),
        *_scenes_by_touch(dataset),
        *_block_orders(dataset),
    ]


def _leaks(folder: Path, recordings: Sequence[tuple[int, int]]) -> Iterator[str]:
    other = folder.resolve().parent / {"training": "validation", "validation": "training"}.get(folder.resolve().name, "")
    try:
        rows = load_objects(other / "ep_start_end_ids.npy")
        theirs = [(int(first), int(last) + 1) for first, last in rows]
    except (Fault, TypeError, ValueError):
        return
    shared = [range(max(s, a), min(e, b)) for s, e in recordings for a, b in theirs]
    frames = sorted({n for both in shared for n in both})
    if frames:
        names = ", ".join(map(str, frames[:10]))
        yield f"{len(frames)} frames are also in {other.name} ({names}): scores on validation see them in training"


def _repeats(annotations: Sequence[Any]) -> Iterator[str]:
    if not annotations:
        return
    same = sum(n - 1 for n in Counter((a.start, a.end, a.task, a.text) for a in annotations).values())
    if same:
        yield f"{same} of {len(annotations)} annotations repeat another's frames, task and sentence"
    first, last = min(a.start for a in annotations), max(a.end for a in annotations)
    steps = np.zeros(last - first + 1, np.int64)
    np.add.at(steps, [a.start - first for a in annotations], 1)
    np.add.at(steps, [a.end - first for a in annotations], -1)
    depth = np.cumsum(steps)
    share = float((depth > 1).sum() / (depth > 0).sum())
    if share > 0.5:
        yield f"{share:.0%} of the annotated frames have more than one annotation, as in ABC's validation: take split D's"


def _scene_ranges(recordings: Sequence[tuple[int, int]], scenes: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    if not scenes:
        yield "nothing tells the scene of a frame, episodes have none: give scenes={D: [first, last]}"
        return
    ordered = sorted((first, last, name) for name, (first, last) in scenes.items())
    for (_, last, name), (first, _, after) in pairwise(ordered):
        if first <= last:
            yield f"scene_info has frames {first} to {last} in scenes {name} and {after}"
    outside = [(s, e - 1) for s, e in recordings if not any(a <= s and e - 1 <= b for a, b in scenes.values())]
    if outside:
        names = ", ".join(f"{s} to {e}" for s, e in outside[:5])
        yield f"{len(outside)} recordings are not wholly inside one scene of scene_info (frames {names})"


def _scenes_by_touch(dataset: Dataset) -> Iterator[str]:
    """Where the hand is while the button goes down or the switch moves tells which scene it is."""
    hand, scene_obs = dataset.vectors[STATE][:, 0], dataset.vectors[ENVIRONMENT_STATE]
    change = np.diff(scene_obs, axis=0, prepend=scene_obs[:1])
    change[dataset.episode_starts] = 0
    down = (scene_obs[:, BUTTON] > PRESSED) & (change[:, BUTTON] > 0)
    moving = np.abs(change[:, SWITCH]) > MOVED
    of_frame = np.repeat(dataset.scenes, dataset.episode_ends - dataset.episode_starts)
    for scene in sorted(set(dataset.scenes)):
        here, found = of_frame == scene, {}
        for control, when in (("button", down), ("switch", moving)):
            if (here & when).sum() >= LEAST:
                found[control] = float(np.median(hand[here & when]))
        fits = [s for s, place in PLACES.items() if all(abs(x - getattr(place, c)) < NEAR for c, x in found.items())]
        if found and scene not in fits:
            seen = " and ".join(f"its {control} is worked at x = {x:.2f} m" for control, x in found.items())
            yield f"frames said to be of scene {scene or 'unknown'}: {seen}, as in {' or '.join(fits) or 'no scene'}"


def _block_orders(dataset: Dataset) -> Iterator[str]:
    """Which block of scene_obs moves when an annotation is about a colour."""
    votes: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    scene_obs = dataset.vectors[ENVIRONMENT_STATE]
    for segment in dataset.segments:
        verb, _, rest = dataset.tasks[segment["task"]].partition("_")
        colour = rest.split("_")[0]
        if verb in ("push", "lift", "rotate") and colour in PLACES["D"].blocks:
            poses = scene_obs[[segment["start"], segment["end"] - 1], BLOCKS:].reshape(2, -1, BLOCK)
            way = np.linalg.norm(poses[1, :, :3] - poses[0, :, :3], axis=1)
            votes[dataset.scenes[segment["episode"]], colour][int(way.argmax())] += 1
    for scene in sorted({s for s, _ in votes}):
        found = {c: v.most_common(1)[0][0] for (s, c), v in votes.items() if s == scene and v.total() >= LEAST}
        known = PLACES[scene].blocks if scene in PLACES else None
        wrong = sorted(c for c, slot in found.items() if known and known.index(c) != slot)
        if wrong:
            says = ", ".join(f"{c} is block {found[c]}" for c in wrong)
            yield f"frames said to be of scene {scene}: {says} of scene_obs, where the scene has {', '.join(known or ())}"
