"""MuJoCo geoms as triangles, made once per model for the software renderer.

Everything is in the geom's own frame, in metres, wound counter-clockwise seen from outside. `geom_xpos` and `geom_xmat` are
consistent with `mesh_vert` (MuJoCo recentres meshes), so a geom's pose is all that is needed to place its triangles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray

from vla.spec import UserError

SLICES = 16  # around a cylinder, capsule, sphere or ellipsoid
STACKS = 4  # from equator to pole of a sphere, capsule or ellipsoid
CREASE = 0.77  # cosine of the angle (40 degrees) from which an edge of a mesh stays sharp
INFINITE = 10.0  # half size in metres of a plane whose size is given as 0
GROUPS = 3  # geoms of group 0, 1 and 2 are drawn, as in MuJoCo's own viewer

type Surface = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]  # vertices, normals, faces
_Type = mujoco.mjtGeom


@dataclass(frozen=True)
class Tables:
    """The triangles of M models with G geoms each; contiguous arrays for the compiled kernels.

    vertex, normal: float32 (V, 3). face: int32 (T, 3) rows of `vertex`. plane: float32 (T, 4) outward normal and offset.
    axis: int8 (T,) the normal's dominant axis, along which textures are projected. span: int32 (M, G, 4) first and last
    vertex, first and last face of each geom (empty when it is never drawn). radius: float32 (M, G) bounding sphere about
    the geom's origin. casts: bool (M, G) whether it throws shadows (planes only receive them).
    """

    vertex: NDArray[np.float32]
    normal: NDArray[np.float32]
    face: NDArray[np.int32]
    plane: NDArray[np.float32]
    axis: NDArray[np.int8]
    span: NDArray[np.int32]
    radius: NDArray[np.float32]
    casts: NDArray[np.bool_]


def tabulate(models: Sequence[mujoco.MjModel]) -> Tables:
    """Triangulate every drawable geom of every model. Raises UserError for other geom counts or kinds."""
    count = models[0].ngeom
    span = np.zeros((len(models), count, 4), np.int32)
    radius = np.zeros((len(models), count), np.float32)
    casts = np.zeros((len(models), count), bool)
    vertices: list[NDArray[np.float64]] = [np.zeros((0, 3))]
    normals: list[NDArray[np.float64]] = [np.zeros((0, 3))]
    faces: list[NDArray[np.int64]] = [np.zeros((0, 3), np.int64)]
    first_vertex = first_face = 0
    for m, model in enumerate(models):
        if (model.ngeom, model.ncam) != (count, models[0].ncam):
            parts = f"{model.ngeom} geoms and {model.ncam} cameras, scene 0 has {count} and {models[0].ncam}"
            raise UserError(f"scene {m} has {parts}: build all scenes with the same parts.")
        for g in range(count):
            if model.geom_group[g] >= GROUPS:
                continue
            vertex, normal, face = surface(model, g)
            span[m, g] = first_vertex, first_vertex + len(vertex), first_face, first_face + len(face)
            radius[m, g] = np.sqrt((vertex**2).sum(1).max()) * 1.0001
            casts[m, g] = model.geom_type[g] != _Type.mjGEOM_PLANE
            vertices.append(vertex)
            normals.append(normal)
            faces.append(face + first_vertex)
            first_vertex, first_face = first_vertex + len(vertex), first_face + len(face)
    vertex, face = np.concatenate(vertices), np.concatenate(faces)
    corner = vertex[face]
    outward = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    outward /= np.maximum(np.linalg.norm(outward, axis=1, keepdims=True), 1e-30)
    plane = np.concatenate([outward, (outward * corner[:, 0]).sum(1, keepdims=True)], axis=1)
    return Tables(
        vertex.astype(np.float32),
        np.concatenate(normals).astype(np.float32),
        face.astype(np.int32),
        plane.astype(np.float32),
        np.abs(outward).argmax(1).astype(np.int8),
        span,
        radius,
        casts,
    )


def surface(model: mujoco.MjModel, geom: int) -> Surface:
    """One geom's vertices (V, 3), normals (V, 3) and faces (F, 3). Raises UserError for a kind without triangles."""
    kind, size = _Type(int(model.geom_type[geom])), model.geom_size[geom].astype(np.float64)
    match kind:
        case _Type.mjGEOM_PLANE:
            half = np.where(size[:2] > 0, size[:2], INFINITE)
            corner = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
            return np.pad(corner, ((0, 0), (0, 1))), np.tile([0.0, 0.0, 1.0], (4, 1)), np.array([[0, 1, 2], [0, 2, 3]])
        case _Type.mjGEOM_BOX:
            return _box(size)
        case _Type.mjGEOM_SPHERE:
            return _revolve(_dome(size[0], 0.0))
        case _Type.mjGEOM_CAPSULE:
            return _revolve(_dome(size[0], size[1]))
        case _Type.mjGEOM_ELLIPSOID:
            vertex, normal, face = _revolve(_dome(1.0, 0.0))
            normal = normal / size
            return vertex * size, normal / np.linalg.norm(normal, axis=1, keepdims=True), face
        case _Type.mjGEOM_CYLINDER:
            radius, half = size[:2]
            side = [(radius, half, 1.0, 0.0), (radius, -half, 1.0, 0.0)]
            top = [(0.0, half, 0.0, 1.0), (radius, half, 0.0, 1.0)]
            bottom = [(radius, -half, 0.0, -1.0), (0.0, -half, 0.0, -1.0)]
            return _join(_revolve(top), _revolve(side), _revolve(bottom))
        case _Type.mjGEOM_MESH:
            return _mesh(model, int(model.geom_dataid[geom]))
        case _:
            name = model.geom(geom).name or geom
            raise UserError(f"geom {name!r} is of kind {kind.name}, which the renderer cannot draw: move it to group 3.")


def _box(half: NDArray[np.float64]) -> Surface:
    vertex, normal, face = [], [], []
    for axis in range(3):
        for sign in (1.0, -1.0):
            out = np.zeros(3)
            out[axis] = sign
            across, along = np.eye(3)[(axis + 1) % 3], np.eye(3)[(axis + 2) % 3] * sign
            start = len(vertex)
            vertex += [(out + s * across + t * along) * half for s, t in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
            normal += [out] * 4
            face += [(start, start + 1, start + 2), (start, start + 2, start + 3)]
    return np.array(vertex), np.array(normal), np.array(face)


def _dome(radius: float, half: float) -> list[tuple[float, float, float, float]]:
    """Profile of a sphere (half 0) or capsule from the top pole down: (distance from axis, z, normal out, normal up)."""
    circle = _circle(4 * STACKS)[STACKS::-1]
    upper = [(radius * c, half + radius * s, c, s) for c, s in circle]
    lower = [(r, -z, out, -up) for r, z, out, up in reversed(upper)]
    return upper + (lower if half > 0 else lower[1:])


def _circle(count: int) -> NDArray[np.float64]:
    """Cosine and sine of `count` equal steps around, rounded so that libraries which differ in the last bit agree."""
    turn = np.arange(count) * (2 * np.pi / count)
    return np.stack([np.cos(turn), np.sin(turn)], 1).round(9)


def _revolve(profile: list[tuple[float, float, float, float]]) -> Surface:
    """Turn a profile (top to bottom) about the z axis."""
    ring = _circle(SLICES)
    vertex = np.concatenate([np.column_stack([ring * r, np.full(SLICES, z)]) for r, z, _, _ in profile])
    normal = np.concatenate([np.column_stack([ring * out, np.full(SLICES, up)]) for _, _, out, up in profile])
    face = []
    for row in range(len(profile) - 1):
        for i in range(SLICES):
            j = (i + 1) % SLICES
            a, b, c, d = row * SLICES + i, row * SLICES + j, (row + 1) * SLICES + i, (row + 1) * SLICES + j
            if profile[row + 1][0] > 0:
                face.append((a, c, d))
            if profile[row][0] > 0:
                face.append((a, d, b))
    return vertex, normal, np.array(face)


def _mesh(model: mujoco.MjModel, mesh: int) -> Surface:
    """A mesh, smoothed over edges that turn by less than CREASE; each face has its own three vertices where they differ."""
    start, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
    face = model.mesh_face[start : start + count].astype(np.int64)
    vertex = model.mesh_vert[model.mesh_vertadr[mesh] :][: model.mesh_vertnum[mesh]].astype(np.float64)
    corner = vertex[face]
    area = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    unit = area / np.maximum(np.linalg.norm(area, axis=1, keepdims=True), 1e-30)
    around: list[list[int]] = [[] for _ in vertex]
    for f, corners in enumerate(face):
        for v in corners:
            around[v].append(f)
    normal = np.empty((count, 3, 3))
    for f, corners in enumerate(face):
        for c, v in enumerate(corners):
            beside = np.array(around[v])
            normal[f, c] = area[beside[unit[beside] @ unit[f] > CREASE]].sum(0)
    normal = (normal / np.maximum(np.linalg.norm(normal, axis=2, keepdims=True), 1e-30)).reshape(-1, 3).round(6)
    pairs, index = np.unique(np.column_stack([face.ravel(), normal]), axis=0, return_inverse=True)
    return vertex[pairs[:, 0].astype(np.int64)], pairs[:, 1:], index.reshape(-1, 3)


def _join(*parts: Surface) -> Surface:
    start = np.cumsum([0] + [len(vertex) for vertex, _, _ in parts])
    return (
        np.concatenate([p[0] for p in parts]),
        np.concatenate([p[1] for p in parts]),
        np.concatenate([p[2] + s for p, s in zip(parts, start, strict=False)]),
    )
