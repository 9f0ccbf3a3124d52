// The maths of affine coupling on up to kBlock contiguous elements of the arithmetic type, one ISA tier.
// NICE (arXiv 1410.8516), RealNVP (1605.08803) eq. 7-8, Glow (1807.03039) table 1; in PyTorch: reference/coupling.py.
//
// The scale is kept as m 2^n, and products are scaled by 2^n last: they are right wherever the result is representable.
#pragma once
#include <limits>
#include <type_traits>

#include "coupling_args.h"
#include "vmath.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kBlock = 512;

template <class T>
struct CouplingConsts {
  static constexpr bool kPlain = false;
  explicit CouplingConsts(const CouplingArgs& a)
      : squash(a.squash),
        reciprocal(a.reciprocal),
        recover(a.recover),
        sign(a.reciprocal ? T(-1) : T(1)),
        offset(T(a.offset)),
        eps(T(a.eps)),
        max_scale(T(a.max_scale)),
        log_max(T(std::log(a.max_scale))),
        inv_width(T(1.0 / a.width)),
        tau(T(a.tau)) {
    set_gain(T(a.gain));
  }
  void set_gain(T g) {
    gain = g;
    slope = g * inv_width;
  }
  Squash squash;
  bool reciprocal, recover;
  T sign, offset, eps, max_scale, log_max, gain, inv_width, slope, tau;
};

// The same where nothing bounds the scale: known to the compiler, the loop is straight-line code.
template <class T>
struct PlainConsts : CouplingConsts<T> {
  explicit PlainConsts(const CouplingConsts<T>& c) : CouplingConsts<T>(c) {}
  static constexpr bool kPlain = true, reciprocal = false;
  static constexpr Squash squash = Squash::kNone;
  static constexpr T eps = T(0), max_scale = std::numeric_limits<T>::infinity();
};

// u = gain h(s / width) + offset, with h and, for gradients, du/ds
template <class T>
struct Squashed {
  Vec<T> u, h, slope;
};

template <class T, class C>
PYGEN_INLINE Squashed<T> squash(const Vec<T>& s, const T* gains, int64_t w, const C& c) {
  using V = Vec<T>;
  V h = s * V(c.inv_width), slope(T(1));
  if (C::kPlain || (c.squash == Squash::kNone && !gains))
    return {at::vec::fmadd(s, V(c.slope), V(c.offset)), h, V(c.slope)};
  const V gain = gains ? V::loadu(gains, w) : V(c.gain);
  if (c.squash == Squash::kTanh) {
    h = tanh(h);
    slope = at::vec::fmadd(h.neg(), h, V(T(1)));
  } else if (c.squash == Squash::kAtan) {
    slope = V(T(1)) / at::vec::fmadd(h, h, V(T(1)));
    h = atan(h);
  } else if (c.squash == Squash::kSoftsign) {
    const V r = V(T(1)) / (V(T(1)) + h.abs());
    h = h * r;
    slope = r * r;
  }
  return {at::vec::fmadd(gain, h, V(c.offset)), h, gain * slope * V(c.inv_width)};
}

// S = m 2^n; log S = lin + log q, or lin - log(1 + q) for the plain sigmoid; d = d log S / du
template <class T>
struct Scale {
  Vec<T> m, n, lin, q, d;
};

// How log S follows from lin and q.
enum class LogForm { kLin, kMinusLog1p, kPlusLog };

template <class T, Activation A, class C>
PYGEN_INLINE LogForm log_form(const C& c) {
  if (c.eps > T(0) || A == Activation::kSoftplus) return LogForm::kPlusLog;
  return A == Activation::kExp ? LogForm::kLin : LogForm::kMinusLog1p;
}

template <class T, Activation A, class C>
PYGEN_INLINE Scale<T> scale_of(const Vec<T>& u, const C& c) {
  using V = Vec<T>;
  const V zero(T(0)), one(T(1));
  Scale<T> r;
  if constexpr (A == Activation::kExp) {
    const Exp<T> e = exp_parts(u);
    r = {e.m, e.n, u, one, one};
  } else {
    const Exp<T> parts = exp_parts<true>(u.abs().neg());
    const V e = scale2(parts.m, parts.n), q = one + e;  // e = exp(-|u|) in [0, 1]
    const auto negative = less(u, zero);
    if constexpr (A == Activation::kSigmoid) {
      const V inv = one / q;
      r = {select(negative, parts.m, one) * inv, select(negative, parts.n, zero), at::vec::clamp_max(u, zero), e,
           select(negative, one, e) * inv};
    } else {
      const auto tail = less(u, V(T(-15)));  // softplus(u) = e^u - e^2u / 2 + ...
      const V soft = at::vec::clamp_min(u, zero) + e.log1p(), series = at::vec::fmadd(e, V(T(-0.5)), one);
      r = {select(tail, parts.m * series, soft), select(tail, parts.n, zero),
           select(tail, at::vec::fmadd(e, V(T(-0.5)), u), zero), select(tail, one, soft),
           select(tail, series, select(negative, e, one) / (q * soft))};
    }
  }
  if (c.eps > T(0)) {
    const V s0 = scale2(r.m, r.n), s = s0 + V(c.eps);
    const Scale<T> plain{s, zero, zero, s, r.d * s0 / s};
    if constexpr (A == Activation::kExp) {  // e^u may overflow: S = e^u (1 + eps e^-u)
      const V q = at::vec::fmadd(V(c.eps), scale2(one / r.m, r.n.neg()), one);
      const auto large = less(one, u);
      r = {select(large, r.m * q, plain.m), select(large, r.n, zero), select(large, u, zero), select(large, q, plain.q),
           select(large, one / q, plain.d)};
    } else {
      r = plain;
    }
  }
  if (c.max_scale < std::numeric_limits<T>::infinity()) {
    const auto above = less(V(c.max_scale), scale2(r.m, r.n));
    const V neutral(log_form<T, A>(c) == LogForm::kMinusLog1p ? T(0) : T(1));
    r = {select(above, V(c.max_scale), r.m), select(above, zero, r.n), select(above, V(c.log_max), r.lin),
         select(above, neutral, r.q), select(above, zero, r.d)};
  }
  return r;
}

template <class T>
PYGEN_INLINE void invert(Scale<T>& s) {
  s.m = Vec<T>(T(1)) / s.m;
  s.n = s.n.neg();
}

// Calls f(i, full vector count or tail count as a constant or a number) over n elements.
template <class T, class F>
PYGEN_INLINE void for_vectors(int64_t n, const F& f) {
  constexpr int64_t W = Vec<T>::size();
  int64_t i = 0;
  for (; i + W <= n; i += W) f(i, std::integral_constant<int64_t, W>());
  if (i < n) f(i, n - i);
}

// out and the sum of log M over n elements; kEach: log M of each instead. gain: one an element, or null for c.gain.
template <class T, Activation A, bool kLast, bool kEach, class C>
double forward_rows(const T* __restrict in, const T* __restrict s, const T* __restrict t, const T* __restrict gain,
                    T* __restrict out, T* __restrict each, int64_t n, const C& c) {
  using V = Vec<T>;
  const V tau(c.tau);
  if constexpr (A == Activation::kAdditive) {
    for_vectors<T>(n, [&](int64_t i, auto w) __attribute__((always_inline)) {
      at::vec::fmadd(tau, V::loadu(t + i, w), V::loadu(in + i, w)).store(out + i, w);
      if constexpr (kEach) V(T(0)).store(each + i, w);
    });
    return 0;
  } else {
    const LogForm form = log_form<T, A>(c);
    LogSum<T> logs;
    Sum<T> lin;
    for_vectors<T>(n, [&](int64_t i, auto w) __attribute__((always_inline)) {
      const V u = squash(V::loadu(s + i, w), gain ? gain + i : nullptr, w, c).u;
      Scale<T> scale = scale_of<T, A>(u, c);
      if constexpr (kEach) {
        V log = scale.lin;
        if (form == LogForm::kMinusLog1p) log = log - scale.q.log1p();
        if (form == LogForm::kPlusLog) log = log + scale.q.log();
        (log * V(c.sign)).store(each + i, w);
      } else {
        const V zero(T(0)), one(T(1));
        if constexpr (!std::is_same_v<decltype(w), std::integral_constant<int64_t, V::size()>>) {  // the lanes past n
          scale.lin = V::set(zero, scale.lin, w);
          scale.q = V::set(form == LogForm::kMinusLog1p ? zero : one, scale.q, w);
        }
        lin.add(scale.lin);
        if (form == LogForm::kMinusLog1p) logs.add1p(scale.q);
        if (form == LogForm::kPlusLog) {
          logs.add(scale.q);
          if (i / V::size() % 7 == 6) logs.flush();
        }
      }
      if (c.reciprocal) invert(scale);
      const V x = V::loadu(in + i, w), shift = V::loadu(t + i, w);
      const V y = kLast ? scale2(at::vec::fmadd(tau, shift, x) * scale.m, scale.n)
                        : at::vec::fmadd(tau, shift, scale2(x * scale.m, scale.n));
      y.store(out + i, w);
    });
    if constexpr (kEach) return 0;
    double sum = lin.total();
    if (form != LogForm::kLin) sum += (form == LogForm::kMinusLog1p ? -1.0 : 1.0) * logs.total();
    return double(c.sign) * sum;
  }
}

// g: gradient of out; l: of log M (kEach: one an element); z: in or out. Outputs may be null.
template <class T>
struct BackwardBlock {
  const T *g, *l, *z, *s, *t, *gain;
  T *grad_in, *grad_s, *grad_t, *grad_gain;
};

template <class T, Activation A, bool kLast, bool kEach, class C>
void backward_rows(const BackwardBlock<T>& p, int64_t n, const C& c) {
  using V = Vec<T>;
  const V tau(c.tau);
  for_vectors<T>(n, [&](int64_t i, auto w) __attribute__((always_inline)) {
    const V g = V::loadu(p.g + i, w);
    if constexpr (A == Activation::kAdditive) {
      if (p.grad_in) g.store(p.grad_in + i, w);
      if (p.grad_t) (tau * g).store(p.grad_t + i, w);
    } else {
      const Squashed<T> q = squash(V::loadu(p.s + i, w), p.gain ? p.gain + i : nullptr, w, c);
      Scale<T> scale = scale_of<T, A>(q.u, c);
      if (c.reciprocal) invert(scale);
      const V gm = scale2(g * scale.m, scale.n);
      if (p.grad_in) gm.store(p.grad_in + i, w);
      if (p.grad_t) (tau * (kLast ? gm : g)).store(p.grad_t + i, w);
      if (p.grad_s || p.grad_gain) {
        V z = V::loadu(p.z + i, w);
        if constexpr (!kLast) {
          z = c.recover ? z - tau * V::loadu(p.t + i, w) : scale2(z * scale.m, scale.n);
        }
        const V l = kEach ? V::loadu(p.l + i, w) : V(*p.l);
        const V gu = V(c.sign) * scale.d * at::vec::fmadd(g, z, l);
        if (p.grad_s) (gu * q.slope).store(p.grad_s + i, w);
        if (p.grad_gain) (gu * q.h).store(p.grad_gain + i, w);
      }
    }
  });
}

template <class T>
inline bool plain(const T* gain, const CouplingConsts<T>& c) {
  return !gain && !c.reciprocal && c.squash == Squash::kNone && c.eps == T(0) &&
         c.max_scale == std::numeric_limits<T>::infinity();
}

template <class T, Activation A, bool kLast, bool kEach>
double forward_block(const T* in, const T* s, const T* t, const T* gain, T* out, T* each, int64_t n,
                     const CouplingConsts<T>& c) {
  if (!kEach && plain(gain, c)) {
    return forward_rows<T, A, kLast, kEach>(in, s, t, gain, out, each, n, PlainConsts<T>(c));
  }
  return forward_rows<T, A, kLast, kEach>(in, s, t, gain, out, each, n, c);
}

template <class T, Activation A, bool kLast, bool kEach>
void backward_block(const BackwardBlock<T>& p, int64_t n, const CouplingConsts<T>& c) {
  if (!kEach && plain(p.gain, c)) return backward_rows<T, A, kLast, kEach>(p, n, PlainConsts<T>(c));
  backward_rows<T, A, kLast, kEach>(p, n, c);
}

template <class T>
using ForwardBlockFn = double (*)(const T*, const T*, const T*, const T*, T*, T*, int64_t, const CouplingConsts<T>&);
template <class T>
using BackwardBlockFn = void (*)(const BackwardBlock<T>&, int64_t, const CouplingConsts<T>&);

template <class T, bool kEach, Activation A>
ForwardBlockFn<T> forward_block_for(bool last) {
  return last ? forward_block<T, A, true, kEach> : forward_block<T, A, false, kEach>;
}
template <class T, bool kEach, Activation A>
BackwardBlockFn<T> backward_block_for(bool last) {
  return last ? backward_block<T, A, true, kEach> : backward_block<T, A, false, kEach>;
}

// picks FN<T, kEach, A>(last) for a run-time activation
#define PYGEN_BY_ACTIVATION(FN, T, EACH, activation, last)                            \
  ((activation) == Activation::kExp        ? FN<T, EACH, Activation::kExp>(last)      \
   : (activation) == Activation::kSigmoid  ? FN<T, EACH, Activation::kSigmoid>(last)  \
   : (activation) == Activation::kSoftplus ? FN<T, EACH, Activation::kSoftplus>(last) \
                                           : FN<T, EACH, Activation::kAdditive>(last))

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
