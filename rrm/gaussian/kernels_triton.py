"""Kernels of the GPU's Gaussian filters, in Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def split_values(values, largest, halves, points, channels, padded, image_stride, point_stride, channel_stride,
                 BLOCK: tl.constexpr, WIDTH: tl.constexpr, PEAK: tl.constexpr):  # fmt: skip
    """Write high and low float16 of the scaled values, zero beyond the points and channels.

    Args:
        values: (B,N,K) float32 with the strides given.
        largest: (B,K) float32, largest magnitude.
        halves: (B,parts,2,padded,WIDTH) float16, written.
    """
    part, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[:, None]
    lanes = part * WIDTH + tl.arange(0, WIDTH)[None, :]
    places = values + image * image_stride + rows.to(tl.int64) * point_stride + lanes.to(tl.int64) * channel_stride
    value = tl.load(places, mask=(rows < points) & (lanes < channels), other=0.0)
    unit = value / tl.load(largest + image * channels + lanes, mask=lanes < channels, other=1.0) * (1 << PEAK)
    high = unit.to(tl.float16)
    halves += (image * tl.num_programs(1) + part) * 2 * padded * WIDTH
    target = halves + rows * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.store(target, high)
    tl.store(target + padded * WIDTH, (unit - high.to(tl.float32)).to(tl.float16))


@triton.jit
def weighted_sums(features, halves, largest, result, points, channels, padded, image_stride, point_stride,
                  channel_stride, D: tl.constexpr, INCLUDE_SELF: tl.constexpr, ROWS: tl.constexpr,
                  COLUMNS: tl.constexpr, WIDTH: tl.constexpr, PEAK: tl.constexpr):  # fmt: skip
    """Write the sums of a block of rows, for WIDTH channels of one image.

    Args:
        features: (B,D,padded) float32, scaled for exp2.
        halves: of `split_values`.
        largest: (B,K) float32, largest magnitude of the values.
        result: (B,N,K) float32 with the strides given, written.
    """
    part, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows, lanes = tl.program_id(0) * ROWS + tl.arange(0, ROWS), part * WIDTH + tl.arange(0, WIDTH)
    features += image * D * padded
    own = ()
    for axis in tl.static_range(D):
        own = own + (tl.load(features + axis * padded + rows)[:, None],)
    halves += (image * tl.num_programs(1) + part) * 2 * padded * WIDTH
    high_values = halves + tl.arange(0, COLUMNS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    low_values = high_values + padded * WIDTH
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    # A product of zeros, because the compiler keeps what grows from a product in the registers where the next product
    # wants it. From tl.full, it takes every exponential twice, once for each layout in which a product asks for it.
    peak = tl.dot(tl.zeros((ROWS, 16), tl.float16), tl.zeros((16, COLUMNS), tl.float16)) + PEAK
    for first in range(0, padded, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        exponent = peak
        for axis in tl.static_range(D):
            gap = own[axis] - tl.load(features + axis * padded + columns)[None, :]
            exponent -= gap * gap
        weight = tl.exp2(exponent)
        if not INCLUDE_SELF:
            weight = tl.where(rows[:, None] == columns[None, :], 0.0, weight)
        high = weight.to(tl.float16)
        low = (weight - high.to(tl.float32)).to(tl.float16)
        high_value = tl.load(high_values + first * WIDTH)
        block = tl.dot(low, high_value)
        block = tl.dot(high, tl.load(low_values + first * WIDTH), block)
        total += tl.dot(high, high_value, block)  # not summed by the tensor cores, which round towards zero
    scale = tl.load(largest + image * channels + lanes, mask=lanes < channels, other=0.0)
    places = rows.to(tl.int64)[:, None] * point_stride + lanes.to(tl.int64)[None, :] * channel_stride
    written = (rows < points)[:, None] & (lanes < channels)[None, :]
    tl.store(result + image * image_stride + places, total * (1.0 / (1 << 2 * PEAK)) * scale[None, :], mask=written)


@triton.jit
def _insert(key, table, numbers, vertices, counters, spare, mask, PROBES: tl.constexpr):
    """Put keys into the table and give their slots; whoever brings a new key numbers its vertex."""
    slot = _home(key, mask)
    pending, probes = key >= 0, 0
    while (tl.max(pending.to(tl.int32), axis=0) > 0) & (probes < PROBES):
        found = tl.load(table + slot, mask=pending, other=0, cache_modifier=".cg")
        free = pending & (found == -1)
        if tl.max(free.to(tl.int32), axis=0) > 0:
            # There is no mask for this: lanes that want nothing compare the empty keys behind the table.
            before = tl.atomic_cas(table + tl.where(free, slot, spare), key * 0 - 1, tl.where(free, key, -1), "relaxed")
            new = free & (before == -1)
            number = tl.atomic_add(counters, tl.sum(new.to(tl.int32), axis=0), sem="relaxed")
            number += tl.cumsum(new.to(tl.int32), axis=0) - 1
            tl.store(numbers + slot, number, mask=new)
            tl.store(vertices + number, key, mask=new)
            found = tl.where(free, tl.where(new, key, before), found)
        pending = pending & (found != key)
        slot = tl.where(pending, (slot + 1) & mask, slot)
        probes += 1
    if tl.max(pending.to(tl.int32), axis=0) > 0:
        tl.store(counters + 1, 1)
    return slot


@triton.jit
def _home(key, mask):
    """First slot to look at: a multiplicative hash. Long keys of several images differ in its highest bits only."""
    product = key.to(tl.uint64) * 0x9E3779B97F4A7C15
    return ((product >> 32) ^ (product >> 47)).to(tl.int32) & mask


@triton.jit
def insert_points(features, fields, table, numbers, vertices, counters, slots, weights, images, points, padded,
                  image_stride, point_stride, axis_stride, mask, D: tl.constexpr, SCALES: tl.constexpr,
                  FACTOR: tl.constexpr, SPARE: tl.constexpr, PROBES: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Find each point's simplex (Adams et al., section 3) and put its corners into the table.

    Arithmetic and order are those of `rrm.gaussian.kernels.enclosing_simplices`; start it without fused
    multiply-adds, which round otherwise.

    Args:
        features: (B,N,D) float32 with the strides given.
        fields: (3D+2,) int64, smallest coordinates, shifts of coordinates and of the image, steps.
        table: (mask+1+SPARE,) int64, packed key in each slot, -1 where empty.
        numbers: (mask+1,) int32, written: vertex in each slot.
        vertices: (mask+1,) int64, written: packed keys.
        counters: (2,) int32, number of vertices, and whether a key found no slot within PROBES.
        slots: (D+1,B*N) int32, written: slot of each corner.
        weights: (D+1,B*N) float32, written: barycentric weights times FACTOR.
        padded: N, or N+1 where a point with zero features is added to each image.
    """
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    point = tl.minimum(lane, images * padded - 1)  # lanes too many repeat the last one
    image, row = point // padded, point % padded
    real = row < points
    place = features + image.to(tl.int64) * image_stride + row.to(tl.int64) * point_stride
    total = tl.zeros((BLOCK,), tl.float32)
    elevated = ()
    for step in tl.static_range(D):
        scaled = tl.load(place + (D - 1 - step) * axis_stride, mask=real, other=0.0) * SCALES[D - 1 - step]
        elevated = (total - scaled * (D - step),) + elevated
        total += scaled
    elevated = (total,) + elevated
    corner, rank = _nearest_corner(elevated, D)
    count = images * points
    index = (image * points + row).to(tl.int64)
    _store_weights(elevated, corner, rank, weights + index, real, count, D, FACTOR)
    slot_place = slots + index
    for remainder in range(D + 1):
        key = image.to(tl.int64) << tl.load(fields + 2 * D)
        for axis in tl.static_range(D):
            coordinate = corner[axis] + remainder - (rank[axis] > D - remainder).to(tl.int32) * (D + 1)
            key += (coordinate - tl.load(fields + axis)) << tl.load(fields + D + axis)
        slot = _insert(key, table, numbers, vertices, counters, mask + 1 + lane % SPARE, mask, PROBES)
        tl.store(slot_place, slot, mask=real)
        slot_place += count


@triton.jit
def _nearest_corner(elevated, D: tl.constexpr):
    """Coordinates of the corner with remainder 0, and the rank of each coordinate's distance to it, 0 the largest."""
    corner, gap, rank = (), (), ()
    excess = tl.zeros_like(elevated[0]).to(tl.int32)
    for axis in tl.static_range(D + 1):
        # Numbers below 2^22 are rounded to even by 1.5 * 2^23, which leaves no place for a fraction.
        nearest = (elevated[axis] * (1.0 / (D + 1)) + 12582912.0) - 12582912.0
        excess += nearest.to(tl.int32)
        corner = corner + (nearest.to(tl.int32) * (D + 1),)
        gap = gap + (elevated[axis] - corner[axis].to(tl.float32),)
    moved = ()
    for axis in tl.static_range(D + 1):
        place = excess
        for other in tl.static_range(D + 1):
            if other < axis:
                place += (gap[other] >= gap[axis]).to(tl.int32)
            elif other > axis:
                place += (gap[axis] < gap[other]).to(tl.int32)
        shift = ((place < 0).to(tl.int32) - (place > D).to(tl.int32)) * (D + 1)
        rank = rank + (place + shift,)
        moved = moved + (corner[axis] + shift,)
    return moved, rank


@triton.jit
def _store_weights(elevated, corner, rank, places, real, count, D: tl.constexpr, FACTOR: tl.constexpr):
    """Barycentric weights of the corners by remainder, times FACTOR."""
    rest = ()
    for place in tl.static_range(D + 1):
        share = tl.zeros_like(elevated[0])
        for axis in tl.static_range(D + 1):
            gap = (elevated[axis] - corner[axis].to(tl.float32)) * (1.0 / (D + 1))
            share += tl.where(rank[axis] == place, gap, 0.0)
        rest = rest + (share,)
    tl.store(places, (rest[D] + (1.0 - rest[0])) * FACTOR, mask=real)
    for remainder in tl.static_range(1, D + 1):
        places += count
        tl.store(places, (rest[D - remainder] - rest[D + 1 - remainder]) * FACTOR, mask=real)


@triton.jit
def find_neighbours(table, numbers, vertices, steps, neighbours, count, mask, BLOCK: tl.constexpr):
    """Find the vertices one step after and before each one, along the axis of the program; -1 where there is none.

    Args:
        table, numbers, vertices: of `insert_points`.
        steps: (D+1,) int64, differences of packed keys.
        neighbours: (D+1,2,M) int32, written.
        count: M.
    """
    axis, side = tl.program_id(1), tl.program_id(2)
    vertex = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = vertex < count
    key = tl.load(vertices + vertex, mask=real, other=0) + tl.load(steps + axis) * (1 - 2 * side)
    slot = _home(key, mask)
    pending = real
    while tl.max(pending.to(tl.int32), axis=0) > 0:
        found = tl.load(table + slot, mask=pending, other=-1)
        pending = pending & (found != key) & (found != -1)
        slot = tl.where(pending, (slot + 1) & mask, slot)
    exists = real & (tl.load(table + slot, mask=real, other=-1) == key)
    number = tl.load(numbers + slot, mask=exists, other=-1)
    tl.store(neighbours + (axis * 2 + side).to(tl.int64) * count + vertex, number, mask=real)


@triton.jit
def _cells(count, LANES: tl.constexpr, BLOCK: tl.constexpr):
    """Row and lane of each thread's cell, and whether there is one: as many whole rows as a block can take."""
    rows: tl.constexpr = BLOCK // LANES
    cell = tl.arange(0, BLOCK)
    row = tl.program_id(0) * rows + cell // LANES
    return row, cell % LANES, (cell < rows * LANES) & (row < count)


@triton.jit
def splat(values, corners, weights, lattice, count, points, image_stride, point_stride, channel_stride,
          CORNERS: tl.constexpr, CHANNELS: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Add the values of the points to their vertices.

    Args:
        values: (B,N,CHANNELS) float with the strides given.
        corners: (CORNERS,B*N) int32, vertices of each point.
        weights: (CORNERS,B*N) float32.
        lattice: (M,LANES) float, zero before.
        count: B*N.
    """
    row, channel, real = _cells(count, CHANNELS, BLOCK)
    place = (row // points).to(tl.int64) * image_stride + (row % points).to(tl.int64) * point_stride
    value = tl.load(values + place + channel.to(tl.int64) * channel_stride, mask=real, other=0.0)
    corner_place, weight_place = corners + row, weights + row
    for _ in tl.static_range(CORNERS):
        vertex = tl.load(corner_place, mask=real, other=0).to(tl.int64)
        weight = tl.load(weight_place, mask=real, other=0.0).to(value.dtype)
        tl.atomic_add(lattice + vertex * LANES + channel, value * weight, mask=real, sem="relaxed")
        corner_place += count
        weight_place += count


@triton.jit
def blur(lattice, blurred, neighbours, count, LANES: tl.constexpr, BLOCK: tl.constexpr):
    """Add half of both neighbours along one axis.

    Args:
        lattice: (M,LANES) float.
        blurred: (M,LANES) float, written.
        neighbours: (2,M) int32, -1 where there is none.
        count: M.
    """
    row, lane, real = _cells(count, LANES, BLOCK)
    after = tl.load(neighbours + row, mask=real, other=-1).to(tl.int64)
    before = tl.load(neighbours + count + row, mask=real, other=-1).to(tl.int64)
    both = tl.load(lattice + after * LANES + lane, mask=after >= 0, other=0.0)
    both += tl.load(lattice + before * LANES + lane, mask=before >= 0, other=0.0)
    place = row.to(tl.int64) * LANES + lane
    tl.store(blurred + place, tl.load(lattice + place, mask=real, other=0.0) + both * 0.5, mask=real)


@triton.jit
def slice_points(lattice, corners, weights, result, count, points, image_stride, point_stride, channel_stride,
                 CORNERS: tl.constexpr, CHANNELS: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Write the weighted sum of each point's vertices.

    Args:
        lattice, corners, weights, count: of `splat`.
        result: (B,N,CHANNELS) float with the strides given, written.
    """
    row, channel, real = _cells(count, CHANNELS, BLOCK)
    total = tl.zeros((BLOCK,), lattice.dtype.element_ty)
    corner_place, weight_place = corners + row, weights + row
    for _ in tl.static_range(CORNERS):
        vertex = tl.load(corner_place, mask=real, other=0).to(tl.int64)
        weight = tl.load(weight_place, mask=real, other=0.0).to(total.dtype)
        total += tl.load(lattice + vertex * LANES + channel, mask=real, other=0.0) * weight
        corner_place += count
        weight_place += count
    place = (row // points).to(tl.int64) * image_stride + (row % points).to(tl.int64) * point_stride
    tl.store(result + place + channel.to(tl.int64) * channel_stride, total, mask=real)
