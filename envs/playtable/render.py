"""Between the worlds and a renderer: what each geom wears, lamps that shine, jittered cameras, images that stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from envs.playtable import dynamics
from envs.playtable import scene as S
from envs.playtable.appearance import TEXELS_PER_METRE, appearance, textures
from envs.playtable.raster import camera_id, renderer

BULB_LIT, LED_LIT = (1.0, 1.0, 0.0), (0.0, 1.0, 0.0)
SHADOW_REGION = (0.0, -0.05, 0.4, 0.75)
"""Centre and half side of what the shadow map covers: the table."""


class Painter:
    """Draws the cameras of N worlds, each wearing the look given by its seed."""

    def __init__(
        self, scenes: Sequence[str], cameras: Mapping[str, tuple[int, int]], kind: str, supersample: int, threads: int
    ) -> None:
        kinds = sorted(set(scenes))
        models = [S.build(scene) for scene in kinds]
        self._scenes = scenes
        self._model_index = np.array([kinds.index(scene) for scene in scenes], dtype=np.int32)
        self._geoms = {name: models[0].geom(name).id for name in ("light", "led")}
        self._camera_ids = {name: camera_id(models[0], name) for name in cameras}
        options = {
            "textures": textures(), "texels_per_metre": TEXELS_PER_METRE, "region": SHADOW_REGION,
            "supersample": supersample, "threads": threads,
        }  # fmt: skip
        self._renderer = renderer(kind, models, cameras, **options) if cameras else None
        count = len(scenes)
        self._images = {name: np.zeros((count, *size, 3), np.uint8) for name, size in cameras.items()}
        self._worn = np.full(count, -1, dtype=np.int64)
        self._rgba = np.zeros((count, models[0].ngeom, 4), np.float32)
        self._texture = np.full((count, models[0].ngeom), -1, np.int16)
        self._look = np.zeros((count, 13), np.float32)
        self._jitter = {name: np.zeros((count, 6)) for name in cameras}

    def paint(
        self, poses: Sequence[np.ndarray], userdata: np.ndarray, looks: np.ndarray, drawn: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Images of all worlds, camera -> uint8 (N, H, W, 3); drawn anew where `drawn` (N,) is True.

        poses: geom_xpos, geom_xmat, cam_xpos, cam_xmat of all worlds as MuJoCo gives them.
        """
        if self._renderer is None or not drawn.any():
            return {name: image.copy() for name, image in self._images.items()}
        for n in np.flatnonzero(looks != self._worn):
            worn = appearance(self._scenes[n], int(looks[n]))
            self._rgba[n], self._texture[n], self._look[n] = worn.rgba, worn.texture, worn.look
            for name, jitter in self._jitter.items():
                jitter[n] = worn.jitter[name]
            self._worn[n] = looks[n]
        rgba = self._rgba.copy()
        rgba[userdata[:, dynamics.BULB] > 0, self._geoms["light"], :3] = BULB_LIT
        rgba[userdata[:, dynamics.LED] > 0, self._geoms["led"], :3] = LED_LIT
        geom_pos, geom_mat, cam_pos, cam_mat = poses
        cam_pos, cam_mat = self._shake(cam_pos, cam_mat)
        self._renderer.render(
            geom_pos, geom_mat, cam_pos, cam_mat, model_index=self._model_index, geom_rgba=rgba, geom_tex=self._texture,
            look=self._look, mask=drawn, out=self._images,
        )  # fmt: skip
        return {name: image.copy() for name, image in self._images.items()}

    def _shake(self, cam_pos: np.ndarray, cam_mat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Camera poses with each world's jitter: an offset and a small rotation in the camera's own frame."""
        if not any(jitter.any() for jitter in self._jitter.values()):
            return cam_pos, cam_mat
        cam_pos, matrices = cam_pos.copy(), np.reshape(cam_mat, (*cam_mat.shape[:2], 3, 3)).copy()
        for name, jitter in self._jitter.items():
            i = self._camera_ids[name]
            cam_pos[:, i] += np.einsum("nij,nj->ni", matrices[:, i], jitter[:, :3])
            x, y, z = jitter[:, 3:].T
            zero = np.zeros_like(x)
            skew = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(-1, 3, 3)
            turned, _ = np.linalg.qr(matrices[:, i] @ (np.eye(3) + skew))
            matrices[:, i] = turned * np.sign(np.einsum("nij,nij->nj", turned, matrices[:, i]))[:, None]
        return cam_pos, matrices.reshape(cam_mat.shape)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
