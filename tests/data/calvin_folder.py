"""A split of CALVIN's dataset, written as its own recorder writes it, from a short play on our playtable."""

from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_module

from vla.collect import collect
from vla.data.store import Dataset

FIRST = 358_482  # where the genuine debug split begins


def play(out, frames: int, *overrides: str, cameras: str = "{static:[200,200],wrist:[84,84]}") -> Dataset:
    """Experts' play in scene D, in CALVIN's picture sizes."""
    plain = [
        f"out={out}",
        f"frames={frames}",
        "env.world.scene=D",
        "env.world.num_worlds=1",
        "workers=1",
        f"env.world.cameras={cameras}",
    ]
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("collect", [*plain, *overrides])
    list(collect(config))
    return Dataset(out)


def write_split(folder: Path, played: Dataset, first: int = FIRST) -> dict[int, dict[str, np.ndarray]]:
    """Write the folder, and give what is in the frame files by number.

    Numbers are float64 with digits that float32 has not; all of the play is one recording after another, without gaps.
    """
    rng = np.random.default_rng(0)
    count = played.num_frames
    robot = played.vectors["observation.state"] + rng.normal(0, 1e-10, (count, 15))
    scene = played.vectors["observation.environment_state"] + rng.normal(0, 1e-10, (count, 24))
    commands = played.vectors["action"] + rng.normal(0, 1e-10, (count, 7))
    after = np.minimum(np.arange(count) + 1, count - 1)
    frames = {
        first + i: {
            "rgb_static": played.images("static", np.array([i]))[0],
            "rgb_gripper": played.images("wrist", np.array([i]))[0],
            "rgb_tactile": np.full((16, 12, 6), i % 256, np.uint8),
            "depth_static": np.full((200, 200), 4 + i / 1000, np.float32),
            "depth_gripper": np.full((84, 84), 0.1 + i / 1000, np.float32),
            "depth_tactile": np.zeros((16, 12, 2), np.float32),
            "robot_obs": robot[i],
            "scene_obs": scene[i],
            "actions": np.append(robot[after[i], :6], commands[i, 6]),
            "rel_actions": commands[i],
        }
        for i in range(count)
    }
    folder.mkdir(parents=True)
    for number, arrays in frames.items():
        np.savez_compressed(folder / f"episode_{number:07d}.npz", **arrays)
    ends = np.stack([played.episode_starts, played.episode_ends - 1], axis=1) + first
    np.save(folder / "ep_start_end_ids.npy", ends)
    np.save(folder / "ep_lens.npy", ends[:, 1] - ends[:, 0] + 1)
    np.save(folder / "scene_info.npy", {f"calvin_scene_{played.scenes[0]}": [first, first + count - 1]})
    (folder / "statistics.yaml").write_text("robot_obs:\n- _target_: calvin_agent.utils.transforms.NormalizeVector\n")
    (folder / ".hydra").mkdir()
    (folder / ".hydra/merged_config.yaml").write_text("cameras: {}\nscene: {}\n")
    segments = played.segments[::-1]  # the genuine order is not that of the frames
    annotations = {
        "language": {
            "ann": [played.instructions[s["instruction"]] for s in segments],
            "task": [played.tasks[s["task"]] for s in segments],
            "emb": rng.normal(size=(len(segments), 1, 384)).astype(np.float32),
        },
        "info": {"episodes": [], "indx": [(int(s["start"]) + first, int(s["end"]) + first) for s in segments]},
    }
    (folder / "lang_annotations").mkdir()
    np.save(folder / "lang_annotations/auto_lang_ann.npy", annotations)
    return frames
