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

// The first w lanes of x, and `rest` in the others.
template <class T, class W>
PYGEN_INLINE Vec<T> first_lanes(const Vec<T>& x, W w, T rest) {
  if constexpr (std::is_same_v<W, std::integral_constant<int64_t, Vec<T>::size()>>) return x;
  return Vec<T>::set(Vec<T>(rest), x, w);
}

// The sum of log S over vectors of scales.
template <class T, Activation A, class C>
class LogScales {
 public:
  explicit LogScales(const C& c) : form_(log_form<T, A>(c)) {}

  template <class W>
  PYGEN_INLINE void add(Scale<T> scale, W w) {
    scale.lin = first_lanes(scale.lin, w, T(0));
    scale.q = first_lanes(scale.q, w, form_ == LogForm::kMinusLog1p ? T(0) : T(1));
    lin_.add(scale.lin);
    if (form_ == LogForm::kMinusLog1p) logs_.add1p(scale.q);
    if (form_ == LogForm::kPlusLog) {
      logs_.add(scale.q);
      if (++factors_ % 7 == 0) logs_.flush();
    }
  }

  double total() {
    double sum = lin_.total();
    if (form_ != LogForm::kLin) sum += (form_ == LogForm::kMinusLog1p ? -1.0 : 1.0) * logs_.total();
    return sum;
  }

 private:
  LogForm form_;
  LogSum<T> logs_;
  Sum<T> lin_;
  int64_t factors_ = 0;
};

template <class T, bool kLast, class C>
PYGEN_INLINE Vec<T> apply(const Vec<T>& x, const Vec<T>& shift, Scale<T> scale, const C& c) {
  const Vec<T> tau(c.tau);
  if (c.reciprocal) invert(scale);
  return kLast ? scale2(at::vec::fmadd(tau, shift, x) * scale.m, scale.n)
               : at::vec::fmadd(tau, shift, scale2(x * scale.m, scale.n));
}

// out and the sum of log M over n elements; kEach: log M of each instead. gain: one an element, or null for c.gain.
template <class T, Activation A, bool kLast, bool kEach, class C>
double forward_rows(const T* __restrict in, const T* __restrict s, const T* __restrict t, const T* __restrict gain,
                    T* __restrict out, T* __restrict each, int64_t n, const C& c) {
  using V = Vec<T>;
  if constexpr (A == Activation::kAdditive) {
    for_vectors<T>(n, [&](int64_t i, auto w) __attribute__((always_inline)) {
      at::vec::fmadd(V(c.tau), V::loadu(t + i, w), V::loadu(in + i, w)).store(out + i, w);
      if constexpr (kEach) V(T(0)).store(each + i, w);
    });
    return 0;
  } else {
    LogScales<T, A, C> logs(c);
    for_vectors<T>(n, [&](int64_t i, auto w) __attribute__((always_inline)) {
      const V u = squash(V::loadu(s + i, w), gain ? gain + i : nullptr, w, c).u;
      const Scale<T> scale = scale_of<T, A>(u, c);
      if constexpr (kEach) {
        const LogForm form = log_form<T, A>(c);
        V log = scale.lin;
        if (form == LogForm::kMinusLog1p) log = log - scale.q.log1p();
        if (form == LogForm::kPlusLog) log = log + scale.q.log();
        (log * V(c.sign)).store(each + i, w);
      } else {
        logs.add(scale, w);
      }
      apply<T, kLast>(V::loadu(in + i, w), V::loadu(t + i, w), scale, c).store(out + i, w);
    });
    return kEach ? 0 : double(c.sign) * logs.total();
  }
}

// Of every two neighbours one that changes and one that passes.
template <class T>
struct Neighbours {
  Vec<T> changes, passes;
};

template <class T>
PYGEN_INLINE auto odd_at(const float* odd, int64_t count) {
  if constexpr (std::is_same_v<T, float>) {
    return less(Vec<T>(T(0)), Vec<T>::loadu(odd, count));
  } else {
    alignas(64) T wide[Vec<T>::size()] = {};
    for (int64_t i = 0; i < count; ++i) wide[i] = T(odd[i]);
    return less(Vec<T>(T(0)), Vec<T>::loadu(wide));
  }
}

// Two vectors of which n elements exist.
template <class T, class Mask>
PYGEN_INLINE Neighbours<T> load_neighbours(const T* p, int64_t n, const Mask& odd) {
  using V = Vec<T>;
  constexpr int64_t W = V::size();
  V a, b;
  if (n >= 2 * W) {
    a = V::loadu(p), b = V::loadu(p + W);
  } else {
    a = V::loadu(p, std::min(n, W)), b = V::loadu(p + std::min(n, W), std::max<int64_t>(n - W, 0));
  }
  const auto [even, second] = at::vec::deinterleave2(a, b);
  return {select(odd, second, even), select(odd, even, second)};
}

template <class T, class Mask>
PYGEN_INLINE void store_neighbours(T* p, int64_t n, const Neighbours<T>& v, const Mask& odd) {
  using V = Vec<T>;
  constexpr int64_t W = V::size();
  const auto [a, b] = at::vec::interleave2(select(odd, v.passes, v.changes), select(odd, v.changes, v.passes));
  if (n >= 2 * W) {
    a.store(p), b.store(p + W);
  } else {
    a.store(p, int(std::min(n, W)));
    if (n > W) b.store(p + W, int(n - W));
  }
}

// Neighbours of which the one that changes exists; an odd one out that passes remains.
inline int64_t changing(const float* odd, int64_t n) { return n / 2 + (n % 2 != 0 && odd[n / 2] == 0); }

// forward_rows where of every two neighbours only one changes
template <class T, Activation A, bool kLast, class C>
double forward_checker(const T* __restrict in, const T* __restrict s, const T* __restrict t, const float* odd,
                       T* __restrict out, int64_t n, const C& c) {
  using V = Vec<T>;
  LogScales<T, A, C> logs(c);
  const int64_t pairs = changing(odd, n);
  if (2 * pairs < n) out[n - 1] = in[n - 1];
  for_vectors<T>(pairs, [&](int64_t i, auto w) __attribute__((always_inline)) {
    const auto mask = odd_at<T>(odd + i, w);
    const int64_t rest = std::min<int64_t>(n - 2 * i, 2 * w);
    Neighbours<T> x = load_neighbours(in + 2 * i, rest, mask);
    const V shift = load_neighbours(t + 2 * i, rest, mask).changes;
    if constexpr (A == Activation::kAdditive) {
      x.changes = at::vec::fmadd(V(c.tau), shift, x.changes);
    } else {
      const V u = squash<T>(load_neighbours(s + 2 * i, rest, mask).changes, nullptr, w, c).u;
      const Scale<T> scale = scale_of<T, A>(u, c);
      logs.add(scale, w);
      x.changes = apply<T, kLast>(x.changes, shift, scale, c);
    }
    store_neighbours(out + 2 * i, rest, x, mask);
  });
  return A == Activation::kAdditive ? 0 : double(c.sign) * logs.total();
}

// g: gradient of out; l: of log M (kEach: one an element); z: in or out. Outputs may be null.
template <class T>
struct BackwardBlock {
  const T *g, *l, *z, *s, *t, *gain;
  T *grad_in, *grad_s, *grad_t, *grad_gain;
};

// Gradients at one vector; s and gain, as squash takes them, are behind q and scale.
template <class T>
struct Gradients {
  Vec<T> in, t, s, gain;
};

template <class T, bool kLast, class C>
PYGEN_INLINE Gradients<T> gradients(const Vec<T>& g, const Vec<T>& l, Vec<T> z, const Vec<T>& shift,
                                    const Squashed<T>& q, Scale<T> scale, const C& c) {
  using V = Vec<T>;
  const V tau(c.tau);
  if (c.reciprocal) invert(scale);
  const V gm = scale2(g * scale.m, scale.n);
  if constexpr (!kLast) z = c.recover ? z - tau * shift : scale2(z * scale.m, scale.n);
  const V gu = V(c.sign) * scale.d * at::vec::fmadd(g, z, l);
  return {gm, tau * (kLast ? gm : g), gu * q.slope, gu * q.h};
}

template <class T, Activation A, bool kLast, bool kEach, class C>
void backward_rows(const BackwardBlock<T>& p, int64_t n, const C& c) {
  using V = Vec<T>;
  for_vectors<T>(n, [&](int64_t i, auto w) __attribute__((always_inline)) {
    const V g = V::loadu(p.g + i, w);
    if constexpr (A == Activation::kAdditive) {
      if (p.grad_in) g.store(p.grad_in + i, w);
      if (p.grad_t) (V(c.tau) * g).store(p.grad_t + i, w);
    } else {
      const Squashed<T> q = squash(V::loadu(p.s + i, w), p.gain ? p.gain + i : nullptr, w, c);
      const V l = kEach ? V::loadu(p.l + i, w) : V(*p.l), z = V::loadu(p.z + i, w);
      const V shift = c.recover ? V::loadu(p.t + i, w) : V(T(0));
      const Gradients<T> d = gradients<T, kLast>(g, l, z, shift, q, scale_of<T, A>(q.u, c), c);
      if (p.grad_in) d.in.store(p.grad_in + i, w);
      if (p.grad_t) d.t.store(p.grad_t + i, w);
      if (p.grad_s) d.s.store(p.grad_s + i, w);
      if (p.grad_gain) d.gain.store(p.grad_gain + i, w);
    }
  });
}

// backward_rows where of every two neighbours only one changes; returns the gain's gradient instead of storing it
template <class T, Activation A, bool kLast, class C>
double backward_checker(const BackwardBlock<T>& p, const float* odd, int64_t n, const C& c) {
  using V = Vec<T>;
  const int64_t pairs = changing(odd, n);
  if (2 * pairs < n) {
    if (p.grad_in) p.grad_in[n - 1] = p.g[n - 1];
    if (p.grad_t) p.grad_t[n - 1] = T(0);
    if (p.grad_s) p.grad_s[n - 1] = T(0);
  }
  const V zero(T(0));
  Sum<T> gain;
  for_vectors<T>(pairs, [&](int64_t i, auto w) __attribute__((always_inline)) {
    const auto mask = odd_at<T>(odd + i, w);
    const int64_t rest = std::min<int64_t>(n - 2 * i, 2 * w);
    const Neighbours<T> g = load_neighbours(p.g + 2 * i, rest, mask);
    if constexpr (A == Activation::kAdditive) {
      if (p.grad_in) store_neighbours(p.grad_in + 2 * i, rest, g, mask);
      if (p.grad_t) store_neighbours(p.grad_t + 2 * i, rest, {V(c.tau) * g.changes, zero}, mask);
    } else {
      const Squashed<T> q = squash<T>(load_neighbours(p.s + 2 * i, rest, mask).changes, nullptr, w, c);
      const V z = load_neighbours(p.z + 2 * i, rest, mask).changes;
      const V shift = c.recover ? load_neighbours(p.t + 2 * i, rest, mask).changes : zero;
      const Gradients<T> d = gradients<T, kLast>(g.changes, V(*p.l), z, shift, q, scale_of<T, A>(q.u, c), c);
      if (p.grad_in) store_neighbours(p.grad_in + 2 * i, rest, {d.in, g.passes}, mask);
      if (p.grad_t) store_neighbours(p.grad_t + 2 * i, rest, {d.t, zero}, mask);
      if (p.grad_s) store_neighbours(p.grad_s + 2 * i, rest, {d.s, zero}, mask);
      if (p.grad_gain) gain.add(first_lanes(d.gain, w, T(0)));
    }
  });
  return gain.total();
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

// The functions for an activation and a form.
template <class T>
struct Blocks {
  double (*forward)(const T*, const T*, const T*, const T*, T*, T*, int64_t, const CouplingConsts<T>&);
  double (*forward_each)(const T*, const T*, const T*, const T*, T*, T*, int64_t, const CouplingConsts<T>&);
  double (*forward_checker)(const T*, const T*, const T*, const float*, T*, int64_t, const CouplingConsts<T>&);
  void (*backward)(const BackwardBlock<T>&, int64_t, const CouplingConsts<T>&);
  void (*backward_each)(const BackwardBlock<T>&, int64_t, const CouplingConsts<T>&);
  double (*backward_checker)(const BackwardBlock<T>&, const float*, int64_t, const CouplingConsts<T>&);
};

template <class T, Activation A, bool kLast>
constexpr Blocks<T> kBlocks{forward_block<T, A, kLast, false>,
                            forward_block<T, A, kLast, true>,
                            forward_checker<T, A, kLast, CouplingConsts<T>>,
                            backward_block<T, A, kLast, false>,
                            backward_block<T, A, kLast, true>,
                            backward_checker<T, A, kLast, CouplingConsts<T>>};

template <class T>
const Blocks<T>& blocks_for(Activation activation, bool last) {
  switch (activation) {
    case Activation::kExp:
      return last ? kBlocks<T, Activation::kExp, true> : kBlocks<T, Activation::kExp, false>;
    case Activation::kSigmoid:
      return last ? kBlocks<T, Activation::kSigmoid, true> : kBlocks<T, Activation::kSigmoid, false>;
    case Activation::kSoftplus:
      return last ? kBlocks<T, Activation::kSoftplus, true> : kBlocks<T, Activation::kSoftplus, false>;
    default:
      return last ? kBlocks<T, Activation::kAdditive, true> : kBlocks<T, Activation::kAdditive, false>;
  }
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
