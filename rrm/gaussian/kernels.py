"""Compiled loops of the CPU lattice. They release Python's lock and work on a range, so threads can share them.

Values of points and of vertices are rows of float lanes; a row holds one vector of `lanes` after another.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from rrm.gaussian.vectors import add, exp_below, largest, load, maximum, scale, store, total, zeros

_compiled = njit(nogil=True, cache=True, boundscheck=False, error_model="numpy")
_HASH = np.uint64(0x9E3779B97F4A7C15)
_NO_KEY = -1
_CHUNK = 256  # points; their numbers fit the first-level cache


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
        orders: (P,) int32, written: coordinate of each rank, four bits each.
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
            orders[i] |= np.int32(axis) << (np.int32(4) * rank[axis, i])
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
    count = 0
    for point in range(points):
        if point > 0 and keys[point] == keys[point - 1] and orders[point] == orders[point - 1]:
            corners[point] = corners[point - 1]
            continue
        key = keys[point]
        for remainder in range(d + 1):
            if remainder > 0:
                axis = (orders[point] >> (4 * (d + 1 - remainder))) & 15
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
def splat(lanes: Any, row: Any, values: Any, corners: Any, weights: Any, lattice: Any, start: int, stop: int) -> None:
    """Spread the values of a range of points over their vertices.

    Args:
        lanes: tuple of as many elements as a vector has lanes.
        row: tuple of as many elements as a row has lanes, L, a multiple.
        values: (N,L) float, of the points.
        corners: (N,d+1) int32, vertices of each point.
        weights: (N,d+1) float32.
        lattice: (M+1,L), written; the last row stands for missing neighbours and stays zero.
        start, stop: range of points.
    """
    width, length, count = len(lanes), len(row), corners.shape[1]
    lattice[:] = 0
    for point in range(start, stop):
        for remainder in range(count):
            vertex, weight = corners[point, remainder] * np.int64(length), weights[point, remainder]
            for lane in range(0, length, width):
                share = scale(load(lanes, values, point * length + lane), weight)
                store(lattice, vertex + lane, add(load(lanes, lattice, vertex + lane), share))


@_compiled
def merge(lanes: Any, lattice: Any, other: Any, start: int, stop: int) -> None:
    """Add the other lattice's rows of a range to those of the first."""
    for place in range(start * lattice.shape[1], stop * lattice.shape[1], len(lanes)):
        store(lattice, place, add(load(lanes, lattice, place), load(lanes, other, place)))


@_compiled
def blur(lanes: Any, row: Any, lattice: Any, blurred: Any, neighbours: Any, start: int, stop: int) -> None:
    """Add half of both neighbours along one axis, for a range of vertices."""
    width, length = len(lanes), len(row)
    for vertex in range(start, stop):
        before, after = neighbours[vertex, 0] * np.int64(length), neighbours[vertex, 1] * np.int64(length)
        for lane in range(0, length, width):
            both = add(load(lanes, lattice, before + lane), load(lanes, lattice, after + lane))
            own = load(lanes, lattice, vertex * length + lane)
            store(blurred, vertex * length + lane, add(own, scale(both, np.float32(0.5))))


@_compiled
def slice_add(lanes: Any, row: Any, values: Any, lattice: Any, corners: Any, weights: Any, factor: Any, out: Any,
              start: int, stop: int) -> None:  # fmt: skip
    """Write `values` plus `factor` times the weighted sum of each point's vertices to `out` (N,L)."""
    width, length, count = len(lanes), len(row), corners.shape[1]
    for point in range(start, stop):
        for lane in range(0, length, width):
            result = zeros(lanes, values)
            for remainder in range(count):
                vertex = corners[point, remainder] * np.int64(length) + lane
                result = add(result, scale(load(lanes, lattice, vertex), weights[point, remainder]))
            place = point * length + lane
            store(out, place, add(load(lanes, values, place), scale(result, factor)))


@_compiled
def copy_channels(source: Any, target: Any, start: int, stop: int) -> None:
    """Copy the channels that both have, for a range of points; (N,K) arrays of any memory layout."""
    channels = min(source.shape[1], target.shape[1])
    for first in range(start, stop, _CHUNK):
        last = min(first + _CHUNK, stop)
        for channel in range(channels):
            for point in range(first, last):
                target[point, channel] = source[point, channel]


@_compiled
def softmax(lanes: Any, group: Any, logits: Any, probabilities: Any, start: int, stop: int) -> Any:
    """Softmax over each group of lanes, for a range of rows.

    Args:
        lanes: tuple of as many elements as a vector has lanes.
        group: tuple of as many elements as a distribution has lanes, a multiple; L is a multiple of that.
        logits: (N,L) float32, -inf in lanes without a class.
        probabilities: (N,L) float32, written; 0 in lanes without a class.
        start, stop: range of rows.

    Returns:
        Largest change of a probability.
    """
    width, length = len(lanes), len(group)
    change, buffer = zeros(lanes, logits), np.empty(length, np.float32)
    for first in range(start * logits.shape[1], stop * logits.shape[1], length):
        top = load(lanes, logits, first)
        for place in range(first + width, first + length, width):
            top = maximum(top, load(lanes, logits, place))
        ceiling, both = largest(top), zeros(lanes, logits)
        for lane in range(0, length, width):
            risen = exp_below(load(lanes, logits, first + lane), ceiling)
            both = add(both, risen)
            store(buffer, lane, risen)
        inverse = np.float32(1) / total(both)
        for lane in range(0, length, width):
            probability = scale(load(lanes, buffer, lane), inverse)
            difference = add(probability, scale(load(lanes, probabilities, first + lane), np.float32(-1)))
            change = maximum(change, maximum(difference, scale(difference, np.float32(-1))))
            store(probabilities, first + lane, probability)
    return largest(change)
