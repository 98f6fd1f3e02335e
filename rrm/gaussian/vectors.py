"""SIMD for Numba: functions on rows of float lanes that become straight LLVM vector code.

Numba leaves a loop over a few channels as a loop. Here the channels of a point, a row, are a few LLVM vectors that are
loaded, added and stored at once, whatever the processor's register width. A function takes the number of lanes from
the length of a tuple (`row`), so Numba compiles it once per length; the element type is that of the array.
"""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_LOG2_E = 1.44269504088896341
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_LOWEST = -30.0
SOFTMAX_LANES = 16  # at least
# Minimax polynomial of (exp(r) - 1 - r) / r^2 on |r| <= ln(2) / 2, highest power first (Cephes, expf).
_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


def blocks(lanes: int) -> list[tuple[int, int]]:
    """Give (first lane, width) of the vectors that a row of so many lanes, a multiple of four, is made of.

    Example:
        >>> blocks(24)
        [(0, 16), (16, 8)]
    """
    parts, first = [], 0
    for width in (16, 8, 4):
        while lanes - first >= width:
            parts.append((first, width))
            first += width
    return parts


class _Emitter:
    """Writes LLVM instructions on vectors of one element type; multiplications and additions may become one."""

    _FLAGS = ("contract",)

    def __init__(self, context: Any, builder: Any, element: types.Float) -> None:
        self._context, self._builder = context, builder
        self._element = ir.FloatType() if element == types.float32 else ir.DoubleType()
        self._bytes = element.bitwidth // 8

    def kind(self, width: int) -> ir.VectorType:
        return ir.VectorType(self._element, width)

    def constant(self, width: int, value: float) -> ir.Constant:
        return ir.Constant(self.kind(width), [value] * width)

    def number(self, array: Any, value: Any, *index: Any) -> Any:
        """Element of an array (type, value)."""
        pointer = cgutils.get_item_pointer(
            self._context, self._builder, array, self._context.make_array(array)(self._context, self._builder, value),
            index, wraparound=False,
        )  # fmt: skip
        return self._builder.load(pointer)

    def data(self, array: Any, value: Any) -> Any:
        return self._context.make_array(array)(self._context, self._builder, value).data

    def load(self, data: Any, place: Any, width: int) -> Any:
        return self._builder.load(self._pointer(data, place, width), align=self._bytes)

    def store(self, data: Any, place: Any, vector: Any) -> None:
        self._builder.store(vector, self._pointer(data, place, vector.type.count), align=self._bytes)

    def _pointer(self, data: Any, place: Any, width: int) -> Any:
        return self._builder.bitcast(self._builder.gep(data, [place]), self.kind(width).as_pointer())

    def shifted(self, place: Any, lanes: int) -> Any:
        return self._builder.add(place, ir.Constant(place.type, lanes))

    def broadcast(self, number: Any, width: int) -> Any:
        undefined = ir.Constant(self.kind(width), ir.Undefined)
        first = self._builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
        return self._shuffle(first, [0] * width)

    def _shuffle(self, vector: Any, lanes: list[int]) -> Any:
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
        return self._builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)

    def add(self, first: Any, second: Any) -> Any:
        return self._builder.fadd(first, second, flags=self._FLAGS)

    def multiply(self, first: Any, second: Any) -> Any:
        return self._builder.fmul(first, second, flags=self._FLAGS)

    def larger(self, first: Any, second: Any) -> Any:
        return self._builder.select(self._builder.fcmp_ordered(">", first, second), first, second)

    def across(self, combine: Any, vector: Any, group: int) -> Any:
        """Combine all lanes of each aligned group of lanes (a power of two); every lane gets the result."""
        distance = 1
        while distance < group:
            vector = combine(vector, self._shuffle(vector, [lane ^ distance for lane in range(vector.type.count)]))
            distance *= 2
        return vector

    def inverse(self, vector: Any) -> Any:
        return self._builder.fdiv(self.constant(vector.type.count, 1.0), vector)

    def exp_below(self, vector: Any, ceiling: Any) -> Any:
        """exp(vector - ceiling) for float32 lanes <= ceiling; 0 where that is below exp(-30), about 1e-13.

        Smaller numbers would end as denormal ones, which are many times slower. Relative error below 2e-7.
        """
        builder, width = self._builder, vector.type.count
        difference = builder.fsub(vector, ceiling)
        alive = builder.fcmp_ordered(">", difference, self.constant(width, _LOWEST))
        x = builder.select(alive, difference, self.constant(width, _LOWEST))
        octaves = builder.fmul(x, self.constant(width, _LOG2_E))
        name = f"llvm.rint.v{width}f32"
        rint = cgutils.get_or_insert_function(builder.module, ir.FunctionType(x.type, [x.type]), name)
        power = builder.call(rint, [octaves])
        for part in (_LN2_HIGH, _LN2_LOW):
            x = self.add(x, self.multiply(power, self.constant(width, -part)))
        tail = self.constant(width, _POLYNOMIAL[0])
        for coefficient in _POLYNOMIAL[1:]:
            tail = self.add(self.multiply(tail, x), self.constant(width, coefficient))
        mantissa = self.add(self.add(self.multiply(tail, builder.fmul(x, x)), x), self.constant(width, 1.0))
        result = builder.fmul(mantissa, self._power_of_two(power, width))
        return builder.select(alive, result, self.constant(width, 0.0))

    def _power_of_two(self, power: Any, width: int) -> Any:
        integers = ir.VectorType(ir.IntType(32), width)
        biased = self._builder.add(self._builder.fptosi(power, integers), ir.Constant(integers, [127] * width))
        return self._builder.bitcast(self._builder.shl(biased, ir.Constant(integers, [23] * width)), self.kind(width))


def _corner_weights(emit: _Emitter, builder: Any, tables: Any, point: Any, lanes: int, count: int) -> list[Any]:
    """First lane and weight of each corner of a point; `tables` are (type, value) of corners and of weights."""
    found = []
    for number in range(count):
        index = (point, ir.Constant(ir.IntType(64), number))
        vertex = builder.sext(emit.number(*tables[0], *index), ir.IntType(64))
        found.append((builder.mul(vertex, ir.Constant(ir.IntType(64), lanes)), emit.number(*tables[1], *index)))
    return found


@intrinsic
def splat_row(_: Any, row: Any, count: Any, buffer: Any, place: Any, lattice: Any, corners: Any, weights: Any,
              point: Any) -> Any:  # fmt: skip
    """Add the row at flat position `place` of `buffer` to the lattice rows of a point's corners, times their weights.

    Args:
        row: tuple of as many elements as a row has lanes.
        count: tuple of as many elements as a point has corners.
        buffer: flat float array.
        place: int64.
        lattice: (M+1,L) C-contiguous, the dtype of `buffer`.
        corners, weights: (N,d+1) int32 and float32.
        point: int64.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = _Emitter(context, builder, buffer.dtype)
        source, target = emit.data(buffer, arguments[2]), emit.data(lattice, arguments[4])
        tables = ((corners, arguments[5]), (weights, arguments[6]))
        values = [
            (lane, emit.load(source, emit.shifted(arguments[3], lane), width)) for lane, width in blocks(len(row))
        ]
        for first, weight in _corner_weights(emit, builder, tables, arguments[7], len(row), len(count)):
            factor = context.cast(builder, weight, weights.dtype, buffer.dtype)
            for lane, value in values:
                at, width = emit.shifted(first, lane), value.type.count
                share = emit.multiply(value, emit.broadcast(factor, width))
                emit.store(target, at, emit.add(emit.load(target, at, width), share))
        return context.get_dummy_value()

    return types.void(row, count, buffer, types.int64, lattice, corners, weights, types.int64), generate


@intrinsic
def slice_row(_: Any, row: Any, count: Any, buffer: Any, place: Any, lattice: Any, corners: Any, weights: Any,
              point: Any, factor: Any) -> Any:  # fmt: skip
    """Add `factor` (float32) times the weighted sum of a point's lattice rows to the row at `place` of `buffer`.

    The other arguments are those of `splat_row`.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = _Emitter(context, builder, buffer.dtype)
        target, source = emit.data(buffer, arguments[2]), emit.data(lattice, arguments[4])
        tables = ((corners, arguments[5]), (weights, arguments[6]))
        found = _corner_weights(emit, builder, tables, arguments[7], len(row), len(count))
        scale = context.cast(builder, arguments[8], factor, buffer.dtype)
        shares = [(first, context.cast(builder, weight, weights.dtype, buffer.dtype)) for first, weight in found]
        for lane, width in blocks(len(row)):
            result = emit.constant(width, 0.0)
            for first, share in shares:
                value = emit.load(source, emit.shifted(first, lane), width)
                result = emit.add(result, emit.multiply(value, emit.broadcast(share, width)))
            at = emit.shifted(arguments[3], lane)
            result = emit.multiply(result, emit.broadcast(scale, width))
            emit.store(target, at, emit.add(emit.load(target, at, width), result))
        return context.get_dummy_value()

    return types.void(row, count, buffer, types.int64, lattice, corners, weights, types.int64, factor), generate


@intrinsic
def blur_row(_: Any, row: Any, lattice: Any, blurred: Any, own: Any, before: Any, after: Any) -> Any:
    """Write a row plus half of two others, all numbered by int64, to the same row of `blurred`; both (M+1,L)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = _Emitter(context, builder, lattice.dtype)
        source, target = emit.data(lattice, arguments[1]), emit.data(blurred, arguments[2])
        own, before, after = (builder.mul(each, ir.Constant(each.type, len(row))) for each in arguments[3:])
        for lane, width in blocks(len(row)):
            both = emit.add(*(emit.load(source, emit.shifted(each, lane), width) for each in (before, after)))
            at = emit.shifted(own, lane)
            result = emit.add(emit.load(source, at, width), emit.multiply(both, emit.constant(width, 0.5)))
            emit.store(target, at, result)
        return context.get_dummy_value()

    return types.void(row, lattice, blurred, types.int64, types.int64, types.int64), generate


@intrinsic
def softmax_groups(_: Any, group: Any, buffer: Any, place: Any) -> Any:
    """Softmax in place of the distribution at flat position `place`, or of all that begin in 16 lanes if it is short.

    Args:
        group: tuple of as many elements as a distribution has lanes (`lane_count`): 4, or a multiple of 8.
        buffer: flat float32 array; -inf in lanes without a class, which get 0.
        place: int64.
    """
    lanes = max(len(group), SOFTMAX_LANES)
    width = 8 if lanes % 16 else 16

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = _Emitter(context, builder, buffer.dtype)
        data = emit.data(buffer, arguments[1])
        places = [emit.shifted(arguments[2], lane) for lane in range(0, lanes, width)]
        values = [emit.load(data, at, width) for at in places]
        within = min(len(group), width)
        ceiling = emit.across(emit.larger, functools.reduce(emit.larger, values), within)
        risen = [emit.exp_below(value, ceiling) for value in values]
        inverse = emit.inverse(emit.across(emit.add, functools.reduce(emit.add, risen), within))
        for at, value in zip(places, risen, strict=True):
            emit.store(data, at, builder.fmul(value, inverse))
        return context.get_dummy_value()

    return types.void(group, buffer, types.int64), generate
