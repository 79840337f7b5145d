"""Computes exp, log, tanh, sigmoid, erf and small powers in float32 with arithmetic that vectorises.

TVM makes a call of libm for every element of them, and a loop with a call in it is no vector loop. Here each is a few
multiply-adds without branches or tables, so that it becomes vector instructions whatever the schedule does with it.
Before: scheduled PrimFuncs. After: none of these calls on float32; on float16 they are computed in float32. float64 is
left alone. To round to the nearest integer takes the one instruction that there is for it, in any float.

Error bounds, over all finite float32 where the result is a normal number, in units in the last place (ulp); the first
is for targets with fused multiply-add (x86-64-v3 and later, aarch64), the second for those without:

    exp      2    2     sigmoid  3    3     x**2          0.5  0.5
    log      2    2     tanh     5    6     x**3, x**4    2    2
    rsqrt  1.5  1.5     erf      6    7
    x**¾   2.5  2.5

tanh and erf are odd, never leave [-1, 1], and are as close near 0, where they are all but linear. NaN gives NaN,
infinities give the limits, log of a negative number NaN. exp below 2**-126 is 0: a subnormal result costs some CPUs a
hundred cycles, and makes no difference to a sum or a product with ordinary numbers; sigmoid may be off by as much.
Square roots are left to the hardware, which has them as vector instructions, and to LLVM, which knows x**0.5; so
rsqrt, which TVM does not vectorise, becomes 1 / sqrt. Other powers are left to libm.

Where the coefficients come from: minimax fits by `scripts/fit_vector_math.py`, rounded to float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import tvm
import tvm_ffi
from tvm import tirx

Bind = Callable[[tvm.ir.Expr], tirx.Var]

# 2**23 + 2**22: adding it to a small number leaves the nearest integer in the low bits, without a conversion to int.
_MAGIC = 12582912.0
_LN2_HIGH = 0.693359375  # in 9 bits, so that its product with an exponent is exact
_LN2_LOW = math.log(2) - _LN2_HIGH
_SQRT_HALF_BITS = 0x3F3504F3
_SMALLEST_NORMAL = 2.0**-126

# e**r, r from -0.0012 ln 2 to 1.0005 ln 2, relative error 2e-9; the first is fixed so that e**0 is 1.
_EXP = (1.0, 0.999999821, 0.500005841, 0.166610017, 0.0419153906, 0.00779167842, 0.00194909668)
# (log(1 + f) - f + f²/2) / f³, f from √½ - 1 to √2 - 1, relative error of the logarithm 3e-8.
_LOG = (0.333339095, -0.250013381, 0.199630633, -0.16577585, 0.149147689, -0.142674863, 0.0870043486)
# Numerator and denominator of tanh(x)/x in x², |x| up to 9.02, beyond which tanh rounds to 1; relative error 2e-8.
_TANH_LIMIT = 9.02
_TANH = (
    (1.0, 0.133797184, 0.00349403499, 2.05834876e-05, 1.33190801e-08),
    (1.0, 0.467130333, 0.0258710738, 0.000328309339, 7.76202285e-07),
)
# The same of erf(x)/x, |x| up to 3.93; relative error 2e-8. All are positive, so nothing cancels.
_ERF_LIMIT = 3.93
_ERF = (
    (1.12837911, 0.190783992, 0.0527903065, 0.00377961528, 0.000284808542, 2.04196726e-06),
    (1.0, 0.50241065, 0.114257589, 0.0149974506, 0.00116521376, 3.80040328e-05),
)


def _f32(value: float) -> tirx.FloatImm:
    return tirx.FloatImm("float32", value)


def _i32(value: int) -> tirx.IntImm:
    return tirx.IntImm("int32", value)


def _at_most(limit: float, x: tvm.ir.Expr) -> tvm.ir.Expr:
    """The limit is the first operand: Min and Max give the second where one is NaN, as the hardware does."""
    return tirx.Min(_f32(limit), x)


def _at_least(limit: float, x: tvm.ir.Expr) -> tvm.ir.Expr:
    return tirx.Max(_f32(limit), x)


def _polynomial(coefficients: Sequence[float], x: tvm.ir.Expr) -> tvm.ir.Expr:
    """Horner's scheme, lowest power first; LLVM contracts each step to one instruction where there is one."""
    *rest, result = map(_f32, coefficients)
    for coefficient in reversed(rest):
        result = result * x + coefficient
    return result


def _exp(x: tirx.Var, bind: Bind) -> tvm.ir.Expr:
    """e**x = 2**n · e**r with n = ⌊x / ln 2⌋.

    n is rounded down, so that e**r lies in [1, 2) and no exponent between that of the smallest and of the greatest
    number needs a second scaling; below it the scale's bits, and so the scale, are 0. A hair less than ½ is taken off
    before rounding, for 0 to give n = 0.
    """
    x = bind(_at_least(-88.0, x))
    biased = x * _f32(1 / math.log(2)) - _f32(0.499) + _f32(_MAGIC + 127)
    shifted = bind(_at_most(_MAGIC + 254, biased))  # n + 127, the exponent as float32 stores it, in its low bits
    n = bind(shifted - _f32(_MAGIC + 127))
    r = bind(x - n * _f32(_LN2_HIGH) - n * _f32(_LN2_LOW))
    scale = tirx.reinterpret("float32", tirx.reinterpret("int32", shifted) << _i32(23))
    return _polynomial(_EXP, r) * scale


def _sigmoid(x: tirx.Var, bind: Bind) -> tvm.ir.Expr:
    """1 / (1 + e**-x): half of 1 + tanh(x/2) would lose the small values."""
    return _f32(1) / (_f32(1) + _exp(bind(x * _f32(-1)), bind))


def _log(x: tirx.Var, bind: Bind) -> tvm.ir.Expr:
    """n ln 2 + log(1 + f) with x = 2**n (1 + f), f between √½ - 1 and √2 - 1; subnormal x is scaled up first."""
    subnormal = x < _f32(_SMALLEST_NORMAL)
    bits = tirx.reinterpret("int32", bind(tirx.Select(subnormal, x * _f32(2.0**23), x)))
    exponent = (bits - _i32(_SQRT_HALF_BITS)) >> _i32(23)
    f = bind(tirx.reinterpret("float32", bits - (exponent << _i32(23))) - _f32(1))
    n = bind(exponent.astype("float32") + tirx.Select(subnormal, _f32(-23), _f32(0)))
    tail = (_polynomial(_LOG, f) * f - _f32(0.5)) * (f * f) + n * _f32(_LN2_LOW)
    finite = n * _f32(_LN2_HIGH) + (f + tail)
    positive = tirx.Select(x < _f32(math.inf), finite, x)
    at_most_zero = tirx.Select(x < _f32(0), _f32(math.nan), _f32(-math.inf))
    return tirx.Select(x <= _f32(0), at_most_zero, positive)


def _odd_rational(x: tirx.Var, bind: Bind, limit: float, parts: tuple[Sequence[float], Sequence[float]]) -> tvm.ir.Expr:
    """x · P(x²) / Q(x²), kept within [-1, 1]: x² stops at the limit's, where the quotient is 1/x, so that |x| goes on.

    One division costs less than the exponential that erf and tanh are otherwise made of.
    """
    square = bind(_at_most(limit * limit, x * x))
    numerator, denominator = parts
    return _at_least(-1, _at_most(1, x * _polynomial(numerator, square) / _polynomial(denominator, square)))


def _tanh(x: tirx.Var, bind: Bind) -> tvm.ir.Expr:
    return _odd_rational(x, bind, _TANH_LIMIT, _TANH)


def _erf(x: tirx.Var, bind: Bind) -> tvm.ir.Expr:
    return _odd_rational(x, bind, _ERF_LIMIT, _ERF)


def _rsqrt(x: tirx.Var, _bind: Bind) -> tvm.ir.Expr:
    return _f32(1) / tirx.sqrt(x)


def _square(x: tirx.Var, _bind: Bind) -> tvm.ir.Expr:
    return x * x


def _cube(x: tirx.Var, _bind: Bind) -> tvm.ir.Expr:
    return x * x * x


def _fourth_power(x: tirx.Var, bind: Bind) -> tvm.ir.Expr:
    square = bind(x * x)
    return square * square


def _three_quarters(x: tirx.Var, bind: Bind) -> tvm.ir.Expr:
    """The usual exponent of local response normalisation. IEEE 754 has +∞ for a power of -∞, and NaN for its root."""
    root = bind(tirx.sqrt(x))
    return tirx.Select(x < _f32(-3.4028234663852886e38), _f32(math.inf), root * tirx.sqrt(root))


Formula = Callable[[tirx.Var, Bind], tvm.ir.Expr]
_FUNCTIONS: dict[str, Formula] = {
    "tirx.exp": _exp,
    "tirx.log": _log,
    "tirx.rsqrt": _rsqrt,
    "tirx.sigmoid": _sigmoid,
    "tirx.tanh": _tanh,
    "tirx.erf": _erf,
}
_POWERS: dict[float, Formula] = {0.75: _three_quarters, 2: _square, 3: _cube, 4: _fourth_power}


_DTYPES = ("float32", "float16")
_MOST_NESTED = 3  # Mish is tanh of log of exp


def vector_math(module: tvm.IRModule, target: tvm.target.Target) -> tvm.IRModule:
    """Replace the calls in every PrimFunc; other targets than CPUs have instructions for them and are left alone.

    To be called on scheduled functions, so that templates see the operators by their names.
    """
    if target.kind.name != "llvm":
        return module
    return _expand(module)


@tirx.transform.prim_func_pass(opt_level=0, name="VectorMath")
def _expand(function: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext) -> tirx.PrimFunc:
    """Calls deeper than `_MOST_NESTED` within other calls stay.

    TVM's simplifier puts the value of a name where the name stands, also where that is in another name's value: its
    time grows tenfold with each level, from 0.1 s for three.
    """
    depth = 0

    def rewrite(call: tvm.ir.Call, mutator: tvm_ffi.StructuralMutator) -> tvm.ir.Expr:
        nonlocal depth
        if getattr(call.op, "name", "") == "tirx.nearbyint":
            return _nearest(mutator.default_mutate(call).args[0])
        formula = _formula(call) if depth < _MOST_NESTED else None
        if formula is None:
            return mutator.default_mutate(call)
        depth += 1
        argument = mutator.default_mutate(call).args[0]
        depth -= 1
        return _named(formula, argument)

    def choose(cast: tirx.Cast, mutator: tvm_ffi.StructuralMutator) -> tvm.ir.Expr:
        # TVM's analysis of what a name can stand for fails on a vector of truths that is cast.
        cast = mutator.default_mutate(cast)
        if str(cast.value.ty.dtype) != "bool":
            return cast
        return tirx.Select(cast.value, tirx.const(1, cast.ty), tirx.const(0, cast.ty))

    return tvm_ffi.structural_mutate(function, [(tvm.ir.Call, rewrite), (tirx.Cast, choose)])


def _nearest(x: tvm.ir.Expr) -> tvm.ir.Expr:
    """The nearest integer, of two the even one. TVM computes its own call of this element by element."""
    dtype = str(x.ty.dtype)
    if dtype == "float16":
        return _nearest(x.astype("float32")).astype(dtype)
    return tirx.call_llvm_pure_intrin(dtype, "llvm.nearbyint", x)


def _named(formula: Formula, argument: tvm.ir.Expr) -> tvm.ir.Expr:
    """The formula of an argument, with names for what it uses more than once."""
    bound: list[tuple[tirx.Var, tvm.ir.Expr]] = []

    def bind(value: tvm.ir.Expr) -> tirx.Var:
        var = tirx.Var(f"m{len(bound)}", str(value.ty.dtype))
        bound.append((var, value))
        return var

    result = formula(bind(argument.astype("float32")), bind).astype(str(argument.ty.dtype))
    for var, value in reversed(bound):
        result = tirx.Let(var, value, result)
    return result


def _formula(call: tvm.ir.Call) -> Formula | None:
    name = getattr(call.op, "name", "")
    if not name.startswith("tirx.") or not call.args or str(getattr(call.args[0].ty, "dtype", "")) not in _DTYPES:
        return None
    if isinstance(call.args[0], tirx.FloatImm):
        return None  # computed once, if at all; and TVM fails on names that turn out to be numbers
    if name == "tirx.pow":
        return _POWERS.get(call.args[1].value) if isinstance(call.args[1], tirx.FloatImm) else None
    return _FUNCTIONS.get(name)
