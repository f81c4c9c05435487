"""A pixel's three channels in one vector register, which numba's compiler does not see by itself."""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 4  # the fewest that hold a pixel
FLOATS, INTEGERS, BYTES = (
    ir.VectorType(number, LANES) for number in (ir.FloatType(), ir.IntType(32), ir.IntType(8))
)


@intrinsic
def put_weighted_sum(typing, out, to, line, at, weights, taps):  # type: ignore[no-untyped-def]
    """Put the weighted sum of `taps` pixels that follow one another, rounded, into a pixel of out.

    The fourth lane is the next pixel's: it is read, and it is written. So line goes on after its last pixel, pixels
    are put from left to right, and none is put where out ends.

    Args:
        out: (bytes,) uint8; its pixel begins at `to`, uintp.
        line: (values,) float32 in [0, 255], three a pixel; the first one begins at `at`, uintp.
        weights: (taps or more,) float32, which add up to one.
    """
    signature = types.void(out, to, line, at, weights, taps)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def values(place: int) -> Any:
            return context.make_array(signature.args[place])(context, builder, args[place]).data

        _, to, _, at, _, taps = args
        total = cgutils.alloca_once_value(builder, ir.Constant(FLOATS, [0.5] * LANES))
        with cgutils.for_range(builder, taps) as tap:
            pixel = load(builder, values(2), builder.add(at, builder.mul(tap.index, ir.Constant(at.type, 3))))
            weight = in_all_lanes(builder, builder.load(builder.gep(values(4), [tap.index])))
            builder.store(builder.fadd(builder.load(total), builder.fmul(weight, pixel)), total)
        pixel = builder.trunc(builder.fptosi(builder.load(total), INTEGERS), BYTES)
        builder.store(pixel, builder.bitcast(builder.gep(values(0), [to]), BYTES.as_pointer()), align=1)
        return context.get_dummy_value()

    return signature, generate


def load(builder: Any, values: Any, place: Any) -> Any:
    """Return the four floats that begin at a place."""
    return builder.load(builder.bitcast(builder.gep(values, [place]), FLOATS.as_pointer()), align=4)


def in_all_lanes(builder: Any, number: Any) -> Any:
    undefined = ir.Constant(FLOATS, ir.Undefined)
    one = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, undefined, ir.Constant(INTEGERS, [0] * LANES))
