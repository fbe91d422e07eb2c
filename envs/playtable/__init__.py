"""A MuJoCo world with CALVIN's table, tasks and protocol."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium

from envs.playtable.layout import layout_of
from envs.playtable.world import CALVIN_CAMERAS, Playtable
from vla.spec import UserError

__all__ = ["Playtable", "make"]


def make(
    scene: str | Sequence[str] = "D",
    num_worlds: int = 1,
    cameras: Mapping[str, tuple[int, int]] = CALVIN_CAMERAS,
    threads: int = 1,
    **options: Any,
) -> Playtable:
    """`num_worlds` worlds; with several scenes ("ABC") the worlds take them in turn. Options as for `Playtable`.

    threads: 0 takes every core.
    """
    if num_worlds < 1:
        raise UserError(f"num_worlds is {num_worlds}: at least one world is needed.")
    if not len(scene):
        raise UserError("scene is empty: name one or several of A, B, C, D.")
    for name in scene:  # also those that so few worlds would not come to
        layout_of(name)
    scenes = [scene[i % len(scene)] for i in range(num_worlds)]
    return Playtable(scenes, dict(cameras), threads=threads or os.cpu_count() or 1, **options)


gymnasium.register(
    id="playtable/Playtable-v0",
    entry_point="envs.playtable.single:PlaytableEnv",
    vector_entry_point="envs.playtable.single:make_vector",
)
