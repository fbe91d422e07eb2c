"""The benchmark's default renderer: a z-buffer in numba. No OpenGL, no system packages, the same bytes on every machine.

Poses in, pictures out: `Rasteriser.render` takes the arrays that MuJoCo's forward kinematics leaves behind, for N worlds at
once, so it never touches an MjData. `gl.GLRasteriser` draws the same call with MuJoCo's OpenGL renderer.

Shading is ambient + headlight + one key light with a soft-edged shadow map. A texture is projected along the axis that a
face most nearly looks along in its geom's own frame, repeats, and multiplies the geom's colour.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import ArrayLike, NDArray

from envs.playtable import pixels
from envs.playtable.triangles import tabulate
from vla.spec import UserError

type Images = dict[str, NDArray[np.uint8]]


@dataclass(frozen=True)
class Look:
    """How a world is lit. Intensities multiply a surface's colour: a face turned to the key light gets about their sum.

    ambient: from everywhere (a quarter of it from above). key: the directional light. key_direction: towards it, world frame,
    any length. headlight: from the camera. shadow: 0 (none) to 1 (black). background_top, background_bottom: RGB 0..255.
    """

    ambient: float = 0.52
    key: float = 0.5
    key_direction: tuple[float, float, float] = (0.35, -0.45, 1.0)
    headlight: float = 0.16
    shadow: float = 0.75
    background_top: tuple[float, float, float] = (176.0, 196.0, 214.0)
    background_bottom: tuple[float, float, float] = (226.0, 230.0, 232.0)

    def pack(self) -> NDArray[np.float32]:
        """The float32 (13,) vector that `render` takes, in the order of the fields."""
        light = (self.ambient, self.key, *self.key_direction, self.headlight, self.shadow)
        return np.array((*light, *self.background_top, *self.background_bottom), np.float32)


class Rasteriser:
    """Draws `cameras` (name -> (height, width) in pixels) of worlds whose models are among `models`.

    textures: uint8 (K, S, S, 3), with `texels_per_metre` (K,) or one number. shadows: whether the key light casts them, over
    the square of half side `region[3]` metres around `region[:3]` (by default the model's centre and extent). near: metres;
    nothing nearer to a camera is drawn. supersample: draws s times larger and averages, for videos. threads: worlds drawn at a
    time; it never changes a pixel. Raises UserError for an unknown camera, or scenes with other geom or camera counts.
    """

    def __init__(
        self,
        models: mujoco.MjModel | Sequence[mujoco.MjModel],
        cameras: Mapping[str, tuple[int, int]],
        textures: ArrayLike | None = None,
        texels_per_metre: float | ArrayLike = 200.0,
        shadows: bool = True,
        region: tuple[float, float, float, float] | None = None,
        near: float = 0.01,
        supersample: int = 1,
        threads: int = 1,
    ) -> None:
        scenes: list[mujoco.MjModel] = [models] if isinstance(models, mujoco.MjModel) else list(models)
        self.cameras = dict(cameras)
        self.shadows, self.supersample, self._near = shadows, supersample, near
        self._eyes = scenes[0].ncam
        self._camera_of = {name: np.array([camera_id(model, name) for model in scenes], np.int32) for name in cameras}
        self._fovy_scale = {
            name: np.array([round(1 / math.tan(math.radians(m.cam_fovy[i]) / 2), 9) for m, i in zip(scenes, ids, strict=True)])
            for name, ids in self._camera_of.items()
        }
        tables = tabulate(scenes)
        self._tables = (
            tables.vertex, tables.normal, tables.face, tables.plane, tables.axis, tables.span, tables.radius, tables.casts
        )  # fmt: skip
        self._rgba = np.stack([model_rgba(model) for model in scenes])
        self._region = np.array([region or (*m.stat.center, m.stat.extent) for m in scenes], np.float64)
        bank = np.zeros((1, 1, 1, 3), np.uint8) if textures is None else np.array(textures, np.uint8, order="C")
        if bank.ndim != 4 or bank.shape[1] != bank.shape[2] or bank.shape[3] != 3:
            raise UserError(f"textures have shape {bank.shape}: give a uint8 array (K, S, S, 3).")
        density = np.array(np.broadcast_to(np.asarray(texels_per_metre, np.float32), len(bank)))
        self._bank = _refine(bank), 2 * density
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._compile(scenes[0])

    def render(
        self,
        geom_xpos: ArrayLike,
        geom_xmat: ArrayLike,
        cam_xpos: ArrayLike,
        cam_xmat: ArrayLike,
        *,
        model_index: ArrayLike | None = None,
        geom_rgba: ArrayLike | None = None,
        geom_tex: ArrayLike | None = None,
        look: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        out: Images | None = None,
        depth: dict[str, NDArray[np.float32]] | None = None,
        segmentation: dict[str, NDArray[np.int32]] | None = None,
    ) -> Images:
        """Draw N worlds; returns camera -> uint8 (N, H, W, 3), in `out`'s arrays where given.

        geom_xpos (N, G, 3), geom_xmat (N, G, 9), cam_xpos (N, C, 3), cam_xmat (N, C, 9): MjData's fields. model_index (N,):
        which of the models each world is (default 0). geom_rgba (N, G, 4): instead of the models' colours; alpha 0 hides a
        geom. geom_tex (N, G): index into the textures, -1 for none (the default). look (N, 13) or (13,): `Look.pack()`.
        mask (N,): worlds where it is False are left as they are in `out`, black without one. depth and segmentation:
        camera -> arrays (N, H, W) to fill with metres along the optical axis (inf where nothing is) and geom ids (-1).
        """
        count, geoms, eyes = len(np.asarray(geom_xpos)), self._rgba.shape[1], self._eyes
        position, geom_mat = _fit("geom_xpos", geom_xpos, (count, geoms, 3)), _fit("geom_xmat", geom_xmat, (count, geoms, 9))
        cam_pos, cam_mat = _fit("cam_xpos", cam_xpos, (count, eyes, 3)), _fit("cam_xmat", cam_xmat, (count, eyes, 9))
        model_of = _fit("model_index", 0 if model_index is None else model_index, (count,), np.int32, len(self._rgba))
        rgba = _fit("geom_rgba", self._rgba[model_of] if geom_rgba is None else geom_rgba, (count, geoms, 4))
        texture = _fit("geom_tex", -1 if geom_tex is None else geom_tex, (count, geoms), np.int16, len(self._bank[0]))
        looks = _fit("look", _DEFAULT_LOOK if look is None else look, (count, pixels.LOOK_SIZE))
        worlds = np.arange(count, dtype=np.int32) if mask is None else np.flatnonzero(np.asarray(mask)).astype(np.int32)
        shadows = np.empty((count if self.shadows else 0, pixels.SHADOW_SIZE, pixels.SHADOW_SIZE), np.float32)
        shape = {name: (count, *size) for name, size in self.cameras.items()}
        images = {name: np.zeros((*s, 3), np.uint8) for name, s in shape.items()} if out is None else out
        for name, expected in shape.items():
            for given, tail in ((images, (3,)), (depth, ()), (segmentation, ())):
                if given is not None and given[name].shape != (*expected, *tail):
                    raise UserError(f"image {name!r} has shape {given[name].shape}: give arrays of shape {(*expected, *tail)}.")
        scale = self.supersample
        large = {
            name: images[name] if scale == 1 else np.zeros((s[0], s[1] * scale, s[2] * scale, 3), np.uint8)
            for name, s in shape.items()
        }

        def part(worlds: NDArray[np.int32]) -> None:
            if self.shadows:
                pixels.cast_shadows(worlds, model_of, position, geom_mat, rgba, looks, self._region, self._tables, shadows)
            for name in self.cameras:
                pixels.draw(
                    worlds, model_of, position, geom_mat, rgba, texture, cam_pos, cam_mat, self._camera_of[name],
                    self._fovy_scale[name], looks, self._region, shadows, self._bank, self._tables, self._near, large[name],
                    _NO_DEPTH if depth is None else depth[name], _NO_IDS if segmentation is None else segmentation[name],
                )  # fmt: skip
                if scale > 1:
                    images[name][worlds] = shrink(large[name][worlds], scale)

        if self._pool is None:
            part(worlds)
        else:
            list(self._pool.map(part, np.array_split(worlds, self._threads)))
        return images

    def close(self) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def _compile(self, model: mujoco.MjModel) -> None:
        """Load the compiled loops, saying so when they are not in numba's cache yet."""
        notice = threading.Timer(4.0, print, ["compiling the software renderer (about 20 s, once per machine) ..."])
        notice.daemon = True
        notice.start()
        nowhere = np.zeros((0, model.ngeom, 9)), np.zeros((0, model.ncam, 9))
        self.render(nowhere[0][..., :3], nowhere[0], nowhere[1][..., :3], nowhere[1])
        notice.cancel()


def renderer(kind: str, models: mujoco.MjModel | Sequence[mujoco.MjModel], cameras: Mapping[str, tuple[int, int]], **options):
    """The renderer that a config asks for by word: "raster" (this one) or "gl" (MuJoCo's). Raises UserError for another."""
    if kind == "raster":
        return Rasteriser(models, cameras, **options)
    if kind == "gl":
        from envs.playtable.gl import GLRasteriser

        return GLRasteriser(models, cameras, **options)
    raise UserError(f"renderer {kind!r} is unknown: choose 'raster' or 'gl'.")


_DEFAULT_LOOK = Look().pack()
_NO_DEPTH, _NO_IDS = np.empty((0, 0, 0), np.float32), np.empty((0, 0, 0), np.int32)


def _fit(name: str, values: ArrayLike, shape: tuple[int, ...], kind: type = np.float32, limit: int | None = None) -> NDArray:
    """A fresh contiguous array of one type for the kernels, which check nothing; raises UserError for misfits."""
    try:
        fitted = np.array(np.broadcast_to(np.asarray(values), shape), kind, order="C")
    except ValueError:
        raise UserError(f"{name} has shape {np.shape(values)}: give {shape}.") from None
    if limit is not None and fitted.size and fitted.max() >= limit:
        raise UserError(f"{name} holds {fitted.max()}: give numbers below {limit}.")
    return fitted


def camera_id(model: mujoco.MjModel, name: str) -> int:
    """The camera's index; raises UserError naming the cameras that there are."""
    index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name)
    if index < 0:
        known = ", ".join(model.camera(i).name for i in range(model.ncam))
        raise UserError(f"camera {name!r} is not in the scene: choose among {known}.")
    return index


def model_rgba(model: mujoco.MjModel) -> NDArray[np.float32]:
    """Each geom's colour (G, 4): its own, or its material's where its own was left at MuJoCo's default grey."""
    rgba = model.geom_rgba.copy()
    plain = (model.geom_matid >= 0) & (rgba == 0.5 * np.array([1, 1, 1, 2], np.float32)).all(1)
    rgba[plain] = model.mat_rgba[model.geom_matid[plain]]
    return rgba


def _refine(textures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Textures with twice the texels, interpolated and periodic, because the loops only look up the nearest."""
    for axis in (1, 2):
        wide, ahead, behind = textures.astype(np.uint16), np.roll(textures, -1, axis), np.roll(textures, 1, axis)
        both = np.stack([(3 * wide + behind + 2) // 4, (3 * wide + ahead + 2) // 4], axis + 1)
        textures = both.astype(np.uint8).reshape(*(n * (1 + (i == axis)) for i, n in enumerate(textures.shape)))
    return textures


def shrink(images: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Average blocks of scale x scale pixels: (N, H, W, 3) to (N, H / scale, W / scale, 3)."""
    count, height, width, _ = images.shape
    blocks = images.reshape(count, height // scale, scale, width // scale, scale, 3)
    return ((blocks.sum((2, 4), dtype=np.uint32) + scale * scale // 2) // (scale * scale)).astype(np.uint8)
