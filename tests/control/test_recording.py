"""What a recording says of its episodes: what was done, what failed, what nobody judged."""

import numpy as np
import zarr
from told import FRAMES, frame, tell
from toy_arm import SPEC

from vla.control.recording import Recorder
from vla.data.store import Dataset, check
from vla.data.windows import Windows


def test_success_is_a_segments_and_training_can_ask_for_it(tmp_path):
    recorder = Recorder(tmp_path / "recording", SPEC, {})
    tell(recorder)  # one that is done, and one that failed
    recorder.begin("press the button", "press")
    for k in range(5):
        recorder.frame(frame(k))
    recorder.end()
    recorder.close()
    dataset = check(tmp_path / "recording")
    assert dataset.num_episodes == 3
    assert dataset.segments["success"].tolist() == [1, -1]
    assert [dataset.instructions[k] for k in dataset.segments["instruction"]] == ["open the drawer", "press the button"]
    assert [dataset.tasks[k] for k in dataset.segments["task"]] == ["", "press"]
    sizes = {kind: len(Windows(dataset, segments=kind, batch_size=2, chunk=2)) for kind in ("successes", "labelled", "all")}
    assert sizes == {"successes": FRAMES, "labelled": FRAMES + 5, "all": FRAMES + 1 + 5}
    group = zarr.open_group(tmp_path / "recording", mode="r+")
    before = dataset.digest
    group["segment/success"][1] = 1
    assert Dataset(tmp_path / "recording").digest != before


def test_a_recording_goes_on_where_it_was(tmp_path):
    for _ in range(2):
        recorder = Recorder(tmp_path / "recording", SPEC, {})
        tell(recorder)
        recorder.close()
    dataset = check(tmp_path / "recording")
    assert dataset.segments["success"].tolist() == [1, 1]
    control = zarr.open_group(tmp_path / "recording", mode="r")["control"]
    assert control["imagined_end"][:].tolist() == [1, 2, 3, 4]
    assert control["imagined/static"][:, 0, 0, 0].tolist() == [99, 7, 99, 7]
    assert np.array_equal(control["held"][: FRAMES + 1], control["held"][FRAMES + 1 :])
