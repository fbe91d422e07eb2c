"""How a scene looks: procedural textures, colours and light of our own, one look per scene, and a seeded randomiser.

Everything is computed from numbers, so the repository holds no images and every machine draws the same ones.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from envs.playtable import scene as S
from envs.playtable.raster import Look

TEXTURE_SIZE = 64
TEXELS_PER_METRE = 160.0


@dataclass(frozen=True)
class Appearance:
    """rgba (G, 4), texture (G,) index into `textures()` or -1, look (13,), and camera -> pose jitter (metres, radians) (6,)."""

    rgba: np.ndarray
    texture: np.ndarray
    look: np.ndarray
    jitter: dict[str, np.ndarray]


@dataclass(frozen=True)
class Style:
    """A scene's own look: wood of the base, wood of drawer and door, handles, floor; light direction and strength."""

    base: str
    panel: str
    base_tint: tuple[float, float, float]
    panel_tint: tuple[float, float, float]
    handle: tuple[float, float, float]
    floor_tint: tuple[float, float, float]
    key: tuple[float, float, float]
    strength: float


STYLES = {
    "A": Style(
        "oak", "oak", (0.55, 0.36, 0.24), (0.5, 0.31, 0.2),
        (0.62, 0.6, 0.58), (0.95, 0.95, 0.97), (0.35, -0.45, 1), 0.50,
    ),
    "B": Style(
        "pine", "pine", (0.98, 0.8, 0.58), (0.95, 0.76, 0.52),
        (0.72, 0.7, 0.66), (0.9, 0.93, 0.95), (-0.5, -0.3, 1), 0.56,
    ),
    "C": Style(
        "walnut", "oak", (0.66, 0.47, 0.3), (0.49, 0.3, 0.2),
        (0.6, 0.6, 0.62), (0.96, 0.93, 0.9), (0.1, -0.8, 1), 0.46,
    ),
    "D": Style(
        "walnut", "walnut", (0.64, 0.49, 0.36), (0.62, 0.47, 0.34),
        (0.67, 0.66, 0.64), (0.93, 0.95, 0.92), (0.6, -0.1, 1), 0.53,
    ),
}  # fmt: skip
WOODS = ("oak", "pine", "walnut")
PATTERNS = (*WOODS, "tiles", "speckle", "linen", "stripes", "clouds")
VARIANTS = 4
"""Differently seeded copies of each pattern, so that the randomiser has more to choose from."""


def _noise(rng: np.random.Generator, cells_y: int, cells_x: int) -> np.ndarray:
    """Smooth periodic noise in [0, 1], (S, S), with the given number of cells along each axis."""
    grid = rng.random((cells_y, cells_x))
    y = np.arange(TEXTURE_SIZE) * cells_y / TEXTURE_SIZE
    x = np.arange(TEXTURE_SIZE) * cells_x / TEXTURE_SIZE
    y0, x0 = y.astype(int), x.astype(int)
    fy, fx = (y - y0)[:, None], (x - x0)[None]
    fy, fx = fy * fy * (3 - 2 * fy), fx * fx * (3 - 2 * fx)
    corner = [[grid[np.ix_((y0 + i) % cells_y, (x0 + j) % cells_x)] for j in (0, 1)] for i in (0, 1)]
    top = corner[0][0] * (1 - fx) + corner[0][1] * fx
    return top * (1 - fy) + (corner[1][0] * (1 - fx) + corner[1][1] * fx) * fy


def _pattern(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Brightness (S, S) in [0, 1] of one pattern."""
    v, u = np.mgrid[:TEXTURE_SIZE, :TEXTURE_SIZE] / TEXTURE_SIZE
    fine = _noise(rng, 32, 8)
    if kind == "oak":
        rings = np.sin(2 * np.pi * (4 * v + 0.8 * _noise(rng, 3, 2)))
        return 0.80 + 0.12 * rings + 0.10 * (fine - 0.5)
    if kind == "pine":
        rings = np.sin(2 * np.pi * (3 * v + 0.5 * _noise(rng, 2, 2)))
        knots = _noise(rng, 4, 4) > 0.88
        return 0.92 + 0.06 * rings - 0.15 * knots + 0.04 * (fine - 0.5)
    if kind == "walnut":
        rings = np.sin(2 * np.pi * (6 * v + 1.5 * _noise(rng, 3, 3)))
        return 0.82 + 0.10 * rings * _noise(rng, 4, 2) + 0.14 * (fine - 0.5)
    if kind == "tiles":
        return np.where((np.floor(2 * u) + np.floor(2 * v)) % 2 > 0, 1.0, 0.87)
    if kind == "speckle":
        return 0.85 + 0.3 * (_noise(rng, 32, 32) - 0.5)
    if kind == "linen":
        return 0.85 + 0.10 * np.sin(2 * np.pi * 16 * u) * np.sin(2 * np.pi * 16 * v) + 0.08 * (fine - 0.5)
    if kind == "stripes":
        return 0.85 + 0.14 * np.sign(np.sin(2 * np.pi * rng.integers(2, 6) * u))
    return 0.80 + 0.4 * (_noise(rng, 4, 4) - 0.5) + 0.2 * (_noise(rng, 9, 9) - 0.5)


@functools.cache
def textures() -> np.ndarray:
    """uint8 (K, S, S, 3): VARIANTS of each of PATTERNS, greyish; a geom's colour multiplies them."""
    bank = []
    for i, kind in enumerate(PATTERNS):
        for variant in range(VARIANTS):
            grey = np.clip(_pattern(kind, np.random.default_rng([i, variant])), 0, 1)
            bank.append(np.repeat(np.round(255 * grey)[..., None], 3, axis=-1))
    return np.array(bank, dtype=np.uint8)


def _texture(kind: str, variant: int = 0) -> int:
    return PATTERNS.index(kind) * VARIANTS + variant


def _slots(scene: str) -> dict[str, np.ndarray]:
    """Which geoms wear which material: arrays of geom ids."""
    model = S.build(scene)
    names = [model.geom(i).name for i in range(model.ngeom)]

    def ids(test) -> np.ndarray:
        return np.array([i for i, name in enumerate(names) if test(name)])

    return {
        "floor": ids(lambda n: n == "floor"),
        "base": ids(lambda n: n in ("plank",) or (n.startswith("base") and n != "base_ring")),
        "panel": ids(lambda n: n.startswith(("slide_panel", "drawer")) and "handle" not in n and "post" not in n),
        "handle": ids(lambda n: "_handle" in n or "_post" in n),
        "robot": ids(lambda n: n.startswith(("link", "hand", "pedestal"))),
    }


@functools.lru_cache(maxsize=4096)
def appearance(scene: str, seed: int = 0) -> Appearance:
    """Seed 0 is the scene's own look; any other seed draws woods, tints, floor, light and a camera jitter from it.

    The randomiser leaves what tasks name alone: block hues stay red, blue and pink, lamps stay lamps.
    """
    style, slots, model = STYLES[scene], _slots(scene), S.build(scene)
    rgba = model.geom_rgba.astype(np.float32).copy()
    texture = np.full(model.ngeom, -1, dtype=np.int16)
    look = Look(key=style.strength, key_direction=style.key)
    jitter: dict[str, np.ndarray] = {"static": np.zeros(6), "wrist": np.zeros(6)}
    worn = {
        "floor": (_texture("tiles"), style.floor_tint),
        "base": (_texture(style.base), style.base_tint),
        "panel": (_texture(style.panel, 1), style.panel_tint),
        "handle": (-1, style.handle),
    }
    if seed:
        rng = np.random.default_rng([seed, ord(scene)])
        wood = np.array([0.2, 0.18, 0.16]) + rng.uniform(0, 1) * np.array([0.78, 0.68, 0.55])
        for slot in ("base", "panel"):
            tint = wood + rng.uniform(-0.12, 0.12, 3) if rng.random() < 0.8 else rng.uniform(0.15, 1.0, 3)
            worn[slot] = int(rng.integers(len(PATTERNS) * VARIANTS)), tuple(np.clip(tint, 0.1, 1.0))
        worn["floor"] = int(rng.integers(len(PATTERNS) * VARIANTS)), tuple(rng.uniform(0.6, 1.0, 3))
        worn["handle"] = -1, tuple(np.clip(rng.uniform(0.35, 0.9) + rng.uniform(-0.05, 0.05, 3), 0, 1))
        rgba[slots["robot"], :3] = np.clip(rng.uniform(0.75, 1.0) + rng.uniform(-0.04, 0.04, 3), 0, 1)
        for color in S.L.BLOCK_COLORS:
            geom = model.geom(f"block_{color}").id
            rgba[geom, :3] = np.clip(rgba[geom, :3] * rng.uniform(0.75, 1.15) + rng.uniform(-0.05, 0.05, 3), 0, 1)
        look = Look(
            ambient=rng.uniform(0.40, 0.62),
            key=rng.uniform(0.30, 0.65),
            key_direction=(rng.uniform(-0.9, 0.9), rng.uniform(-0.9, 0.2), 1.0),
            headlight=rng.uniform(0.05, 0.25),
            shadow=rng.uniform(0.3, 0.9),
        )
        jitter["static"] = np.concatenate([rng.normal(0, 0.03, 3), rng.normal(0, 0.003, 3)])
        jitter["wrist"] = np.concatenate([rng.normal(0, 0.002, 3), rng.normal(0, 0.01, 3)])
    for slot, (index, tint) in worn.items():
        texture[slots[slot]] = index
        rgba[slots[slot], :3] = tint
    return Appearance(rgba, texture, look.pack(), jitter)
