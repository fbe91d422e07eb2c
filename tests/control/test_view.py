"""What is shown in Rerun is what happened, live and from a recording; a viewer that does not keep up is not waited for."""

import json
import os
import signal
import socket

import pytest
import zarr
from rerun.experimental import RrdReader
from told import FRAMES, PERIOD, frame, tell
from toy_arm import SPEC

from vla.control.events import Events
from vla.control.recording import Recorder
from vla.control.view import View, show
from vla.data.store import check
from vla.spec import UserError


def shown(path) -> dict:
    """Entity -> its rows in order of time: (seconds, what was logged last in the row)."""
    found: dict = {}
    for chunk in RrdReader(path).stream():
        if not chunk.is_static:
            table = chunk.to_record_batch().to_pydict()
            (name,) = (n for n in table if n.endswith((":scalars", ":text", ":blob")))
            rows = zip(table["time"], table[name], strict=True)
            found.setdefault(chunk.entity_path, []).extend((time.total_seconds(), value) for time, value in rows)
    return {entity: sorted(rows, key=lambda row: row[0]) for entity, rows in found.items()}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """(recording, what a live view showed of it)."""
    out = tmp_path_factory.mktemp("told")
    events = Events(out / "events.jsonl", quiet=True)
    view = View(str(out / "live.rrd"), SPEC, events)
    recorder = Recorder(out / "recording", SPEC, {})
    recorder.listeners.append(view.put)
    tell(recorder)
    recorder.close()
    view.close()
    assert view.dropped == 0
    assert not events.counts
    return out / "recording", shown(out / "live.rrd")


def test_a_session_is_shown_while_it_runs(told):
    _, live = told
    times = [k * PERIOD / 1e9 for k in range(FRAMES + 1)]
    for entity in ("/cameras/static", "/state", "/action/dx", "/milliseconds", "/held"):
        assert [row[0] for row in live[entity]] == pytest.approx(times), entity
    assert [row[1] for row in live["/action/dx"]] == [pytest.approx([k / 100, k / 50]) for k in range(FRAMES + 1)]
    assert [row[1] for row in live["/state"]] == [[k, -k] for k in range(FRAMES + 1)]
    assert live["/milliseconds"][4][1] == pytest.approx([0.1, 0.3, 7.0, 2.0])
    assert [row[1][0] for row in live["/held"]] == [1.0, 1.0] + [0.0] * (FRAMES - 1)
    assert [row[0] for row in live["/imagined/static"]] == pytest.approx([8 * PERIOD / 1e9, (FRAMES + 3) * PERIOD / 1e9])
    assert [row[1] for row in live["/instruction"]] == [["open the drawer"], ["close it"]]
    assert [row[1] for row in live["/events"]] == [["instruction: sentence open the drawer"], ["clamped: dx 0.5"]]


def test_a_recording_shows_the_same(told, tmp_path):
    recording, live = told
    assert check(recording).num_episodes == 2
    assert show(str(recording), None, str(tmp_path / "later.rrd")) == FRAMES + 1
    later = shown(tmp_path / "later.rrd")
    assert later.pop("/instruction")[0] == live["/instruction"][0]  # what failed has no label, so no sentence
    assert later == {entity: rows for entity, rows in live.items() if entity != "/instruction"}


def test_one_episode_and_a_dataset_without_a_controller_are_shown(told, tmp_path):
    recording, _ = told
    assert show(str(recording), [1], str(tmp_path / "one.rrd")) == 1
    assert len(shown(tmp_path / "one.rrd")["/imagined/static"]) == 1
    with pytest.raises(UserError, match="episode 2 is not in"):
        show(str(recording), [2], str(tmp_path / "no.rrd"))
    del zarr.open_group(recording, mode="r+")["control"]
    assert show(str(recording), None, str(tmp_path / "plain.rrd")) == FRAMES + 1
    plain = shown(tmp_path / "plain.rrd")
    assert set(plain) == {"/cameras/static", "/state", "/action/dx", "/action/dy", "/action/press", "/instruction"}
    assert plain["/action/dx"][3][1] == pytest.approx([0.03])


def test_a_viewer_that_does_not_keep_up_is_not_waited_for(tmp_path):
    events = Events(tmp_path / "events.jsonl", quiet=True)
    view = View(str(tmp_path / "x.rrd"), SPEC, events)
    os.kill(view._process.pid, signal.SIGSTOP)
    for k in range(3000):
        view.put(("frame", frame(k)))  # returns, though nobody takes them
    assert view.dropped > 1000
    os.kill(view._process.pid, signal.SIGCONT)
    view.close()
    (row,) = map(json.loads, events.path.read_text().splitlines())
    assert (row["event"], row["letters"]) == ("view_dropped", view.dropped)
    assert len(shown(tmp_path / "x.rrd")["/state"]) == 3000 - view.dropped


def test_a_viewer_that_dies_harms_nobody(tmp_path):
    events = Events(tmp_path / "events.jsonl", quiet=True)
    view = View(str(tmp_path / "x.rrd"), SPEC, events)
    os.kill(view._process.pid, signal.SIGKILL)
    view._process.join()
    for k in range(300):
        view.put(("frame", frame(k)))
    view.close()
    assert events.counts == {"view_dropped": 1}


def test_a_viewer_that_is_not_there_is_a_mistake(tmp_path):
    events = Events(tmp_path / "events.jsonl", quiet=True)
    with pytest.raises(UserError, match="view is 'somewhere'"):
        View("somewhere", SPEC, events)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        with pytest.raises(UserError, match="no viewer answers at"):
            View(f"rerun+http://127.0.0.1:{taken.getsockname()[1]}/proxy", SPEC, events)
