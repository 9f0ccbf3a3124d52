"""Mathematical functions for Triton kernels, accurate to an ulp or two, compiled and in Triton's interpreter alike.

`tl.exp`, `tl.sqrt` and `/` compile to the GPU's approximations: the error of exp grows with its argument, a quotient by
a large number is zero. Here float32 and float64 go to libdevice and to correctly rounded instructions. float16 and
bfloat16 are storage types: convert first.
"""

import triton
import triton.language as tl

if triton.knobs.runtime.interpret:  # TRITON_INTERPRET=1 has no libdevice
    import numpy as np
    from triton.runtime.interpreter import interpreter_builder

    def _elementwise(function):
        # In float64: what is tried here is a kernel's logic, not how numpy rounds float32.
        def rounded(a):
            return function(a.astype(np.float64)).astype(a.dtype)

        return lambda x: tl.tensor(interpreter_builder.unary_op(x.handle, rounded), x.type)

    exp, expm1, log, log1p, tanh, atan, rint = map(
        _elementwise, (np.exp, np.expm1, np.log, np.log1p, np.tanh, np.arctan, np.rint)
    )
else:
    from triton.language.extra.cuda.libdevice import atan, exp, expm1, log, log1p, rint, tanh

__all__ = [
    "atan", "clamp", "div", "exp", "exp_parts", "expm1", "gate", "gate_backward", "log", "log1p", "over", "rint",
    "scale2", "sqrt", "tanh", "times",
]  # fmt: skip


@triton.jit
def div(a, b):
    """a / b, correctly rounded. b: a tensor."""
    if b.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def sqrt(x):
    """The square root, correctly rounded."""
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.sqrt_rn(x)


# Numbers of a far wider range than their type: m 2^n. A product with one is right wherever it is representable, though
# m 2^n itself may be neither; and m 2^0 is an ordinary number, whose products are the ordinary ones bit by bit.


@triton.jit
def _pow2(k, like):
    """2^k in the type of `like`, for k that give a normal number."""
    if like.dtype == tl.float64:
        return ((k.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
    else:
        return ((k + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def scale2(v, n):
    """v 2^n, in two steps, since 2^n alone may overflow."""
    return v * _pow2(n >> 1, v) * _pow2(n - (n >> 1), v)


@triton.jit
def times(v, m, n):
    """v m 2^n. Half of 2^n comes before m and half after it: no step overflows or underflows but the result."""
    return v * _pow2(n >> 1, v) * m * _pow2(n - (n >> 1), v)


@triton.jit
def over(v, m, n):
    """v / (m 2^n)."""
    return div(v * _pow2(-n >> 1, v), m) * _pow2(-n - (-n >> 1), v)


@triton.jit
def clamp(v, limit):
    """v within [-limit, limit]; NaN stays NaN."""
    v = tl.where(v < -limit, -limit, v)
    return tl.where(v > limit, limit, v)


@triton.jit
def exp_parts(u):
    """e^u as m 2^n: m within [0.7, 1.42], but at the far ends, where 2^n halts at the edge of two normal factors.

    n = round(u / ln 2), m = e^(u - n ln 2), with ln 2 in two parts whose first, times n, is exact.
    """
    if u.dtype == tl.float64:
        # Any subnormal number times e^1456 is infinite, any number times e^-1456 is zero. NaN passes.
        u = clamp(u, 1456.0)
        n = clamp(tl.floor(u * 1.4426950408889634 + 0.5), 2044.0)
        m = exp(u - n * 0.693145751953125 - n * 1.42860682030941723212e-6)
    else:
        u = clamp(u, 193.0)
        n = clamp(tl.floor(u * 1.4426950408889634 + 0.5), 252.0)
        m = exp(u - n * 0.693359375 + n * 2.12194440e-4)
    return m, n.to(tl.int32)


# Gates. Powers of two of exponentials are applied last, so that gradients are right where tanh and sigmoid
# are 1 to rounding and where one factor is large and another small.


@triton.jit
def sigmoid(b):
    """sigmoid(b) = top 2^n, and its derivative slope 2^k."""
    m, k = exp_parts(-tl.abs(b))
    inverse = div(tl.full(b.shape, 1.0, b.dtype), 1.0 + scale2(m, k))
    negative = b < 0
    return tl.where(negative, m, 1.0) * inverse, tl.where(negative, k, 0), m * inverse * inverse, k


@triton.jit
def gate(a, b, LINEAR: tl.constexpr):
    """tanh(a) sigmoid(b), or a sigmoid(b)."""
    top, n, _, _ = sigmoid(b)
    return scale2((a if LINEAR else tanh(a)) * top, n)


@triton.jit
def gate_backward(g, a, b, LINEAR: tl.constexpr):
    """The gradients of a and b, for g that of the gate."""
    top, n, slope, j = sigmoid(b)
    grad_a = times(g, top, n)
    if LINEAR:
        half = j >> 1  # a and g may both be large
        grad_b = scale2(scale2(a * slope, half) * g, j - half)
    else:
        m, i = exp_parts(-2.0 * tl.abs(a))  # 1 - tanh(a)^2 = 4 u / (1 + u)^2 with u = e^-2|a|
        q = 1.0 + scale2(m, i)
        grad_a = scale2(times(g, top * div(4.0 * m, q * q), n), i)
        grad_b = times(g, tanh(a) * slope, j)
    return grad_a, grad_b
