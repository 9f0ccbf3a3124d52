// The gate tanh(a) sigmoid(b), or a sigmoid(b), and its gradient on vectors, one ISA tier. In PyTorch:
// reference/gates.py.
//
// With u = e^-2|a| and w = e^-|b|: tanh |a| = (1 - u) / (1 + u), and sigmoid(b) = 1 / (1 + w) or w / (1 + w). Both
// share one division. 1 - u comes from e^-2|a| - 1, which is exact near a = 0. The derivatives are 4 u / (1 + u)^2 and
// w / (1 + w)^2: right where tanh and sigmoid are 1 to rounding. Powers of two are applied last: a small factor never
// takes a product with a large one to 0.
#pragma once
#include "gates_args.h"
#include "vmath.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

// sigmoid(b) = top 2^n / bottom, and its derivative m 2^k / bottom^2
template <class T>
struct Sigmoid {
  Vec<T> top, n, m, k, bottom;
};

template <class T>
PYGEN_INLINE Sigmoid<T> sigmoid_parts(const Vec<T>& b) {
  using V = Vec<T>;
  const V zero(T(0)), one(T(1));
  const Expm1<T> w = expm1_parts<true>(b.abs().neg());
  const V m = w.q + one, bottom = scale2(m, w.n) + one;
  const auto negative = less(b, zero);
  return {select(negative, m, one), select(negative, w.n, zero), m, w.n, bottom};
}

// tanh |a| = top / bottom, 1 - tanh(a)^2 = 4 m 2^n / bottom^2
template <class T>
struct Tanh {
  Vec<T> top, bottom, m, n;
};

template <class T>
PYGEN_INLINE Tanh<T> tanh_parts(const Vec<T>& a) {
  using V = Vec<T>;
  using at::vec::fmadd;
  const V one(T(1));
  const Expm1<T> u = expm1_parts<true>(a.abs() * V(T(-2)));
  const V p = scale2(one, u.n);
  return {fmadd(p.neg(), u.q, one - p), fmadd(p, u.q, one + p), u.q + one, u.n};
}

// x with its sign turned where a < 0
template <class T>
PYGEN_INLINE Vec<T> with_sign_of(const Vec<T>& a, const Vec<T>& x) {
  return select(less(a, Vec<T>(T(0))), x.neg(), x);
}

template <Gate kGate, class T>
PYGEN_INLINE Vec<T> gate(const Vec<T>& a, const Vec<T>& b) {
  const Sigmoid<T> s = sigmoid_parts(b);
  if constexpr (kGate == Gate::kLinear) {
    return scale2(a * (s.top / s.bottom), s.n);
  } else {
    const Tanh<T> t = tanh_parts(a);
    return scale2(with_sign_of(a, t.top * s.top / (t.bottom * s.bottom)), s.n);
  }
}

template <class T>
struct GateGradient {
  Vec<T> a, b;
};

// g: the upstream gradient
template <Gate kGate, class T>
PYGEN_INLINE GateGradient<T> gate_backward(const Vec<T>& a, const Vec<T>& b, const Vec<T>& g) {
  using V = Vec<T>;
  const Sigmoid<T> s = sigmoid_parts(b);
  if constexpr (kGate == Gate::kLinear) {
    // a and g may both be large: one half of the power of two comes before g, the other after it
    const V half = (s.k * V(T(0.5))).round(), slope = s.m / (s.bottom * s.bottom);
    return {scale2(g * (s.top / s.bottom), s.n), scale2(scale2(a * slope, half) * g, s.k - half)};
  } else {
    const Tanh<T> t = tanh_parts(a);
    const V both = t.bottom * s.bottom;
    const V slope_a = s.top * t.m / (both * t.bottom), slope_b = t.top * s.m / (both * s.bottom);
    return {scale2(g * slope_a, t.n + s.n + V(T(2))), scale2(g * with_sign_of(a, slope_b), s.k)};
  }
}

// --- other activations -----------------------------------------------------------------------------------------------

template <class T>
PYGEN_INLINE Vec<T> relu(const Vec<T>& x) {
  const Vec<T> zero(T(0));
  return select(less(x, zero), zero, x);
}

template <class T>
PYGEN_INLINE Vec<T> elu(const Vec<T>& x) {
  const Vec<T> zero(T(0));
  return select(less(zero, x), x, expm1(at::vec::clamp_max(x, zero)));
}

// elu(x) and elu(-x), from one exponential
template <class T>
PYGEN_INLINE void concat_elu(const Vec<T>& x, Vec<T>& first, Vec<T>& second) {
  const Vec<T> zero(T(0)), e = expm1(x.abs().neg());
  first = select(less(zero, x), x, e);
  second = select(less(x, zero), x.neg(), e);
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
