"""Short vectors for Numba: the lanes of a SIMD register as one value.

Numba leaves a loop over a few channels as a loop. Here the channels of a point are one LLVM vector, loaded, added and
stored at once, whatever the processor's register width. A function takes the number of lanes from the length of a tuple
(`lanes`), so Numba compiles it once per length; the element type is that of the array.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

_LOG2_E = 1.44269504088896341
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_LOWEST = -30.0
# Minimax polynomial of (exp(r) - 1 - r) / r^2 on |r| <= ln(2) / 2, highest power first (Cephes, expf).
_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


class Vector(types.Type):
    """`width` numbers of one floating type."""

    def __init__(self, element: types.Float, width: int) -> None:
        self.element, self.width = element, width
        super().__init__(name=f"{element}x{width}")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, _llvm_type(kind))


def _llvm_type(vector: Vector) -> ir.VectorType:
    element = ir.FloatType() if vector.element == types.float32 else ir.DoubleType()
    return ir.VectorType(element, vector.width)


def _constant(vector: Vector, value: float) -> ir.Constant:
    return ir.Constant(_llvm_type(vector), [value] * vector.width)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any, vector: Vector) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _llvm_type(vector).as_pointer())


def _broadcast(builder: Any, scalar: Any, vector: Vector) -> Any:
    undefined = ir.Constant(_llvm_type(vector), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), vector.width), None))


def _intrinsic_function(builder: Any, name: str, vector: Vector, result: Any, arguments: Any) -> Any:
    suffix = f"v{vector.width}f{vector.element.bitwidth}"
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return cgutils.get_or_insert_function(builder.module, kind, f"{name}.{suffix}")


@intrinsic
def zeros(_: Any, lanes: Any, array: Any) -> Any:
    """Give a vector of zeros with the element type of `array`."""
    vector = Vector(array.dtype, len(lanes))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _constant(vector, 0.0)

    return vector(lanes, array), generate


@intrinsic
def load(_: Any, lanes: Any, array: Any, index: Any) -> Any:
    """Read the vector that starts at flat position `index` of a contiguous array."""
    vector = Vector(array.dtype, len(lanes))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, array, arguments[1], arguments[2], vector)
        return builder.load(pointer, align=array.dtype.bitwidth // 8)

    return vector(lanes, array, types.int64), generate


@intrinsic
def store(_: Any, array: Any, index: Any, vector: Any) -> Any:
    """Write a vector to flat position `index` of a contiguous array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, array, arguments[0], arguments[1], vector)
        builder.store(arguments[2], pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.int64, vector), generate


@intrinsic
def add(_: Any, first: Any, second: Any) -> Any:
    """Give first + second."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fadd(*arguments)

    return first(first, second), generate


@intrinsic
def scale(_: Any, vector: Any, factor: Any) -> Any:
    """Give vector * factor, a float32 or float64 number."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = context.cast(builder, arguments[1], factor, vector.element)
        return builder.fmul(arguments[0], _broadcast(builder, number, vector))

    return vector(vector, factor), generate


@intrinsic
def maximum(_: Any, first: Any, second: Any) -> Any:
    """Give the larger number of each lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *arguments), *arguments)

    return first(first, second), generate


def _reduction(name: str) -> Any:
    @intrinsic
    def reduce(_: Any, vector: Any) -> Any:
        """Fold all lanes to one number."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind = _llvm_type(vector)
            starts = [ir.Constant(kind.element, 0.0)] if name == "fadd" else []
            arguments = [*starts, arguments[0]]
            function = _intrinsic_function(builder, f"llvm.vector.reduce.{name}", vector, kind.element, arguments)
            return builder.call(function, arguments, fastmath=("reassoc", "nnan"))

        return vector.element(vector), generate

    return reduce


largest = _reduction("fmax")
total = _reduction("fadd")


@intrinsic
def exp_below(_: Any, vector: Any, ceiling: Any) -> Any:
    """Give exp(vector - ceiling) for float32 lanes <= ceiling; 0 where that is below exp(-30), about 1e-13.

    Smaller numbers would end as denormal ones, which are many times slower. Relative error below 2e-7.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        difference = builder.fsub(arguments[0], _broadcast(builder, arguments[1], vector))
        alive = builder.fcmp_ordered(">", difference, _constant(vector, _LOWEST))
        x = builder.select(alive, difference, _constant(vector, _LOWEST))
        octaves = builder.fmul(x, _constant(vector, _LOG2_E))
        power = builder.call(_intrinsic_function(builder, "llvm.rint", vector, octaves.type, [octaves]), [octaves])
        for part in (_LN2_HIGH, _LN2_LOW):
            x = builder.fsub(x, builder.fmul(power, _constant(vector, part)))
        tail = _constant(vector, _POLYNOMIAL[0])
        for coefficient in _POLYNOMIAL[1:]:
            tail = builder.fadd(builder.fmul(tail, x), _constant(vector, coefficient))
        mantissa = builder.fadd(builder.fadd(builder.fmul(tail, builder.fmul(x, x)), x), _constant(vector, 1.0))
        result = builder.fmul(mantissa, _power_of_two(builder, power, vector))
        return builder.select(alive, result, _constant(vector, 0.0))

    return vector(vector, types.float32), generate


def _power_of_two(builder: Any, power: Any, vector: Vector) -> Any:
    integers = ir.VectorType(ir.IntType(32), vector.width)
    biased = builder.add(builder.fptosi(power, integers), ir.Constant(integers, [127] * vector.width))
    return builder.bitcast(builder.shl(biased, ir.Constant(integers, [23] * vector.width)), _llvm_type(vector))
