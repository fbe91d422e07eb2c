"""Who says what happens in which video: the captions of a folder of clips, in three styles.

    beside                lines {"file": ..., "instruction": ...} of captions.jsonl, or without that a .txt beside each clip
    something_something   a list of {"id", "label", ...} (Something-Something V2's train.json); the video is <id>.webm
    ego4d                 Ego4D's narration.json; the video is <uid>.mp4, and each narration a clip of its own

A file that is not what it should be is a UserError; an entry that is not is skipped and told, and the rest is converted.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla.data.convert.files import Fault, inside
from vla.spec import UserError

SUFFIXES = {".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v"}
CAPTIONS = "captions.jsonl"
STYLES = ("beside", "something_something", "ego4d")
WEARER = re.compile(r"^#c\s+c\b[\s,:]*", re.IGNORECASE)
UNSURE = re.compile(r"#unsure", re.IGNORECASE)


@dataclass(frozen=True)
class Clip:
    """A file, relative to the folder, its caption, and where in the file it is: seconds from its beginning, end or None."""

    file: str
    instruction: str
    begin: float = 0.0
    end: float | None = None

    @property
    def name(self) -> str:
        """The file, with its part as a media fragment (https://www.w3.org/TR/media-frags/) where it is not the whole."""
        return self.file if self.end is None else f"{self.file}#t={self.begin:.3f},{self.end:.3f}"


@dataclass
class Found:
    """Clips to convert; the videos that are spoken of; what was skipped, with its fault; what was left out, in sentences."""

    clips: list[Clip] = field(default_factory=list)
    videos: set[str] = field(default_factory=set)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def find(folder: str | Path, style: str, annotations: Sequence[str], narrations: str, longest: float) -> Found:
    """The clips of `folder` by the captions of that style (see `beside`, `something_something` and `ego4d`).

    Raises UserError for an unknown style, no folder, annotations that are missing or not wanted, and no clip at all.
    """
    if style not in STYLES:
        raise UserError(f"captions is {style!r}: choose one of {', '.join(STYLES)}.")
    if not Path(folder).is_dir():
        raise UserError(f"{folder} is not a folder: give the folder that holds the clips as path=...")
    if style == "beside":
        if annotations:
            raise UserError(
                f"annotations is {annotations[0]} but captions is beside: choose captions={' or '.join(STYLES[1:])}."
            )
        return beside(folder)
    if not annotations:
        raise UserError(f"captions={style} reads a file that is not given: add annotations=<file.json>.")
    found = something_something(folder, annotations) if style != "ego4d" else ego4d(folder, annotations, narrations, longest)
    if not found.clips:
        first = next((f" (first: {name} {fault})" for name, fault in found.skipped.items()), "")
        raise UserError(f"no entry of {', '.join(annotations)} has a clip in {folder}{first}: give the folder as path=...")
    if rest := sum(file not in found.videos for file in videos(folder)):
        found.notes.append(f"{rest} videos of {folder} are not in the annotations")
    return found


def videos(folder: str | Path) -> list[str]:
    """The videos in a folder and below, by name."""
    return sorted(str(f.relative_to(folder)) for f in Path(folder).rglob("*") if f.suffix.lower() in SUFFIXES)


def beside(folder: str | Path) -> Found:
    """All clips of a folder in the order of their names, with the captions that lie there.

    Raises UserError if there is no clip or a line that cannot be read.
    """
    folder = Path(folder)
    files = videos(folder)
    captions: dict[str, str] = {}
    if (folder / CAPTIONS).exists():
        for number, line in enumerate((folder / CAPTIONS).read_text().splitlines(), 1):
            try:
                row = json.loads(line) if line.strip() else {"file": "", "instruction": ""}
                captions[str(row["file"])] = str(row["instruction"]).strip()
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f'{folder / CAPTIONS} line {number} is not {{"file": ..., "instruction": ...}}: correct it.'
                ) from None
        captions.pop("", None)
    else:
        texts = {f: (folder / f).with_suffix(".txt") for f in files}
        captions = {f: t.read_text().strip() for f, t in texts.items() if t.exists()}
    everything = sorted({*files, *captions})
    if not everything:
        raise UserError(f"{folder} holds no clips ({', '.join(sorted(SUFFIXES))}): give the folder that does as path=...")
    found = Found()
    for file in everything:
        if captions.get(file):
            found.clips.append(Clip(file, captions[file]))
        else:
            found.skipped[file] = "has no caption"
    return found


def something_something(folder: str | Path, annotations: Iterable[str]) -> Found:
    """Clips by Something-Something V2's lists of {"id": "78687", "label": "holding potato next to a bottle", ...}.

    The label is the caption; its template and placeholders are not looked at. Raises UserError for a file that is no list.
    """
    found = Found()
    for path in annotations:
        entries = _read(path)
        if not isinstance(entries, list):
            raise UserError(f'{path} is not a list of {{"id": ..., "label": ...}}: give one of Something-Something\'s files.')
        for number, entry in enumerate(entries, 1):
            place = f"{path} entry {number}"
            if not isinstance(entry, Mapping) or not isinstance(entry.get("id"), str | int):
                found.skipped[place] = "has no id"
                continue
            file = f"{entry['id']}.webm"
            if file in found.videos:
                found.skipped[place] = "has the id of an earlier entry"
                continue
            found.videos.add(file)
            label = entry.get("label")
            if fault := _absent(folder, file):
                found.skipped[file] = fault
            elif not isinstance(label, str) or not label.strip():
                found.skipped[file] = "has no label"
            else:
                found.clips.append(Clip(file, label.strip()))
    return found


def ego4d(folder: str | Path, annotations: Iterable[str], narrations: str, longest: float) -> Found:
    """Clips by Ego4D's {"videos": {uid: {"narration_pass_1": {"narrations": [{"narration_text", "timestamp_sec"}]}}}}.

    narrations: which pass. A narration is a clip from its time to that of the next one, whoever that is about, but at most
    `longest` seconds. "#C C picks up a cup" is what the wearer of the camera does: "picks up a cup". What others do ("#O")
    and what the narrator was not sure of ("#unsure") is left out, with a note. A video without that pass is skipped.
    Raises UserError for a file without videos.
    """
    found, left = Found(), Counter[str]()
    for path in annotations:
        content = _read(path)
        entries = content.get("videos") if isinstance(content, Mapping) else None
        if not isinstance(entries, Mapping):
            raise UserError(f'{path} has no "videos": give Ego4D\'s narration.json.')
        for uid, entry in entries.items():
            file = f"{uid}.mp4"
            found.videos.add(file)
            rows = entry.get(narrations) if isinstance(entry, Mapping) else None
            rows = rows.get("narrations") if isinstance(rows, Mapping) else None
            if fault := _absent(folder, file):
                found.skipped[file] = fault
            elif not isinstance(rows, list):
                found.skipped[file] = f"has no {narrations}"
            else:
                for clip in _narrated(file, rows, longest, found.skipped):
                    text = clip.instruction
                    if UNSURE.search(text):
                        left["the narrator was not sure of (#unsure)"] += 1
                    elif WEARER.match(text) or not text.startswith("#"):
                        found.clips.append(Clip(file, WEARER.sub("", text).strip(), clip.begin, clip.end))
                    else:
                        left["are about others (#O)"] += 1
    found.notes += [f"{count} narrations that {what} were left out" for what, count in left.items()]
    return found


def _narrated(file: str, rows: Sequence[Any], longest: float, skipped: dict[str, str]) -> Iterator[Clip]:
    """The sound narrations of a video in the order of their times; the others go into `skipped`."""
    timed: list[tuple[float, int, str]] = []
    for number, row in enumerate(rows, 1):
        place = f"{file} narration {number}"
        row = row if isinstance(row, Mapping) else {}
        seconds, text = row.get("timestamp_sec"), row.get("narration_text")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds) or seconds < 0:
            skipped[place] = f"has no time in the video (timestamp_sec {seconds!r})"
        elif not isinstance(text, str) or not WEARER.sub("", text.strip()).strip(" .#"):
            skipped[place] = "has no text"
        else:
            timed.append((float(seconds), number, text.strip()))
    timed.sort()
    for (begin, number, text), following in zip(timed, [*timed[1:], None], strict=True):
        if following and following[0] == begin:
            skipped[f"{file} narration {number}"] = "has the time of another one"
            continue
        yield Clip(file, text, begin, min(begin + longest, following[0]) if following else begin + longest)


def _absent(folder: str | Path, file: str) -> str | None:
    """Why there is no such video, or None."""
    try:
        return None if inside(folder, file).is_file() else "is not in the folder"
    except (Fault, OSError) as fault:  # an OSError: no name that a file could have
        return str(fault)


def _read(path: str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"annotations {path} cannot be read ({error}): give the JSON file with the captions.") from None
