"""The alternative renderer: MuJoCo's own OpenGL one, off screen through EGL, behind the same call as `raster.Rasteriser`.

Its pixels depend on the driver, so numbers measured with it are not comparable with the benchmark's. Two differences in looks:
a texture shows as its mean colour only, and shadows are MuJoCo's. It draws one world after the other in the calling thread.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Mapping, Sequence

import mujoco
import numpy as np
from numpy.typing import ArrayLike, NDArray

from envs.playtable.raster import Images, Look, camera_id, model_rgba, shrink
from vla.spec import UserError

FAR = 50.0  # metres


class GLRasteriser:
    """Draws `cameras` (name -> (height, width)) of worlds whose models are among `models`, as `raster.Rasteriser` does.

    The options mean the same; `region` and `threads` are MuJoCo's own affair here and not used. Raises UserError when no
    OpenGL library loads.
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
        self._drawers: list[mujoco.MjrContext] = []
        del texels_per_metre, region, threads
        scenes: list[mujoco.MjModel] = [models] if isinstance(models, mujoco.MjModel) else list(models)
        self.cameras, self.shadows, self.supersample, self._near = dict(cameras), shadows, supersample, near
        self._camera_of = {name: [camera_id(model, name) for model in scenes] for name in cameras}
        self._rgba = np.stack([model_rgba(model) for model in scenes])
        self._tint = np.ones((1, 3)) if textures is None else np.asarray(textures).mean((1, 2)) / 255
        height = max(size[0] for size in cameras.values()) * supersample
        width = max(size[1] for size in cameras.values()) * supersample
        self._gl = _context(width, height)
        self._gl.make_current()
        self._models, self._data, self._scenes = [], [], []
        for scene in scenes:
            model = copy.copy(scene)
            model.geom_matid[:] = -1
            model.light_active[:] = 0
            model.vis.headlight.active = 1
            model.vis.headlight.specular[:] = 0
            model.vis.quality.shadowsize = 1024  # MuJoCo's 4096 takes 0.1 s a picture without a GPU
            model.vis.global_.offwidth, model.vis.global_.offheight = width, height
            model.vis.map.znear, model.vis.map.zfar = near / model.stat.extent, FAR / model.stat.extent
            view = mujoco.MjvScene(model, maxgeom=model.ngeom + 1)
            view.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows
            drawer = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, drawer)
            drawer.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
            self._models.append(model)
            self._data.append(mujoco.MjData(model))
            self._scenes.append(view)
            self._drawers.append(drawer)

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
        """Draw N worlds; arguments and result as for `raster.Rasteriser.render`."""
        poses = [np.asarray(a) for a in (geom_xpos, geom_xmat, cam_xpos, cam_xmat)]
        count = len(poses[0])
        model_of = np.broadcast_to(0 if model_index is None else np.asarray(model_index), count)
        rgba = np.array(self._rgba[model_of] if geom_rgba is None else geom_rgba)
        if geom_tex is not None:
            texture = np.broadcast_to(np.asarray(geom_tex), rgba.shape[:2])
            rgba[..., :3] *= np.where(texture[..., None] >= 0, self._tint[texture], 1)
        looks = np.broadcast_to(Look().pack() if look is None else np.asarray(look, np.float32), (count, len(Look().pack())))
        images = out or {name: np.zeros((count, *size, 3), np.uint8) for name, size in self.cameras.items()}
        self._gl.make_current()
        for n in range(count) if mask is None else np.flatnonzero(np.asarray(mask)):
            model, data = self._models[model_of[n]], self._data[model_of[n]]
            model.geom_rgba[:] = rgba[n]
            for field, values in zip((data.geom_xpos, data.geom_xmat, data.cam_xpos, data.cam_xmat), poses, strict=True):
                field[:] = values[n]
            for name in self.cameras:
                image = self._draw(int(model_of[n]), name, looks[n])
                images[name][n] = shrink(image[None], self.supersample)[0]
                if depth is not None or segmentation is not None:
                    metres, ids = self._measure(int(model_of[n]), name)
                    if depth is not None:
                        depth[name][n] = metres[:: self.supersample, :: self.supersample]
                    if segmentation is not None:
                        segmentation[name][n] = ids[:: self.supersample, :: self.supersample]
        return images

    def close(self) -> None:
        """Free the OpenGL context. What is drawn with must go while its own context is current, or another's breaks."""
        if self._drawers:
            self._gl.make_current()
            for drawer in self._drawers:
                drawer.free()
            self._drawers.clear()
            self._gl.free()

    def __del__(self) -> None:
        if not sys.is_finalizing():  # by then EGL itself has gone
            self.close()

    def _draw(self, index: int, name: str, look: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Picture (H, W, 3) of the poses that data holds now."""
        ambient, key, head = look[0], look[1], look[5]
        model, view = self._models[index], self._scenes[index]
        model.vis.headlight.ambient[:], model.vis.headlight.diffuse[:] = ambient, head
        self._update(index, name)
        light = view.lights[view.nlight]
        view.nlight += 1
        light.type, light.headlight, light.castshadow = mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, 0, self.shadows
        light.dir[:] = -look[2:5] / np.linalg.norm(look[2:5])
        light.pos[:] = model.stat.center - 2 * model.stat.extent * light.dir
        light.ambient[:], light.diffuse[:], light.specular[:], light.attenuation[:] = 0, key, 0, (1, 0, 0)
        image, depth = self._read(index, name)
        height = len(image)
        mix = ((np.arange(height) + 0.5) / height)[:, None, None]
        background = np.broadcast_to(look[7:10] + (look[10:13] - look[7:10]) * mix, image.shape)
        empty = depth <= 0
        image[empty] = background[empty]
        return image

    def _measure(self, index: int, name: str) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Depth in metres and geom ids (H, W); inf and -1 where nothing is. Drawn without antialiasing or textures."""
        view = self._scenes[index]
        flags = [mujoco.mjtRndFlag.mjRND_SEGMENT.value, mujoco.mjtRndFlag.mjRND_IDCOLOR.value]
        self._update(index, name)
        view.flags[flags] = 1
        image, depth = self._read(index, name)
        view.flags[flags] = 0
        geom_of = np.full(view.ngeom + 1, -1, np.int32)
        for geom in view.geoms[: view.ngeom]:
            geom_of[geom.segid + 1] = geom.objid
        metres = self._near * FAR / (self._near + depth * (FAR - self._near))
        metres[depth <= 0] = np.inf
        return metres, geom_of[image.astype(np.int32) @ np.array([1, 256, 65536])]

    def _update(self, index: int, name: str) -> None:
        camera = mujoco.MjvCamera()
        camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, self._camera_of[name][index]
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(
            self._models[index], self._data[index], mujoco.MjvOption(), None, camera, everything, self._scenes[index]
        )

    def _read(self, index: int, name: str) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        height, width = (side * self.supersample for side in self.cameras[name])
        image, depth = np.empty((height, width, 3), np.uint8), np.empty((height, width), np.float32)
        frame = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(frame, self._scenes[index], self._drawers[index])
        mujoco.mjr_readPixels(image, depth, frame, self._drawers[index])
        return image[::-1].copy(), depth[::-1]


def _context(width: int, height: int):
    """An off-screen OpenGL context: EGL, or what the environment variable MUJOCO_GL asks for."""
    try:
        if os.environ.get("MUJOCO_GL"):
            from mujoco.rendering.classic.gl_context import GLContext
        else:
            from mujoco.egl import GLContext
        return GLContext(width, height)
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        raise UserError(
            f"renderer 'gl' finds no OpenGL ({error}): run `apt-get install libegl1 libgl1-mesa-dri` or choose 'raster'."
        ) from error
