"""Two episodes as the controller tells them to its recorder."""

import numpy as np

from vla.control.recording import Recorder
from vla.spec import ACTION, STATE, image_key

BEGIN, PERIOD = 10**12, 5_000_000  # ns
FRAMES = 12


def frame(k: int) -> dict:
    rng = np.random.default_rng(k)
    row = {image_key("static"): rng.integers(0, 256, (4, 4, 3), np.uint8), STATE: np.array([k, -k], np.float32)}
    sent = np.array([k / 100, 0, 1], np.float32)
    row |= {ACTION: sent, "asked": sent * 2, "held": k < 2, "person": 0, "chunk": k // 5, "chunk_index": k % 5, "success": -1}
    cycle = BEGIN + k * PERIOD
    row |= {"time_ns": cycle - 1000, "cycle_ns": cycle, "sent_ns": cycle + 2_000_000}
    return row | {"inference_ms": 7.0, "lateness_us": 100.0, "sensing_us": 300.0}


def tell(recorder: Recorder) -> None:
    """An episode as the controller tells it, and a second one."""
    recorder.begin("open the drawer")
    recorder.event({"time_ns": BEGIN, "date": 0.0, "event": "instruction", "sentence": "open the drawer"})
    for k in range(FRAMES):
        recorder.frame(frame(k))
        if k == 5:
            recorder.event({"time_ns": BEGIN + k * PERIOD, "date": 0.0, "event": "clamped", "dx": 0.5})
            imagined = {"static": np.full((2, 2, 3), 99, np.uint8)}
            recorder.imagined({"time_ns": BEGIN + (k + 3) * PERIOD, "frames": imagined})
    recorder.end(True)
    recorder.begin("close it")
    recorder.frame(frame(FRAMES))
    recorder.imagined({"time_ns": BEGIN + (FRAMES + 3) * PERIOD, "frames": {"static": np.full((2, 2, 3), 7, np.uint8)}})
    recorder.end(False)
