"""Eight float32 in one register, for Numba: the vector type that the lattice kernels on the CPU are written in.

Numba leaves vectorising to LLVM, which gives up on rows as short as 21 classes. With this type a kernel says it:
``load`` and ``store`` move eight neighbouring floats of a flat array, ``+ - * /`` act lane by lane (IEEE, nothing is
contracted or reordered, so results do not depend on the instruction set), and the functions below do the rest.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.errors import RequireLiteralValue
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

LANES = 8
_INT = ir.IntType(32)
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INTS = ir.VectorType(_INT, LANES)
_ANYTHING = ir.Constant(_FLOATS, ir.Undefined)
Lowering = tuple[Any, Callable[..., Any]]  # what an intrinsic returns: its signature and its code generator
Intrinsic: Any = intrinsic  # mypy takes the code generator's signature for the function's
_MADE_OF = ("numba_lanes.py", "mean_field_cpu.py", "permutohedral.py", "permutohedral_numba.py")
_SOURCES = [Path(__file__).with_name(name).read_bytes() for name in _MADE_OF]
DIGEST = hashlib.sha256(b"".join(_SOURCES)).hexdigest()[:12]


def kernel(function: Callable[..., Any]) -> Any:
    """Compile as a part of the entry that calls it."""
    return njit(error_model="numpy")(function)


def entry(function: Callable[..., Any]) -> Any:
    """Compile at the first call from Python, and keep the machine code on disk where there is a place for it."""
    # Numba looks for changes in the entry's file only; with the name goes a digest of all that it is made of.
    function.__qualname__ += f"_{DIGEST}"
    try:
        return njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return njit(nogil=True, error_model="numpy")(function)


class LanesType(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


lanes = LanesType()


@register_model(LanesType)
class LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, _FLOATS)


@infer_global(operator.add)
@infer_global(operator.sub)
@infer_global(operator.mul)
@infer_global(operator.truediv)
class LanesArithmetic(AbstractTemplate):
    def generic(self, args: tuple[Any, ...], kws: Any) -> Any:
        return signature(lanes, lanes, lanes) if args == (lanes, lanes) else None


def _lower_arithmetic(operation: Any, instruction: str) -> None:
    @lower_builtin(operation, lanes, lanes)
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*args)


for _operation, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _lower_arithmetic(_operation, _instruction)


def _address(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """Pointer to the lanes that begin at ``array[index]``; the array is flat and contiguous."""
    array = cgutils.create_struct_proxy(sig.args[0])(context, builder, args[0])
    index = context.cast(builder, args[1], sig.args[1], types.intp)
    return builder.bitcast(builder.gep(array.data, [index]), _FLOATS.as_pointer())


def _in_every_lane(builder: Any, scalar: Any, kind: Any) -> Any:
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(_INT, 0))
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), ir.Constant(_INTS, None))


@Intrinsic
def load(typingctx: Any, array: Any, index: Any) -> Lowering:
    """The lanes ``array[index : index + 8]``; bounds are the caller's business."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_address(context, builder, sig, args), align=4)

    return lanes(array, index), generate


@Intrinsic
def store(typingctx: Any, array: Any, index: Any, value: Any) -> Lowering:
    """``array[index : index + 8] = value``."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], _address(context, builder, sig, args), align=4)
        return context.get_dummy_value()

    return types.void(array, index, lanes), generate


@Intrinsic
def spread(typingctx: Any, scalar: Any) -> Lowering:
    """A float32 in every lane."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _in_every_lane(builder, args[0], _FLOATS)

    return lanes(types.float32), generate


@Intrinsic
def first(typingctx: Any, value: Any) -> Lowering:
    """Lane 0 as a float32."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.extract_element(args[0], ir.Constant(_INT, 0))

    return types.float32(lanes), generate


@Intrinsic
def rotate(typingctx: Any, value: Any, count: Any) -> Lowering:
    """Lane k of the result is lane k + count of ``value``, round the end; ``count`` is a literal."""
    if not isinstance(count, types.IntegerLiteral):
        raise RequireLiteralValue("rotate: count")
    order = ir.Constant(_INTS, [(lane + count.literal_value) % LANES for lane in range(LANES)])

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.shuffle_vector(args[0], _ANYTHING, order)

    return lanes(lanes, count), generate


def _where(comparison: str) -> Any:
    """A function of lanes a, b, then, otherwise: ``then`` where the comparison of a with b holds."""

    @Intrinsic
    def where(typingctx: Any, a: Any, b: Any, then: Any, otherwise: Any) -> Lowering:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.select(builder.fcmp_ordered(comparison, args[0], args[1]), args[2], args[3])

        return lanes(lanes, lanes, lanes, lanes), generate

    return where


where_less, where_equal = _where("<"), _where("==")


def _of_llvm(name: str) -> Any:
    """One of LLVM's own functions of a number, on lanes."""

    @Intrinsic
    def call(typingctx: Any, value: Any) -> Lowering:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            kind = ir.FunctionType(_FLOATS, [_FLOATS])
            name_of_lanes = f"llvm.{name}.v{LANES}f32"
            return builder.call(cgutils.get_or_insert_function(builder.module, kind, name_of_lanes), args)

        return lanes(lanes), generate

    return call


floor = _of_llvm("floor")
nearest = _of_llvm("rint")  # the nearest whole number, ties to even


@Intrinsic
def two_to_the(typingctx: Any, exponent: Any) -> Lowering:
    """2 to a whole power from -127 (which gives 0) to 127, written into the exponent's bits."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        biased = builder.add(builder.fptosi(args[0], _INTS), ir.Constant(_INTS, [127] * LANES))
        return builder.bitcast(builder.shl(biased, ir.Constant(_INTS, [23] * LANES)), _FLOATS)

    return lanes(lanes), generate
