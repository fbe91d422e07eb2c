"""The renderer's compiled loops: shadow maps and a deferred z-buffer.

Edge functions are homogeneous (Olano and Greer 1997): for corners v0, v1, v2 in camera axes and the pixel's ray d, the
number b_i = (v_j x v_k) . d / det is corner i's weight divided by depth. It is linear in the pixel, so no polygon is ever
clipped at the near plane, neighbours share their edge exactly, and 1/depth is the sum of the three. Only + - * / and sqrt
are used, never contracted or reordered: the same model gives the same bytes on every machine and for any thread count.
"""

from __future__ import annotations

import math

import numba
import numpy as np

# Indices into a world's float32 look vector; see Look in raster.py.
AMBIENT, KEY, KEY_X, KEY_Y, KEY_Z, HEADLIGHT, SHADOW, TOP, BOTTOM, LOOK_SIZE = 0, 1, 2, 3, 4, 5, 6, 7, 10, 13
SHADOW_SIZE = 128  # shadow map texels a side
ZERO, HALF, ONE, WHITE, EDGE = np.float32(0), np.float32(0.5), np.float32(1), np.float32(255), np.float32(SHADOW_SIZE - 1)
_jit = numba.njit(cache=True, nogil=True, error_model="numpy")


@_jit
def light_axes(look):
    """Rows right, up and towards the key light, orthonormal, float64 (3, 3)."""
    axes = np.empty((3, 3))
    length = math.sqrt(look[KEY_X] ** 2 + look[KEY_Y] ** 2 + look[KEY_Z] ** 2)
    x, y, z = look[KEY_X] / length, look[KEY_Y] / length, look[KEY_Z] / length
    flat = math.sqrt(x * x + y * y)
    rx, ry = (-y / flat, x / flat) if flat > 1e-6 else (1.0, 0.0)
    axes[0] = (rx, ry, 0.0)
    axes[1] = (-z * ry, z * rx, x * ry - y * rx)
    axes[2] = (x, y, z)
    return axes


@_jit
def cast_shadows(worlds, model_of, geom_pos, geom_mat, rgba, look, region, tables, out):
    """Fill out float32 (N, SHADOW_SIZE, SHADOW_SIZE): the height towards the key light of the back faces nearest to it.

    region: float64 (M, 4) centre and half side in metres of the square that the map covers, across the light.
    """
    vertex, _, face, plane, _, span, radius, casts = tables
    longest = 1
    for m in range(span.shape[0]):
        for g in range(span.shape[1]):
            longest = max(longest, span[m, g, 1] - span[m, g, 0])
    at = np.empty((longest, 3))
    size = SHADOW_SIZE
    for n in worlds:
        m = model_of[n]
        axes = light_axes(look[n])
        scale = size / (2 * region[m, 3])
        image = out[n]
        image[:] = -1e30
        for g in range(span.shape[1]):
            first, last, face_first, face_last = span[m, g]
            if first == last or not casts[m, g] or rgba[n, g, 3] <= 0:
                continue
            p, r = geom_pos[n, g] - region[m, :3], geom_mat[n, g]
            # light axes in the geom's frame, and its origin in the light's
            a = np.empty((3, 4))
            for i in range(3):
                for k in range(3):
                    a[i, k] = axes[i, 0] * r[k] + axes[i, 1] * r[3 + k] + axes[i, 2] * r[6 + k]
                a[i, 3] = axes[i, 0] * p[0] + axes[i, 1] * p[1] + axes[i, 2] * p[2]
            reach = region[m, 3] + radius[m, g]
            if abs(a[0, 3]) > reach or abs(a[1, 3]) > reach:
                continue
            for v in range(first, last):
                x, y, z = vertex[v]
                at[v - first, 0] = (a[0, 0] * x + a[0, 1] * y + a[0, 2] * z + a[0, 3]) * scale + 0.5 * size
                at[v - first, 1] = (a[1, 0] * x + a[1, 1] * y + a[1, 2] * z + a[1, 3]) * scale + 0.5 * size
                at[v - first, 2] = a[2, 0] * x + a[2, 1] * y + a[2, 2] * z + a[2, 3]
            for f in range(face_first, face_last):
                if plane[f, 0] * a[2, 0] + plane[f, 1] * a[2, 1] + plane[f, 2] * a[2, 2] >= 0:
                    continue
                i, j, k = face[f, 0] - first, face[f, 1] - first, face[f, 2] - first
                x0, y0, x1, y1, x2, y2 = at[i, 0], at[i, 1], at[j, 0], at[j, 1], at[k, 0], at[k, 1]
                left = max(math.ceil(min(x0, x1, x2) - 0.5), 0)
                right = min(math.ceil(max(x0, x1, x2) - 0.5), size)
                low = max(math.ceil(min(y0, y1, y2) - 0.5), 0)
                high = min(math.ceil(max(y0, y1, y2) - 0.5), size)
                area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
                if left >= right or low >= high or area == 0:
                    continue
                inverse = 1 / area
                b1x, b1y = (y2 - y0) * inverse, (x0 - x2) * inverse
                b2x, b2y = (y0 - y1) * inverse, (x1 - x0) * inverse
                d1, d2 = at[j, 2] - at[i, 2], at[k, 2] - at[i, 2]
                for y in range(low, high):
                    dx, dy = left + 0.5 - x0, y + 0.5 - y0
                    s1, s2 = b1x * dx + b1y * dy, b2x * dx + b2y * dy
                    for x in range(left, right):
                        w1, w2 = s1 + b1x * (x - left), s2 + b2x * (x - left)
                        if w1 >= 0 and w2 >= 0 and w1 + w2 <= 1:
                            depth = np.float32(at[i, 2] + w1 * d1 + w2 * d2)
                            if depth > image[y, x]:
                                image[y, x] = depth


@_jit
def draw(worlds, model_of, geom_pos, geom_mat, rgba, texture, cam_pos, cam_mat, camera_of, fovy_scale, look, region, shadows,
         bank, tables, near, image, depth, segment):  # fmt: skip
    """Draw one camera of the listed worlds into image uint8 (N, H, W, 3).

    worlds, model_of: int32. geom_pos (N, G, 3), geom_mat (N, G, 9), cam_pos (N, C, 3), cam_mat (N, C, 9): float32.
    camera_of: int32 (M,) the camera's index in each model; fovy_scale: float64 (M,) 1 / tan(fovy / 2). shadows: the maps of
    `cast_shadows`, or shape (0, ...) for none. bank: (uint8 (K, S, S, 3), float32 (K,) texels per metre).
    depth float32 (N, H, W) and segment int32 (N, H, W) are filled unless their first axis is 0.
    """
    vertex, normal, face, plane, axis, span, radius, _ = tables
    texels, density = bank
    height, width = image.shape[1], image.shape[2]
    longest, most = 1, 1
    for m in range(span.shape[0]):
        total = 0
        for g in range(span.shape[1]):
            longest = max(longest, span[m, g, 1] - span[m, g, 0])
            total += span[m, g, 3] - span[m, g, 2]
        most = max(most, total)
    at = np.empty((longest, 5))  # corner in camera axes (right, down, forward) and in pixels
    shade = np.empty((longest, 2), np.float32)  # light from everywhere, light from the key
    inverse_depth = np.empty((height, width), np.float32)
    owner = np.empty((height, width), np.int32)
    # One record per drawn face: planes over the image (slopes in x and y, value at pixel 0) of 1/depth and of light, key
    # light, u and v divided by depth.
    record = np.empty((most, 15), np.float32)
    geom_of = np.empty(most, np.int32)
    inverse_near = np.float32(1 / near)
    nearest = near * 0.999
    edge = np.empty((3, 3))
    for n in worlds:
        m = model_of[n]
        c = camera_of[m]
        focal = 0.5 * height * fovy_scale[m]
        middle_x, middle_y = 0.5 * width - 0.5, 0.5 * height - 0.5
        wide, tall = 0.5 * width / focal, 0.5 * height / focal
        wide_norm, tall_norm = math.sqrt(1 + wide * wide), math.sqrt(1 + tall * tall)
        eye = cam_pos[n, c].astype(np.float64)
        view = np.empty((3, 3))  # rows: right, down, forward
        for k in range(3):
            view[0, k], view[1, k], view[2, k] = cam_mat[n, c, 3 * k], -cam_mat[n, c, 3 * k + 1], -cam_mat[n, c, 3 * k + 2]
        axes = light_axes(look[n])
        inverse_depth[:] = 0
        owner[:] = -1
        faces = 0
        for g in range(span.shape[1]):
            first, last, face_first, face_last = span[m, g]
            if first == last or rgba[n, g, 3] <= 0:
                continue
            px, py, pz = geom_pos[n, g, 0] - eye[0], geom_pos[n, g, 1] - eye[1], geom_pos[n, g, 2] - eye[2]
            ox = view[0, 0] * px + view[0, 1] * py + view[0, 2] * pz
            oy = view[1, 0] * px + view[1, 1] * py + view[1, 2] * pz
            oz = view[2, 0] * px + view[2, 1] * py + view[2, 2] * pz
            size = radius[m, g]
            if oz + size < near or abs(ox) - wide * oz > size * wide_norm or abs(oy) - tall * oz > size * tall_norm:
                continue
            r = geom_mat[n, g]
            a = np.empty((3, 3))  # camera axes in the geom's frame
            for i in range(3):
                for k in range(3):
                    a[i, k] = view[i, 0] * r[k] + view[i, 1] * r[3 + k] + view[i, 2] * r[6 + k]
            ex = -(a[0, 0] * ox + a[1, 0] * oy + a[2, 0] * oz)  # the eye in the geom's frame
            ey = -(a[0, 1] * ox + a[1, 1] * oy + a[2, 1] * oz)
            ez = -(a[0, 2] * ox + a[1, 2] * oy + a[2, 2] * oz)
            key = look[n, KEY]
            kx = np.float32(axes[2, 0] * r[0] + axes[2, 1] * r[3] + axes[2, 2] * r[6]) * key
            ky = np.float32(axes[2, 0] * r[1] + axes[2, 1] * r[4] + axes[2, 2] * r[7]) * key
            kz = np.float32(axes[2, 0] * r[2] + axes[2, 1] * r[5] + axes[2, 2] * r[8]) * key
            head = look[n, HEADLIGHT]
            hx, hy, hz = np.float32(-a[2, 0]) * head, np.float32(-a[2, 1]) * head, np.float32(-a[2, 2]) * head
            sky = np.float32(0.25) * look[n, AMBIENT]  # a little more light from above than from below
            flat = np.float32(0.75) * look[n, AMBIENT]
            for v in range(first, last):
                x, y, z = np.float64(vertex[v, 0]), np.float64(vertex[v, 1]), np.float64(vertex[v, 2])
                cx = a[0, 0] * x + a[0, 1] * y + a[0, 2] * z + ox
                cy = a[1, 0] * x + a[1, 1] * y + a[1, 2] * z + oy
                cz = a[2, 0] * x + a[2, 1] * y + a[2, 2] * z + oz
                i = v - first
                at[i, 0], at[i, 1], at[i, 2] = cx, cy, cz
                at[i, 3], at[i, 4] = focal * cx / cz + middle_x, focal * cy / cz + middle_y
                nx, ny, nz = normal[v, 0], normal[v, 1], normal[v, 2]
                up = r[6] * nx + r[7] * ny + r[8] * nz
                shade[i, 0] = flat + sky * up + max(hx * nx + hy * ny + hz * nz, ZERO)
                shade[i, 1] = kx * nx + ky * ny + kz * nz
            textured = texture[n, g] >= 0
            for f in range(face_first, face_last):
                if plane[f, 0] * ex + plane[f, 1] * ey + plane[f, 2] * ez <= plane[f, 3]:
                    continue
                i, j, k = face[f, 0] - first, face[f, 1] - first, face[f, 2] - first
                zi, zj, zk = at[i, 2], at[j, 2], at[k, 2]
                left, right, top, bottom = 0, width, 0, height
                if min(zi, zj, zk) > nearest:
                    left = max(math.ceil(max(min(at[i, 3], at[j, 3], at[k, 3]), -1.0)), 0)
                    right = math.floor(min(max(at[i, 3], at[j, 3], at[k, 3]), width - 1.0)) + 1
                    top = max(math.ceil(max(min(at[i, 4], at[j, 4], at[k, 4]), -1.0)), 0)
                    bottom = math.floor(min(max(at[i, 4], at[j, 4], at[k, 4]), height - 1.0)) + 1
                    if left >= right or top >= bottom:
                        continue
                elif max(zi, zj, zk) < near:
                    continue
                for q in range(3):
                    s, t = (j, k) if q == 0 else ((k, i) if q == 1 else (i, j))
                    edge[q, 0] = at[s, 1] * at[t, 2] - at[s, 2] * at[t, 1]
                    edge[q, 1] = at[s, 2] * at[t, 0] - at[s, 0] * at[t, 2]
                    edge[q, 2] = at[s, 0] * at[t, 1] - at[s, 1] * at[t, 0]
                volume = at[i, 0] * edge[0, 0] + at[i, 1] * edge[0, 1] + at[i, 2] * edge[0, 2]
                if volume == 0:
                    continue
                inverse = 1 / (volume * focal)
                for q in range(3):  # now planes over pixels: slope x, slope y, value at pixel (0, 0)
                    edge[q, 0] *= inverse
                    edge[q, 1] *= inverse
                    edge[q, 2] = edge[q, 2] * inverse * focal - edge[q, 0] * middle_x - edge[q, 1] * middle_y
                drawn = False
                zx = np.float32(edge[0, 0] + edge[1, 0] + edge[2, 0])
                zy = np.float32(edge[0, 1] + edge[1, 1] + edge[2, 1])
                z0 = np.float32(edge[0, 2] + edge[1, 2] + edge[2, 2])
                ax, bx, cx = np.float32(edge[0, 0]), np.float32(edge[1, 0]), np.float32(edge[2, 0])
                for y in range(top, bottom):
                    start, stop = left, right
                    if stop - start > 6:  # shrink the row to where all three edges can be positive, a pixel to spare
                        for q in range(3):
                            slope, value = edge[q, 0], edge[q, 1] * y + edge[q, 2]
                            if slope == 0:
                                if value < 0:
                                    stop = start
                            else:
                                cross = min(max(-value / slope, -2.0), width + 2.0)
                                if slope > 0:
                                    start = max(start, int(cross))
                                else:
                                    stop = min(stop, int(cross) + 2)
                    a0 = np.float32(edge[0, 0] * start + edge[0, 1] * y + edge[0, 2])
                    b0 = np.float32(edge[1, 0] * start + edge[1, 1] * y + edge[1, 2])
                    c0 = np.float32(edge[2, 0] * start + edge[2, 1] * y + edge[2, 2])
                    row = zy * np.float32(y) + z0
                    for x in range(start, stop):
                        step = np.float32(x - start)
                        if a0 + ax * step >= ZERO and b0 + bx * step >= ZERO and c0 + cx * step >= ZERO:
                            value = zx * np.float32(x) + row
                            if value > inverse_depth[y, x] and value <= inverse_near:
                                inverse_depth[y, x] = value
                                owner[y, x] = faces
                                drawn = True
                if not drawn:
                    continue
                item = record[faces]
                item[0], item[1], item[2] = zx, zy, z0
                for q in range(3):
                    e0, e1, e2 = edge[0, q], edge[1, q], edge[2, q]
                    item[3 + q] = e0 * shade[i, 0] + e1 * shade[j, 0] + e2 * shade[k, 0]
                    item[6 + q] = e0 * shade[i, 1] + e1 * shade[j, 1] + e2 * shade[k, 1]
                    if textured:
                        along, across = (1, 2) if axis[f] == 0 else ((0, 2) if axis[f] == 1 else (0, 1))
                        i0, j0, k0 = face[f, 0], face[f, 1], face[f, 2]
                        item[9 + q] = e0 * vertex[i0, along] + e1 * vertex[j0, along] + e2 * vertex[k0, along]
                        item[12 + q] = e0 * vertex[i0, across] + e1 * vertex[j0, across] + e2 * vertex[k0, across]
                geom_of[faces] = g
                faces += 1
        shadow = shadows[n] if shadows.shape[0] > 0 else np.empty((0, 0), np.float32)
        _shade(image[n], owner, inverse_depth, record, geom_of, rgba[n], texture[n], texels, density, look[n], axes, view, eye,
               focal, middle_x, middle_y, region[m], shadow)  # fmt: skip
        if depth.shape[0] > 0:
            for y in range(height):
                for x in range(width):
                    depth[n, y, x] = ONE / inverse_depth[y, x] if owner[y, x] >= 0 else np.float32(np.inf)
        if segment.shape[0] > 0:
            for y in range(height):
                for x in range(width):
                    segment[n, y, x] = geom_of[owner[y, x]] if owner[y, x] >= 0 else -1


@_jit
def _shade(image, owner, inverse_depth, record, geom_of, rgba, texture, texels, density, look, axes, view, eye,
           focal, middle_x, middle_y, region, shadow):  # fmt: skip
    """Colour every pixel once, from the record of the face that owns it."""
    height, width = owner.shape
    # Place in the shadow map (across, up, height towards the light) = depth * (slope . pixel) + offset.
    place = np.empty((3, 4), np.float32)
    for i in range(3):
        scale = SHADOW_SIZE / (2 * region[3]) if i < 2 else 1.0
        turn = np.empty(3)
        offset = 0.0
        for k in range(3):
            turn[k] = (axes[i, 0] * view[k, 0] + axes[i, 1] * view[k, 1] + axes[i, 2] * view[k, 2]) * scale
            offset += axes[i, k] * (eye[k] - region[k]) * scale
        place[i, 0], place[i, 1] = turn[0] / focal, turn[1] / focal
        place[i, 2] = turn[2] - (turn[0] * middle_x + turn[1] * middle_y) / focal
        place[i, 3] = offset + (0.5 * SHADOW_SIZE - 0.5 if i < 2 else 0.0)
    darkness = look[SHADOW]
    shaded = shadow.shape[0] > 0 and darkness > 0
    p00, p01, p02, p03 = place[0]
    p10, p11, p12, p13 = place[1]
    p20, p21, p22, p23 = place[2]
    bias = np.float32(0.4 * 2 * region[3] / SHADOW_SIZE)
    side, end = np.float32(texels.shape[1]), np.uint32(texels.shape[1] - 1)
    last = -1
    textured = False
    for y in range(height):
        fy = np.float32(y)
        mix = (fy + HALF) / np.float32(height)
        for x in range(width):
            face = owner[y, x]
            if face < 0:
                for k in range(3):
                    image[y, x, k] = np.uint8(look[TOP + k] + (look[BOTTOM + k] - look[TOP + k]) * mix)
                continue
            if face != last:
                last = face
                _, _, _, lx, ly, l0, kx, ky, k0, ux, uy, u0, vx, vy, v0 = record[face]
                g = geom_of[face]
                red, green, blue = rgba[g, 0] * WHITE, rgba[g, 1] * WHITE, rgba[g, 2] * WHITE
                t = texture[g]
                textured = t >= 0
                if textured:
                    red, green, blue = red / WHITE, green / WHITE, blue / WHITE
                    repeats = density[t] / side
                    # Each geom starts elsewhere in the picture, so that equal boards do not look copied.
                    start_u, start_v = np.float32(g * 37 % 64) / np.float32(64), np.float32(g * 53 % 64) / np.float32(64)
            fx = np.float32(x)
            z = ONE / inverse_depth[y, x]
            light = (lx * fx + ly * fy + l0) * z
            key = (kx * fx + ky * fy + k0) * z
            if key > ZERO:
                if shaded:
                    su = z * (p00 * fx + p01 * fy + p02) + p03
                    sv = z * (p10 * fx + p11 * fy + p12) + p13
                    if su > ZERO and sv > ZERO and su < EDGE and sv < EDGE:
                        sd = z * (p20 * fx + p21 * fy + p22) + p23 + bias
                        iu, iv = np.uint32(su), np.uint32(sv)
                        u, v = su - np.float32(iu), sv - np.float32(iv)
                        right, up = iu + np.uint32(1), iv + np.uint32(1)
                        near_left, near_right = np.float32(shadow[iv, iu] > sd), np.float32(shadow[iv, right] > sd)
                        far_left, far_right = np.float32(shadow[up, iu] > sd), np.float32(shadow[up, right] > sd)
                        near_row = near_left + u * (near_right - near_left)
                        far_row = far_left + u * (far_right - far_left)
                        key *= ONE - darkness * (near_row + v * (far_row - near_row))
                light += key
            light = max(light, ZERO)
            r, q, b = red * light, green * light, blue * light
            if textured:
                u = (ux * fx + uy * fy + u0) * z * repeats + start_u
                v = (vx * fx + vy * fy + v0) * z * repeats + start_v
                iu, iv = np.uint32((u - np.floor(u)) * side), np.uint32((v - np.floor(v)) * side)
                iu, iv = min(iu, end), min(iv, end)
                r *= np.float32(texels[t, iv, iu, 0])
                q *= np.float32(texels[t, iv, iu, 1])
                b *= np.float32(texels[t, iv, iu, 2])
            image[y, x, 0] = np.uint8(min(r + HALF, WHITE))
            image[y, x, 1] = np.uint8(min(q + HALF, WHITE))
            image[y, x, 2] = np.uint8(min(b + HALF, WHITE))
