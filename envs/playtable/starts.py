"""Varied start states: for collecting play, and for trying one task many times."""

from __future__ import annotations

import numpy as np

from envs.playtable import layout as L
from envs.playtable.kinematics import euler_to_matrix, forward, inverse

HAND_LOW, HAND_HIGH = np.array([-0.25, -0.32, 0.50]), np.array([0.30, 0.0, 0.66])
"""Where the TCP starts, metres."""
AT_END = 0.35
"""Share of doors and drawers that stand at an end, as in every evaluation chain's start; the rest stand anywhere in between, so
that a handle's place cannot be told from the scene and has to be looked at."""
BLOCK_GAP = 0.07
"""Least distance of block centres: often too near for fingers to fit between."""


def random_hand(rng: np.random.Generator) -> np.ndarray:
    """robot_obs (15,) with the hand somewhere above the table, turned and leaning a little, open or closed."""
    base, rest = np.array(L.ROBOT_BASE), np.array(L.HOME_JOINTS)
    while True:
        target = rng.uniform(HAND_LOW, HAND_HIGH)
        euler = np.array([np.pi + rng.normal(0, 0.05), rng.uniform(-0.4, 0.1), np.pi / 2 + rng.normal(0, 0.4)])
        joints = inverse(rest, target, euler_to_matrix(euler), base, rest, 30, 1e-4, 0.02)
        if np.abs(forward(joints, base)[0] - target).max() < 0.005:
            break
    command = 1.0 if rng.random() < 0.7 else -1.0
    return np.array([*target, *euler, 0.08 if command > 0 else 0.0, *joints, command])


def random_scene(rng: np.random.Generator, layout: L.Layout, task: str = "") -> np.ndarray:
    """scene_obs (24,): controls at an end or in between, lamps on or off, blocks on the table, in the cabinet, in the drawer
    or on each other. A task's name makes the start favour it."""
    scene = np.zeros(24)
    low_high = layout.joint_ranges
    for i, joint in enumerate(("slider", "drawer")):
        scene[i] = rng.choice([0.0, low_high[i, 1]]) if rng.random() < AT_END else rng.uniform(*low_high[i])
        opens = {"slider": ("left", "right"), "drawer": ("open", "close")}[joint]
        if f"move_{joint}_{opens[0]}" in task or f"{opens[0]}_{joint}" in task:
            scene[i] = rng.uniform(0, 0.05)
        if f"move_{joint}_{opens[1]}" in task or f"{opens[1]}_{joint}" in task:
            scene[i] = low_high[i, 1] - rng.uniform(0, 0.05)
    if "drawer" in task and task not in ("open_drawer", "close_drawer"):
        scene[1] = rng.uniform(0.17, 0.22)
    scene[3] = rng.choice([0.0, 0.088]) if rng.random() < 0.8 else rng.choice([rng.uniform(0, 0.03), rng.uniform(0.055, 0.088)])
    if "lightbulb" in task:
        scene[3] = 0.0 if "on" in task.split("_") else 0.088
    scene[4] = float(scene[3] > L.SWITCH_THRESHOLD)
    scene[5] = float("off" in task.split("_")) if "led" in task else float(rng.random() < 0.5)
    _place_blocks(rng, layout, scene, task)
    return scene


def _place_blocks(rng: np.random.Generator, layout: L.Layout, scene: np.ndarray, task: str) -> None:
    placed: list[np.ndarray] = []
    named = next((c for c in L.BLOCK_NAMES if c in task.split("_")), None)
    door = layout.door_left - scene[0], layout.door_left - scene[0] + L.DOOR_WIDTH
    for color in sorted(L.BLOCK_NAMES, key=lambda c: c != named):
        options = ["table", "table", "slider_left", "slider_right"] + (["drawer"] if scene[1] > 0.16 else [])
        if color == named:
            for word, places in (("drawer", ["drawer"]), ("slider", ["slider_left", "slider_right"])):
                if word in task:
                    options = places
            if not {"drawer", "slider"} & set(task.split("_")):
                options = ["table"]
        if task in ("push_into_drawer", "unstack_block") and not placed:
            options = ["table"]
        if task == "unstack_block" and len(placed) == 1:
            options = ["stack"]
        elif rng.random() < 0.06 and placed and placed[-1][1] < 0:
            options = ["stack"]
        for attempt in range(1000):
            where = str(rng.choice(options if attempt < 300 else ["table", "slider_left", "slider_right"]))
            if where == "table":
                x, y = min(rng.uniform(*layout.table), 0.27), rng.uniform(-0.15, -0.085)
                z, yaw = L.TABLE_TOP + 0.02, rng.uniform(-np.pi, np.pi)
                if task in ("push_into_drawer", "unstack_block") and not placed:
                    x, y = layout.drawer_x + rng.uniform(-0.14, 0.14), rng.uniform(-0.15, -0.09)
            elif where == "drawer":
                x, y = layout.drawer_x + rng.uniform(-0.11, 0.11), -0.169 - scene[1] / 2 + rng.normal(0, 0.01)
                z, yaw = L.DRAWER_FLOOR + 0.02, np.pi / 2 + rng.uniform(-0.5, 0.5)
            elif where == "stack" and placed:
                x, y, z = placed[-1][:3] + [*rng.normal(0, 0.003, 2), 0.0405]
                yaw = rng.uniform(-np.pi, np.pi)
                break
            else:
                low, high = layout.cabinet[0] + 0.08, layout.cabinet[1] - 0.08
                x, y = np.clip(rng.uniform(*getattr(layout, where)), low, high), rng.uniform(0.075, 0.105)
                z, yaw = L.PLANK_TOP + 0.02, np.pi / 2 + rng.uniform(-0.4, 0.4)
            clear = all(np.hypot(x - p[0], y - p[1]) > BLOCK_GAP for p in placed)
            under_switch = abs(x - layout.switch_x) < 0.08 and y > -0.12
            beside_button = np.hypot(x - layout.button_x, y - layout.button_y) > 0.09
            hidden = where.startswith("slider") and color == named and door[0] - 0.08 < x < door[1] + 0.08
            if clear and (where != "table" or (beside_button and not under_switch)) and not hidden:
                break
        placed.append(np.array([x, y, z]))
        start = 6 + 6 * layout.block_order.index(color)
        scene[start : start + 6] = [x, y, z, 0, 0, yaw]
