// Affine coupling, one ISA tier: out = (in + tau) M or in M + tau, log M, and their gradients.
// NICE (arXiv 1410.8516), RealNVP (1605.08803) eq. 7-8, Glow (1807.03039) table 1; reference:
// pygen/reference/coupling.py.
//
// Two layers. Blocks: the maths, on up to kBlock contiguous elements of the arithmetic type. Above them the walk over
// rows: it hands rows to blocks as they lie in memory where that is possible, else packs them (other storage type,
// strides, gathers, rows too short for a vector, streaming stores).
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
constexpr int64_t kDirect =
    128;  // a shorter row is packed with its neighbours: a block costs two logarithms at its end

// --- blocks ----------------------------------------------------------------------------------------------------------

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

// --- rows ------------------------------------------------------------------------------------------------------------

// The changing elements of a row, of a piece of one, or of `rows` alike; offsets from the sample's first element.
struct Row {
  int64_t x, n, step;  // x + cols[i] or x + i * step, i < n
  const int64_t* cols;
  int64_t s, t, params_step;
  int64_t gain, gain_step;
  int64_t copy_begin, copy_end;  // elements of the row to pass through: [copy_begin, copy_end) ...
  int64_t hole_begin, hole_end;  // ... save these
  int64_t rows, x_stride, params_stride, task_stride;  // from one of the rows alike to the next
};

inline Row row_at(const CouplingArgs& a, int64_t r, int64_t piece) {
  Row w{};
  w.rows = 1;
  w.step = a.step;
  w.params_step = a.params_step;
  w.gain_step = 1;
  const int64_t x = r * a.row;
  switch (a.pattern) {
    case Pattern::kRange:
    case Pattern::kGather:
      w.x = x + a.start;
      w.n = a.count;
      w.cols = a.cols;
      w.s = r * a.params_row + a.s_start;
      w.t = r * a.params_row + a.t_start;
      w.gain = a.gain_start;
      w.gain_step = a.gain_step;
      break;
    case Pattern::kChannels: {
      const int64_t k = a.channel[r];
      w.x = x;
      w.n = k < 0 ? 0 : a.row;
      w.s = (a.s_start + k * a.params_step) * a.row;
      w.t = (a.t_start + k * a.params_step) * a.row;
      w.params_step = 1;
      w.gain = k;
      w.gain_step = 0;
      break;
    }
    case Pattern::kCheckerRows: {
      const int64_t c = r / a.image_rows, i = r % a.image_rows, first = a.parity[i];
      const int64_t plane = a.image_rows * a.row, in_plane = i * a.row + first;
      w.x = x + first;
      w.n = (a.row - first + 1) / 2;
      w.step = 2;
      w.s = (a.s_start + c * a.params_step) * plane + in_plane;
      w.t = (a.t_start + c * a.params_step) * plane + in_plane;
      w.params_step = 2;
      w.gain = c;
      w.gain_step = 0;
      break;
    }
    case Pattern::kCheckerPixels: {
      const int64_t i = r / a.image_row, passes = (a.parity[i] + r % a.image_row) & 1;
      w.x = x;
      w.n = passes ? 0 : a.row;
      w.s = r * a.params_row + a.s_start;
      w.t = r * a.params_row + a.t_start;
      break;
    }
  }
  if (a.gain_count == 1) w.gain = w.gain_step = 0;
  // what passes: all of the row around the changing run, or all of it where that is no run
  w.copy_begin = x;
  w.copy_end = x + a.row;
  w.hole_begin = w.hole_end = x;
  const bool run = w.n && w.step == 1 && !w.cols;
  if (run) {
    w.hole_begin = w.x;
    w.hole_end = w.x + w.n;
  }
  if (a.pieces > 1) {  // the piece-th part of both, in units of cache lines
    const auto cut = [&](int64_t n, int64_t p) { return p == a.pieces ? n : n * p / a.pieces / 64 * 64; };
    const int64_t before = w.hole_begin - w.copy_begin, pass = a.row - (w.hole_end - w.hole_begin);
    const int64_t p0 = cut(pass, piece), p1 = cut(pass, piece + 1);  // of the passing elements put end to end
    w.copy_begin = x + (p0 < before ? p0 : p0 + (w.hole_end - w.hole_begin));
    w.copy_end = x + (p1 <= before ? p1 : p1 + (w.hole_end - w.hole_begin));
    const int64_t j0 = cut(w.n, piece), j1 = cut(w.n, piece + 1);
    w.x += j0, w.s += j0 * w.params_step, w.t += j0 * w.params_step, w.gain += j0 * w.gain_step;
    w.n = j1 - j0;
  }
  return w;
}

template <class X>
inline void copy_passing(X* dst, const X* src, const Row& w, bool stream) {
  const int64_t left = std::min(w.copy_end, w.hole_begin), right = std::max(w.copy_begin, w.hole_end);
  if (w.hole_begin == w.hole_end) {
    if (w.copy_begin < w.copy_end) copy(dst + w.copy_begin, src + w.copy_begin, w.copy_end - w.copy_begin, stream);
    return;
  }
  if (w.copy_begin < left) copy(dst + w.copy_begin, src + w.copy_begin, left - w.copy_begin, stream);
  if (right < w.copy_end) copy(dst + right, src + right, w.copy_end - right, stream);
}

// Rows alike, as one: all that passes is copied with what does not, which is overwritten later.
inline Row merged(const CouplingArgs& a, Row w, int64_t rows, int64_t params_stride, int64_t task_stride) {
  w.rows = rows;
  w.x_stride = a.row;
  w.params_stride = params_stride;
  w.task_stride = task_stride;
  w.copy_end = w.copy_begin + rows * a.row;
  w.hole_begin = w.hole_end = w.copy_begin;
  if (w.n == a.row && w.step == 1 && !w.cols) w.copy_end = w.copy_begin;  // nothing passes
  return w;
}

// Calls f(task, sample, row) for every row (piece) of the tasks, and done(task) after each. Short rows come merged.
template <class F, class G>
inline void for_rows(const CouplingArgs& a, int64_t begin, int64_t end, const F& f, const G& done) {
  const bool alike =
      a.pieces == 1 && (a.pattern == Pattern::kRange || a.pattern == Pattern::kGather) && a.count < kDirect;
  if (alike && a.rows == 1) {  // a row is a sample: [B, C]
    if (begin < end) f(begin, begin, merged(a, row_at(a, 0, 0), end - begin, a.params_sample, 1));
    return;
  }
  for (int64_t task = begin; task < end; ++task) {
    const int64_t sample = task / a.chunks, chunk = task % a.chunks;
    if (a.pieces > 1) {
      f(task, sample, row_at(a, chunk / a.pieces, chunk % a.pieces));
    } else {
      const int64_t first = chunk * a.rows_per_chunk, last = std::min(a.rows, first + a.rows_per_chunk);
      if (alike) {
        f(task, sample, merged(a, row_at(a, first, 0), last - first, a.params_row, 0));
      } else {
        for (int64_t r = first; r < last; ++r) f(task, sample, row_at(a, r, 0));
      }
    }
    done(task);
  }
}

// Elements that change in a full chunk; below kBlock, packed blocks span tasks. Fixed by the shape alone, so that
// results do not depend on how threads share the tasks.
inline bool small_tasks(const CouplingArgs& a) {
  const int64_t per_row = a.pattern == Pattern::kCheckerRows                              ? a.row / 2
                          : a.pattern == Pattern::kRange || a.pattern == Pattern::kGather ? a.count
                                                                                          : a.row;
  return a.pieces == 1 && per_row * a.rows_per_chunk < kBlock;
}

template <class X>
using Arithmetic = std::conditional_t<std::is_same_v<X, double>, double, float>;

// What is packed together: `rows` stretches of n elements, each from a row of its own.
struct Packed {
  int64_t task, offset, n, step, params_step, gain, gain_step;
  const int64_t* cols;
  int64_t x, s, t;  // from the tensors' first elements
  int64_t rows, x_stride, params_stride, task_stride;

  int64_t size() const { return n * rows; }
};

template <class T, class S>
inline void load_x(T* dst, const S* src, const Packed& e) {
  for (int64_t r = 0; r < e.rows; ++r) load(dst + r * e.n, src + e.x + r * e.x_stride, e.step, e.cols, e.n);
}

template <class T, class S>
inline void load_params(T* dst, const S* src, const Packed& e) {
  for (int64_t r = 0; r < e.rows; ++r) {
    load(dst + r * e.n, src + r * e.params_stride, e.params_step, nullptr, e.n);
  }
}

template <class T, class S>
inline void store_x(S* dst, const T* src, const Packed& e, bool stream) {
  for (int64_t r = 0; r < e.rows; ++r) store(dst + e.x + r * e.x_stride, src + r * e.n, e.step, e.cols, e.n, stream);
}

template <class T, class S>
inline void store_params(S* dst, const T* src, const Packed& e, bool stream) {
  for (int64_t r = 0; r < e.rows; ++r) {
    store(dst + r * e.params_stride, src + r * e.n, e.params_step, nullptr, e.n, stream);
  }
}

template <class T>
inline void load_gain(T* dst, const T* gain, const Packed& e) {
  for (int64_t r = 0; r < e.rows; ++r) {
    for (int64_t i = 0; i < e.n; ++i) dst[r * e.n + i] = gain[e.gain + i * e.gain_step];
  }
}

template <class T>
inline void add_gain_gradient(const CouplingArgs& a, const Packed& e, const T* grad) {
  for (int64_t r = 0; r < e.rows; ++r) {
    double* sums = a.grad_gain + e.gain;
    if (e.gain_step == 0) {
      *sums += sum_of(grad + r * e.n, e.n);
    } else {
      for (int64_t i = 0; i < e.n; ++i) sums[i * e.gain_step] += double(grad[r * e.n + i]);
    }
  }
}

// Splits rows into parts of at most `room()` elements, whole rows where several are alike, and hands each to `take`.
template <class Take, class Room>
inline void for_stretches(const CouplingArgs& a, const Row& w, int64_t task, int64_t sample, const Room& room,
                          const Take& take) {
  const int64_t x0 = sample * a.rows * a.row + w.x, p0 = sample * a.params_sample;
  const auto part = [&](int64_t row, int64_t j, int64_t n, int64_t rows) {
    const int64_t x = x0 + row * w.x_stride + (w.cols ? 0 : j * w.step),
                  p = p0 + row * w.params_stride + j * w.params_step;
    take(Packed{task + row * w.task_stride, 0, n, w.step, w.params_step, w.gain + j * w.gain_step, w.gain_step,
                w.cols ? w.cols + j : nullptr, x, p + w.s, p + w.t, rows, w.x_stride, w.params_stride, w.task_stride});
  };
  for (int64_t row = 0; row < w.rows;) {
    const int64_t whole = w.n ? std::min(w.rows - row, room() / w.n) : w.rows;
    if (w.rows > 1 && whole > 0) {
      if (w.n) part(row, 0, w.n, whole);
      row += whole;
      continue;
    }
    for (int64_t j = 0; j < w.n;) {
      const int64_t n = std::min(w.n - j, room());
      part(row, j, n, 1);
      j += n;
    }
    ++row;
  }
}

// Is a row usable where it lies?
template <class X, class P>
inline bool direct(const CouplingArgs& a, const Row& w) {
  return std::is_same_v<X, Arithmetic<X>> && std::is_same_v<P, Arithmetic<X>> && !a.stream && w.step == 1 && !w.cols &&
         w.params_step == 1 && w.gain_step <= 1 && w.rows == 1 && w.n >= kDirect;
}

template <class X, class P>
void coupling_forward(const CouplingArgs& a, int64_t begin, int64_t end) {
  using T = Arithmetic<X>;
  const auto* x = static_cast<const X*>(a.x);
  const auto* params = static_cast<const P*>(a.params);
  const auto* gain = static_cast<const T*>(a.gain_values);
  auto* y = static_cast<X*>(a.y);
  CouplingConsts<T> c(a);
  const bool span_tasks = small_tasks(a), additive = a.activation == Activation::kAdditive;
  const ForwardBlockFn<T> block = PYGEN_BY_ACTIVATION(forward_block_for, T, false, a.activation, a.multiply_last);
  const ForwardBlockFn<T> block_each = PYGEN_BY_ACTIVATION(forward_block_for, T, true, a.activation, a.multiply_last);

  alignas(64) T in[kBlock], s[kBlock], t[kBlock], g[kBlock], out[kBlock], each[kBlock];
  Packed packed[kBlock];
  int64_t used = 0, stretches = 0;

  const auto flush = [&] {
    if (!used) return;
    const T* gains = gain ? g : nullptr;
    if (span_tasks) {
      block_each(in, s, t, gains, out, each, used, c);
    } else {
      a.log_scale[packed[0].task] += block(in, s, t, gains, out, nullptr, used, c);
    }
    for (int64_t k = 0; k < stretches; ++k) {
      const Packed& e = packed[k];
      store_x(y, out + e.offset, e, a.stream);
      for (int64_t r = 0; span_tasks && r < e.rows; ++r) {
        double& sum = a.log_scale[e.task + r * e.task_stride];
        for (int64_t i = 0; i < e.n; ++i) sum += double(each[e.offset + r * e.n + i]);
      }
    }
    used = stretches = 0;
  };
  const auto pack = [&](Packed e) {
    e.offset = used;
    load_x(in + used, x, e);
    if (!additive) load_params(s + used, params + e.s, e);
    load_params(t + used, params + e.t, e);
    if (gain) load_gain(g + used, gain, e);
    packed[stretches++] = e;
    used += e.size();
    if (used == kBlock) flush();
  };
  const auto run = [&](const Packed& e) {
    if constexpr (std::is_same_v<X, T> && std::is_same_v<P, T>) {
      const T* gains = gain && e.gain_step ? gain + e.gain : nullptr;
      if (gain && !e.gain_step) c.set_gain(gain[e.gain]);
      a.log_scale[e.task] += block(x + e.x, params + e.s, params + e.t, gains, y + e.x, nullptr, e.n, c);
    }
  };
  for_rows(
      a, begin, end,
      [&](int64_t task, int64_t sample, const Row& w) {
        const int64_t base = sample * a.rows * a.row;
        copy_passing(y + base, x + base, w, a.stream);
        if (direct<X, P>(a, w)) {
          for_stretches(a, w, task, sample, [] { return kBlock; }, run);
        } else {
          for_stretches(a, w, task, sample, [&] { return kBlock - used; }, pack);
        }
      },
      [&](int64_t) {
        if (!span_tasks) flush();
      });
  flush();
  if (a.stream) stream_fence();
}

template <class X, class P>
void coupling_backward(const CouplingArgs& a, int64_t begin, int64_t end) {
  using T = Arithmetic<X>;
  const auto* grad_y = static_cast<const X*>(a.grad_y);
  const auto* z = static_cast<const X*>(a.z);
  const auto* params = static_cast<const P*>(a.params);
  const auto* gain = static_cast<const T*>(a.gain_values);
  auto* grad_x = static_cast<X*>(a.grad_x);
  auto* grad_params = static_cast<P*>(a.grad_params);
  CouplingConsts<T> c(a);
  const bool span_tasks = small_tasks(a), additive = a.activation == Activation::kAdditive;
  const bool need_t = a.recover && !a.multiply_last && !additive;
  const BackwardBlockFn<T> block = PYGEN_BY_ACTIVATION(backward_block_for, T, false, a.activation, a.multiply_last);
  const BackwardBlockFn<T> block_each = PYGEN_BY_ACTIVATION(backward_block_for, T, true, a.activation, a.multiply_last);

  alignas(64) T g[kBlock], l[kBlock], zs[kBlock], s[kBlock], t[kBlock], gains[kBlock];
  alignas(64) T grad_in[kBlock], grad_s[kBlock], grad_t[kBlock], grad_gain[kBlock];
  const BackwardBlock<T> buffers{g,
                                 l,
                                 zs,
                                 s,
                                 t,
                                 gain ? gains : nullptr,
                                 grad_x ? grad_in : nullptr,
                                 grad_params && !additive ? grad_s : nullptr,
                                 grad_params ? grad_t : nullptr,
                                 a.grad_gain ? grad_gain : nullptr};
  Packed packed[kBlock];
  int64_t used = 0, stretches = 0;

  const auto flush = [&] {
    if (!used) return;
    if (!span_tasks) l[0] = T(a.grad_logdet[packed[0].task / a.chunks]);
    (span_tasks ? block_each : block)(buffers, used, c);
    for (int64_t k = 0; k < stretches; ++k) {
      const Packed& e = packed[k];
      if (grad_x) store_x(grad_x, grad_in + e.offset, e, a.stream);
      if (grad_params && !additive) store_params(grad_params + e.s, grad_s + e.offset, e, a.stream);
      if (grad_params) store_params(grad_params + e.t, grad_t + e.offset, e, a.stream);
      if (a.grad_gain) add_gain_gradient(a, e, grad_gain + e.offset);
    }
    used = stretches = 0;
  };
  const auto pack = [&](Packed e) {
    e.offset = used;
    load_x(g + used, grad_y, e);
    if (!additive) {
      load_x(zs + used, z, e);
      load_params(s + used, params + e.s, e);
    }
    if (need_t) load_params(t + used, params + e.t, e);
    if (gain) load_gain(gains + used, gain, e);
    for (int64_t r = 0; span_tasks && r < e.rows; ++r) {
      std::fill_n(l + used + r * e.n, e.n, T(a.grad_logdet[(e.task + r * e.task_stride) / a.chunks]));
    }
    packed[stretches++] = e;
    used += e.size();
    if (used == kBlock) flush();
  };
  const auto run = [&](const Packed& e) {
    if constexpr (std::is_same_v<X, T> && std::is_same_v<P, T>) {
      BackwardBlock<T> p = buffers;
      const T upstream(a.grad_logdet[e.task / a.chunks]);
      p.l = &upstream;
      p.g = grad_y + e.x;
      p.z = z + e.x;
      p.s = params + e.s;
      p.t = params + e.t;
      p.gain = gain && e.gain_step ? gain + e.gain : nullptr;
      if (gain && !e.gain_step) c.set_gain(gain[e.gain]);
      if (p.grad_in) p.grad_in = grad_x + e.x;
      if (p.grad_s) p.grad_s = grad_params + e.s;
      if (p.grad_t) p.grad_t = grad_params + e.t;
      block(p, e.n, c);
      if (a.grad_gain) add_gain_gradient(a, e, grad_gain);
    }
  };
  for_rows(
      a, begin, end,
      [&](int64_t task, int64_t sample, const Row& w) {
        const int64_t base = sample * a.rows * a.row;
        if (grad_x) copy_passing(grad_x + base, grad_y + base, w, a.stream);
        if (direct<X, P>(a, w)) {
          for_stretches(a, w, task, sample, [] { return kBlock; }, run);
        } else {
          for_stretches(a, w, task, sample, [&] { return kBlock - used; }, pack);
        }
      },
      [&](int64_t) {
        if (!span_tasks) flush();
      });
  flush();
  if (a.stream) stream_fence();
}

#undef PYGEN_BY_ACTIVATION

constexpr CouplingKernels coupling_kernels() {
  using BF16 = c10::BFloat16;
  using F16 = c10::Half;
  return {{coupling_forward<float, float>, coupling_forward<double, double>, coupling_forward<BF16, BF16>,
           coupling_forward<F16, F16>, coupling_forward<float, BF16>, coupling_forward<float, F16>},
          {coupling_backward<float, float>, coupling_backward<double, double>, coupling_backward<BF16, BF16>,
           coupling_backward<F16, F16>, coupling_backward<float, BF16>, coupling_backward<float, F16>}};
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
