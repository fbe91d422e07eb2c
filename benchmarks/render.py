"""The software renderer against MuJoCo's OpenGL one (EGL), interleaved in the same run: CPU time a world, as a table.

    python benchmarks/render.py [rounds]

The lower quartile over the rounds is shown, in milliseconds of process CPU time (all threads of the GL driver included), so a
busy machine does not count against either.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

os.environ.setdefault("LP_NUM_THREADS", "0")  # llvmpipe's own threads would only add noise

import mujoco
import numpy as np

from envs.playtable import scene
from envs.playtable.raster import renderer
from vla.spec import UserError

PAIRS = {"static 200x200 + wrist 84x84": ((200, 200), (84, 84)), "static 96x96 + wrist 96x96": ((96, 96), (96, 96))}
KINDS = {
    "raster": ("raster", {"shadows": True}),
    "raster, no shadows": ("raster", {"shadows": False}),
    "EGL, no shadows": ("gl", {"shadows": False}),
    "EGL, shadows": ("gl", {"shadows": True}),
}
CALLS = 5


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    model = scene.build("D")
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    poses = [array[None] for array in (data.geom_xpos, data.geom_xmat, data.cam_xpos, data.cam_xmat)]
    print(f"{model.ngeom} geoms, {model.nmeshface} mesh faces; ms of CPU time per world and pair of cameras\n")
    print("| cameras | " + " | ".join(KINDS) + " | EGL / raster, no shadows |")
    print("|---" * (len(KINDS) + 2) + "|")
    for pair, (static, wrist) in PAIRS.items():
        calls: dict[str, Callable[[], object]] = {}
        for name, (kind, options) in KINDS.items():
            try:
                drawer = renderer(kind, model, {"static": static, "wrist": wrist}, **options)
            except UserError as error:
                sys.exit(str(error))
            calls[name] = lambda drawer=drawer: drawer.render(*poses)
        spent: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                call()
                start = time.process_time()
                for _ in range(CALLS):
                    call()
                spent[name].append((time.process_time() - start) / CALLS * 1e3)
        cost = {name: float(np.quantile(values, 0.25)) for name, values in spent.items()}
        ratio = cost["EGL, no shadows"] / cost["raster, no shadows"]
        print(f"| {pair} | " + " | ".join(f"{value:.2f}" for value in cost.values()) + f" | {ratio:.1f} |")


if __name__ == "__main__":
    main()
