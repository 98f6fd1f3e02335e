"""Compiled loops of the CPU lattice. They release Python's lock and work on a range, so threads can share them.

Values of vertices are rows of float lanes, (M+1,L); the last row stands for missing neighbours and is zero. Values of
points become such rows in a buffer that holds a few points at a time, so that they stay in the first-level cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from rrm.gaussian.vectors import SOFTMAX_LANES, blur_row, slice_row, softmax_groups, splat_row

_compiled = njit(nogil=True, cache=True, boundscheck=False, error_model="numpy")
_HASH = np.uint64(0x9E3779B97F4A7C15)
_NO_KEY = -1
_CHUNK = 256  # points; their numbers fit the first-level cache
_BUFFER = 2048  # lanes of a buffer of points
_CACHED = 12  # bits; simplices whose vertices are kept at hand


@_compiled
def enclosing_simplices(features: Any, scales: Any, shifts: Any, low: Any, keys: Any, orders: Any, weights: Any,
                        start: int, stop: int) -> None:  # fmt: skip
    """Find each point's simplex (Adams et al., section 3), in the arithmetic of Krähenbühl's code.

    Works on chunks of points, axis by axis, so that the compiler can put neighbouring points into one register.

    Args:
        features: (d,P) float32.
        scales: (d,) float32, of the elevation.
        shifts: (d,) int64, place of each coordinate in a packed key, bits.
        low: (d,) int64, smallest coordinate.
        keys: (P,) int64, written: packed key of the corner with remainder 0.
        orders: (P,) int32 or, above seven dimensions, int64, written: coordinate of each rank, four bits each.
        weights: (P,d+1) float32, written: barycentric weights of the corners by remainder.
        start, stop: range of points.
    """
    axes = len(features) + 1
    elevated = np.empty((axes, _CHUNK), np.float32)
    origin = np.empty((axes, _CHUNK), np.int32)
    rank = np.empty((axes, _CHUNK), np.int32)
    rest = np.empty((axes, _CHUNK), np.float32)
    for first in range(start, stop, _CHUNK):
        size = min(_CHUNK, stop - first)
        _elevate(features, scales, first, size, elevated, rest[0])
        _round_to_simplex(elevated, size, origin, rank)
        _pack(origin, rank, shifts, low, size, keys[first : first + size], orders[first : first + size])
        _barycentric(elevated, origin, rank, size, rest, weights[first : first + size])


@_compiled
def _elevate(features: Any, scales: Any, first: int, size: int, elevated: Any, tail: Any) -> None:
    tail[:size] = 0
    for axis in range(len(features), 0, -1):
        row, level, factor, scale_ = features[axis - 1], elevated[axis], np.float32(axis), scales[axis - 1]
        for i in range(size):
            scaled = row[first + i] * scale_
            level[i] = tail[i] - scaled * factor
            tail[i] += scaled
    elevated[0, :size] = tail[:size]


@_compiled
def _round_to_simplex(elevated: Any, size: int, origin: Any, rank: Any) -> None:
    """Nearest corner with remainder 0, and the rank of each coordinate's distance to it, 0 the largest."""
    axes = len(elevated)
    inverse = np.float32(1.0 / axes)
    excess = np.zeros(size, np.int32)
    for axis in range(axes):
        for i in range(size):
            nearest = np.int32(np.rint(elevated[axis, i] * inverse))
            excess[i] += nearest
            origin[axis, i] = nearest * np.int32(axes)
            rank[axis, i] = 0
    for axis in range(axes - 1):
        for other in range(axis + 1, axes):
            for i in range(size):
                mine = elevated[axis, i] - np.float32(origin[axis, i])
                smaller = np.int32(mine < elevated[other, i] - np.float32(origin[other, i]))
                rank[axis, i] += smaller
                rank[other, i] += np.int32(1) - smaller
    for axis in range(axes):
        for i in range(size):
            place = rank[axis, i] + excess[i]
            shift = (np.int32(place < 0) - np.int32(place >= axes)) * np.int32(axes)
            rank[axis, i] = place + shift
            origin[axis, i] += shift


@_compiled
def _pack(origin: Any, rank: Any, shifts: Any, low: Any, size: int, keys: Any, orders: Any) -> None:
    keys[:] = 0
    orders[:] = 0
    for axis in range(len(rank)):
        for i in range(size):
            orders[i] |= orders.dtype.type(axis) << orders.dtype.type(4 * rank[axis, i])
    for axis in range(len(shifts)):
        for i in range(size):
            keys[i] += (origin[axis, i] - low[axis]) << shifts[axis]


@_compiled
def _barycentric(elevated: Any, origin: Any, rank: Any, size: int, rest: Any, weights: Any) -> None:
    axes = len(rank)
    inverse = np.float32(1.0 / axes)
    rest[:] = 0
    for axis in range(axes):
        for place in range(axes):
            for i in range(size):
                share = (elevated[axis, i] - np.float32(origin[axis, i])) * inverse
                rest[place, i] += share if rank[axis, i] == place else np.float32(0)
    for i in range(size):
        weights[i, 0] = rest[axes - 1, i] + (np.float32(1) - rest[0, i])
    for remainder in range(1, axes):
        for i in range(size):
            weights[i, remainder] = rest[axes - 1 - remainder, i] - rest[axes - remainder, i]


@_compiled
def _find(table: Any, key: Any) -> Any:
    """Give the slot of a key in a table of (key, vertex), or the empty slot where it belongs."""
    mask = len(table) - 1
    slot = np.int64((np.uint64(key) * _HASH) >> np.uint64(32)) & mask
    while table[slot, 0] != key and table[slot, 0] != _NO_KEY:
        slot = (slot + 1) & mask
    return slot


@_compiled
def _empty_table(capacity: int) -> Any:
    table = np.empty((capacity, 2), np.int64)
    table[:, 0] = _NO_KEY
    return table


@_compiled
def _grown(table: Any) -> Any:
    larger = _empty_table(2 * len(table))
    for slot in range(len(table)):
        if table[slot, 0] != _NO_KEY:
            place = _find(larger, table[slot, 0])
            larger[place, 0], larger[place, 1] = table[slot, 0], table[slot, 1]
    return larger


@_compiled
def number_vertices(keys: Any, orders: Any, units: Any, corners: Any) -> Any:
    """Number the vertices in the order in which the points meet them.

    Neighbouring points often lie in the same simplices: the vertices of the last few thousand are kept at hand.

    Args:
        keys, orders: of `enclosing_simplices`.
        units: (d,) int64.
        corners: (P,d+1) int32, written: vertices of each point.

    Returns:
        Table of (packed key, vertex) for `find_neighbours`, and the (M,) packed keys.
    """
    points, d = len(keys), len(units)
    diagonal = units.sum()
    table = _empty_table(1 << 14)
    vertices = np.empty(points * (d + 1), np.int64)
    known = np.full(1 << _CACHED, -1, np.int64)  # a point of the simplex
    count = 0
    for point in range(points):
        key, order = keys[point], orders[point]
        place = np.int64((np.uint64(key * 31 + order) * _HASH) >> np.uint64(64 - _CACHED))
        other = known[place]
        if other >= 0 and keys[other] == key and orders[other] == order:
            for remainder in range(d + 1):
                corners[point, remainder] = corners[other, remainder]
            continue
        known[place] = point
        for remainder in range(d + 1):
            if remainder > 0:
                axis = (order >> (4 * (d + 1 - remainder))) & 15
                key += diagonal
                if axis < d:
                    key -= (d + 1) * units[axis]
            slot = _find(table, key)
            if table[slot, 0] == _NO_KEY:
                table[slot, 0], table[slot, 1] = key, count
                vertices[count] = key
                count += 1
            corners[point, remainder] = table[slot, 1]
        if 2 * (count + d + 1) > len(table):
            table = _grown(table)
    return table, vertices[:count].copy()


@_compiled
def find_neighbours(table: Any, vertices: Any, step: int, neighbours: Any) -> None:
    """Find the vertices one step before and after each one; M where there is none.

    Args:
        table, vertices: of `number_vertices`.
        step: difference of packed keys.
        neighbours: (M,2) int32, written.
    """
    neighbours[:] = len(vertices)
    for vertex in range(len(vertices)):
        slot = _find(table, vertices[vertex] + step)
        if table[slot, 0] != _NO_KEY:
            other = table[slot, 1]
            neighbours[vertex, 0] = other
            neighbours[other, 1] = vertex


@_compiled
def buffered_points(lanes: int) -> int:
    """Give how many rows of so many lanes a buffer holds."""
    return max(8, _BUFFER // lanes)


@_compiled
def empty_buffer(row: Any, template: Any) -> Any:
    """Give a flat buffer of rows, of the dtype of `template`; `softmax_groups` may work beyond the last row."""
    return np.zeros(buffered_points(len(row)) * len(row) + SOFTMAX_LANES, template.dtype)


@_compiled
def splat_buffer(row: Any, count: Any, buffer: Any, lattice: Any, corners: Any, weights: Any, first: int,
                 size: int) -> None:  # fmt: skip
    """Spread the rows of a buffer, which are those of the points from `first` on, over their vertices."""
    for i in range(size):
        splat_row(row, count, buffer, i * len(row), lattice, corners, weights, first + i)


@_compiled
def slice_buffer(row: Any, count: Any, buffer: Any, lattice: Any, corners: Any, weights: Any, factor: Any, first: int,
                 size: int) -> None:  # fmt: skip
    """Add `factor` times the weighted sums of the points' vertices to the rows of a buffer."""
    for i in range(size):
        slice_row(row, count, buffer, i * len(row), lattice, corners, weights, first + i, factor)


@_compiled
def splat(row: Any, count: Any, values: Any, corners: Any, weights: Any, lattice: Any, start: int, stop: int) -> None:
    """Spread the values of a range of points over their vertices.

    Args:
        row: tuple of as many elements as a row has lanes, L.
        count: tuple of as many elements as a point has corners, d+1.
        values: (N,K) float of any memory layout, K <= L.
        corners: (N,d+1) int32, vertices of each point.
        weights: (N,d+1) float32.
        lattice: (M+1,L), written.
        start, stop: range of points.
    """
    lattice[:] = 0
    buffer, length = empty_buffer(row, lattice), len(row)
    for first in range(start, stop, buffered_points(length)):
        size = min(buffered_points(length), stop - first)
        for channel in range(values.shape[1]):
            for i in range(size):
                buffer[i * length + channel] = values[first + i, channel]
        splat_buffer(row, count, buffer, lattice, corners, weights, first, size)


@_compiled
def merge(parts: Any, merged: Any, start: int, stop: int) -> None:
    """Add up the lattices of all parts (parts,M+1,L) for a range of vertices; writes the same rows of `merged`."""
    merged[start:stop] = parts[0, start:stop]
    for part in range(1, len(parts)):
        merged[start:stop] += parts[part, start:stop]


@_compiled
def blur(row: Any, lattice: Any, blurred: Any, neighbours: Any, start: int, stop: int) -> None:
    """Add half of both neighbours along one axis, for a range of vertices."""
    for vertex in range(start, stop):
        blur_row(row, lattice, blurred, vertex, np.int64(neighbours[vertex, 0]), np.int64(neighbours[vertex, 1]))


@_compiled
def slice_(row: Any, count: Any, lattice: Any, corners: Any, weights: Any, out: Any, start: int, stop: int) -> None:
    """Write the weighted sum of each point's vertices to `out` (N,K) of any memory layout, for a range of points."""
    buffer, length = empty_buffer(row, lattice), len(row)
    for first in range(start, stop, buffered_points(length)):
        size = min(buffered_points(length), stop - first)
        buffer[:] = 0
        slice_buffer(row, count, buffer, lattice, corners, weights, np.float32(1), first, size)
        for channel in range(out.shape[1]):
            for i in range(size):
                out[first + i, channel] = buffer[i * length + channel]


@_compiled
def fill_rows(planes: Any, rows: Any) -> None:
    """Bring planes (R,K,N) into rows of R groups of lanes (N,R,L)."""
    for first in range(0, len(rows), _CHUNK):
        last = min(first + _CHUNK, len(rows))
        for model in range(planes.shape[0]):
            for channel in range(planes.shape[1]):
                plane = planes[model, channel]
                for point in range(first, last):
                    rows[point, model, channel] = plane[point]


@_compiled
def _keep(buffer: Any, length: int, lanes: int, q: Any, first: int, size: int, compare: bool) -> Any:
    """Write buffered probabilities to planes (R,K,N); gives their largest change, 0 where it is not measured."""
    change = np.float32(0)
    for model in range(q.shape[0]):
        for channel in range(q.shape[1]):
            lane, plane = model * lanes + channel, q[model, channel]
            if compare:
                for i in range(size):
                    change = max(change, abs(buffer[i * length + lane] - plane[first + i]))
            for i in range(size):
                plane[first + i] = buffer[i * length + lane]
    return change


@_compiled
def mean_field_step(row: Any, group: Any, logits: Any, terms: Any, q: Any, flags: Any, start: int, stop: int) -> Any:
    """One iteration for a range of points: messages, softmax, and the new probabilities spread over the lattices.

    Args:
        row: tuple of as many elements as a row has lanes, L.
        group: tuple of as many elements as a distribution has lanes, a divisor.
        logits: (N,L) float32, the negative unary energy, -inf in lanes without a class.
        terms: two of (count, corners, weights, factor, lattice, next lattice); `lattice` holds the blurred
            probabilities of the step before, `next lattice` is written. No corners: no such term.
        q: (R,K,N) float32, the probabilities, written if they are kept.
        flags: bool: messages are added; probabilities are spread; they are kept; their change is measured.
        start, stop: range of points.

    Returns:
        Largest change of a probability since `q`, 0 where it is not measured.
    """
    first_term, second_term = terms
    count_a, corners_a, weights_a, factor_a, lattice_a, next_a = first_term
    count_b, corners_b, weights_b, factor_b, lattice_b, next_b = second_term
    receive, spread, keep, compare = flags
    change, length = np.float32(0), len(row)
    buffer = empty_buffer(row, logits)
    if spread:
        next_a[:] = 0
        next_b[:] = 0
    for first in range(start, stop, buffered_points(length)):
        size = min(buffered_points(length), stop - first)
        buffer[: size * length].reshape(size, length)[:] = logits[first : first + size]
        if receive:
            slice_buffer(row, count_a, buffer, lattice_a, corners_a, weights_a, factor_a, first, size)
            slice_buffer(row, count_b, buffer, lattice_b, corners_b, weights_b, factor_b, first, size)
        for place in range(0, size * length, max(len(group), SOFTMAX_LANES)):
            softmax_groups(group, buffer, place)
        if keep:
            change = max(change, _keep(buffer, length, len(group), q, first, size, compare))
        if spread:
            splat_buffer(row, count_a, buffer, next_a, corners_a, weights_a, first, size)
            splat_buffer(row, count_b, buffer, next_b, corners_b, weights_b, first, size)
    return change


@_compiled
def splat_scaled(row: Any, count: Any, planes: Any, factor: Any, corners: Any, weights: Any, lattice: Any, start: int,
                 stop: int) -> None:  # fmt: skip
    """`splat` of planes (K,N) times a factor a point (N,)."""
    lattice[:] = 0
    buffer, length = empty_buffer(row, lattice), len(row)
    for first in range(start, stop, buffered_points(length)):
        size = min(buffered_points(length), stop - first)
        for channel in range(len(planes)):
            plane = planes[channel]
            for i in range(size):
                buffer[i * length + channel] = plane[first + i] * factor[first + i]
        splat_buffer(row, count, buffer, lattice, corners, weights, first, size)


@_compiled
def slice_scaled(row: Any, count: Any, lattice: Any, corners: Any, weights: Any, factor: Any, out: Any, start: int,
                 stop: int) -> None:  # fmt: skip
    """Add what `slice_` gives, times a factor a point (N,), to planes (K,N)."""
    buffer, length = empty_buffer(row, lattice), len(row)
    for first in range(start, stop, buffered_points(length)):
        size = min(buffered_points(length), stop - first)
        buffer[:] = 0
        slice_buffer(row, count, buffer, lattice, corners, weights, np.float32(1), first, size)
        for channel in range(len(out)):
            plane = out[channel]
            for i in range(size):
                plane[first + i] += factor[first + i] * buffer[i * length + channel]


@_compiled
def energy_spread(row: Any, count: Any, scores: Any, mask: Any, labelled: Any, gate: Any, corners: Any, weights: Any,
                  lattice: Any, start: int, stop: int) -> None:  # fmt: skip
    """Spread masked probabilities over the lattice, with the mask as one more channel if there is a lane for it.

    Args:
        row, count: of `splat`.
        scores: (K,N) float.
        mask: (N,) float.
        labelled: (N,) bool.
        gate: (N,) float, written: the mask minus the largest probability, at least 0, where labelled, else 1 (Eq. 14).
        corners, weights, lattice, start, stop: of `splat`.
    """
    lattice[:] = 0
    buffer, length, channels = empty_buffer(row, lattice), len(row), len(scores)
    for first in range(start, stop, buffered_points(length)):
        size = min(buffered_points(length), stop - first)
        for channel in range(channels):
            plane = scores[channel]
            for i in range(size):
                buffer[i * length + channel] = plane[first + i] * mask[first + i]
        for i in range(size):
            inside = mask[first + i]
            gate[first + i] = max(inside - scores[:, first + i].max(), 0) if labelled[first + i] else 1
            if channels < length:
                buffer[i * length + channels] = inside
        splat_buffer(row, count, buffer, lattice, corners, weights, first, size)


@_compiled
def energy_gather(row: Any, count: Any, scores: Any, mask: Any, gate: Any, by_row: bool, constant: bool, factor: Any,
                  lattice: Any, corners: Any, weights: Any, sums: Any, pairs: Any, slope: Any, start: int,
                  stop: int) -> None:  # fmt: skip
    """Slice the filtered probabilities and take each point's part of the energy from them.

    Args:
        row, count, scores, mask, gate: of `energy_spread`.
        by_row: whether the filter's rows are divided by their sum over the mask.
        constant: whether the constant of Eq. 12 is part of the energy.
        factor: of the slope.
        lattice, corners, weights, start, stop: of `slice_`.
        sums: (N,) float, written: the filtered mask, if there is a lane for it, else 1.
        pairs: (N,) float, written: the energy of each point without its gate.
        slope: (K,N) float, written: `factor` * gate * mask * filtered probabilities; (0,N) if it is not wanted.
    """
    buffer, length, channels = empty_buffer(row, lattice), len(row), len(scores)
    most = buffered_points(length)
    planes, outer, dot = (
        np.empty((channels, most), scores.dtype),
        np.empty(most, scores.dtype),
        np.empty(most, scores.dtype),
    )
    for first in range(start, stop, most):
        size = min(most, stop - first)
        buffer[:] = 0
        slice_buffer(row, count, buffer, lattice, corners, weights, np.float32(1), first, size)
        dot[:] = 0
        for channel in range(channels):
            plane, score = planes[channel], scores[channel, first : first + size]
            for i in range(size):
                plane[i] = buffer[i * length + channel]
            for i in range(size):
                dot[i] += score[i] * plane[i]
        for i in range(size):
            total = max(buffer[i * length + channels], 0) if channels < length else 1
            inside = mask[first + i]
            if by_row:
                inside *= 1 / total if total > 0 else 0
            sums[first + i] = total
            pairs[first + i] = inside * ((total if constant else 0) - dot[i])
            outer[i] = factor * gate[first + i] * inside
        for channel in range(len(slope)):
            plane, out = planes[channel], slope[channel, first : first + size]
            for i in range(size):
                out[i] = outer[i] * plane[i]


@_compiled
def halve(planes: Any, out: Any, start: int, stop: int) -> None:
    """Write the mean of each two by two pixels of planes (P,H,W) to (P,H//2,W//2), for a range of planes."""
    for plane in range(start, stop):
        for y in range(out.shape[1]):
            above, below, target = planes[plane, 2 * y], planes[plane, 2 * y + 1], out[plane, y]
            for x in range(len(target)):
                target[x] = (above[2 * x] + above[2 * x + 1] + below[2 * x] + below[2 * x + 1]) * np.float32(0.25)


@_compiled
def halve_transposed(planes: Any, out: Any, start: int, stop: int) -> None:
    """The transpose of `halve`: a quarter of each pixel to the two by two it was made of, 0 to an odd row or column."""
    for plane in range(start, stop):
        out[plane, 2 * planes.shape[1] :] = 0
        for y in range(planes.shape[1]):
            source, above = planes[plane, y], out[plane, 2 * y]
            above[2 * len(source) :] = 0
            for x in range(len(source)):
                above[2 * x] = source[x] * np.float32(0.25)
                above[2 * x + 1] = source[x] * np.float32(0.25)
            out[plane, 2 * y + 1] = above
