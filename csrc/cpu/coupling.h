// Affine coupling, one ISA tier: out = (in + tau) M or in M + tau, log M, and their gradients.
//
// A walk over rows. It hands them to the blocks of coupling_blocks.h as they lie in memory where that is possible, else
// packs them: other storage types, strides, gathers, rows too short for a vector, streaming stores.
#pragma once
#include "coupling_blocks.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

// A shorter row is packed with its neighbours: a block ends with two logarithms.
constexpr int64_t kDirect = 128;

// The changing elements of a row, of a piece of one, or of `rows` alike; offsets from the sample's first element.
struct Row {
  int64_t x, n;  // x + cols[i] or x + i * at.step(), i < n
  Spread at;
  const int64_t* cols;
  int64_t s, t;
  Spread s_at, t_at;
  int64_t gain, gain_step;
  int64_t copy_begin, copy_end;  // elements of the row to pass through: [copy_begin, copy_end) ...
  int64_t hole_begin, hole_end;  // ... save these
  int64_t rows, x_stride, params_stride, task_stride;  // from one of the rows alike to the next
};

inline Row row_at(const CouplingArgs& a, int64_t r, int64_t piece) {
  Row w{};
  w.rows = 1;
  // Steps of 2 are of a row's every second element, or of s and t that take turns.
  const bool odd = a.start % 2 != 0, lone = !odd && a.row % 2 != 0;
  w.at = Spread(a.step, odd, lone);
  w.s_at = Spread(a.params_step, a.step == 2 ? odd : a.s_start > a.t_start, a.step == 2 && lone);
  w.t_at = Spread(a.params_step, a.step == 2 ? odd : a.t_start > a.s_start, a.step == 2 && lone);
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
    case Pattern::kChannels:
    case Pattern::kChecker: {
      const int64_t k = a.pattern == Pattern::kChecker ? r : a.channel[r];
      w.x = x;
      w.n = k < 0 ? 0 : a.row;
      w.s = (a.s_start + k * a.params_step) * a.row;
      w.t = (a.t_start + k * a.params_step) * a.row;
      w.s_at = w.t_at = Spread(1);
      w.gain = k;
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
  const bool run = w.n && w.at.step() == 1 && !w.cols;
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
    w.x += j0, w.s += j0 * w.s_at.step(), w.t += j0 * w.t_at.step(), w.gain += j0 * w.gain_step;
    w.n = j1 - j0;
  }
  return w;
}

template <class X>
inline void copy_passing(X* dst, const X* src, const Row& w, bool stream) {
  stream = stream && (w.n == 0 || w.hole_begin != w.hole_end);  // what is overwritten soon belongs in the cache
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
  if (w.n == a.row && w.at.step() == 1 && !w.cols) w.copy_end = w.copy_begin;  // nothing passes
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
  const int64_t per_row = a.pattern == Pattern::kRange || a.pattern == Pattern::kGather ? a.count : a.row;
  return a.pieces == 1 && per_row * a.rows_per_chunk < kBlock;
}

// What is packed together: `rows` stretches of n elements, each from a row of its own.
struct Packed {
  int64_t task, offset, n;
  Spread at, s_at, t_at;
  int64_t gain, gain_step;
  const int64_t* cols;
  int64_t x, s, t;  // from the tensors' first elements
  int64_t rows, x_stride, params_stride, task_stride;

  int64_t size() const { return n * rows; }
};

// Stretches of one element are one stretch across rows. Rows of two are pairs, which begin at even places of a tensor.
template <class T, class S>
inline void load_stretches(T* dst, const S* src, int64_t place, const Packed& e, const Spread& at, const int64_t* cols,
                           int64_t stride) {
  if (e.n == 1) {
    if (cols) place += cols[0] * at.step();
    return load(dst, src + place, Spread(stride, place % 2 != 0), nullptr, e.rows);
  }
  for (int64_t r = 0; r < e.rows; ++r) load(dst + r * e.n, src + place + r * stride, at, cols, e.n);
}

template <class S, class T>
inline void store_stretches(S* dst, int64_t place, const T* src, const Packed& e, const Spread& at, const int64_t* cols,
                            int64_t stride, bool stream) {
  if (e.n == 1) {
    if (cols) place += cols[0] * at.step();
    return store(dst + place, src, Spread(stride, place % 2 != 0), nullptr, e.rows, stream);
  }
  for (int64_t r = 0; r < e.rows; ++r) store(dst + place + r * stride, src + r * e.n, at, cols, e.n, stream);
}

template <class T, class S>
inline void load_x(T* dst, const S* src, const Packed& e) {
  load_stretches(dst, src, e.x, e, e.at, e.cols, e.x_stride);
}

template <class S, class T>
inline void store_x(S* dst, const T* src, const Packed& e, bool stream) {
  store_stretches(dst, e.x, src, e, e.at, e.cols, e.x_stride, stream);
}

template <class T, class S>
inline void load_params(T* dst, const S* src, int64_t place, const Packed& e, const Spread& at) {
  load_stretches(dst, src, place, e, at, nullptr, e.params_stride);
}

template <class S, class T>
inline void store_params(S* dst, int64_t place, const T* src, const Packed& e, const Spread& at, bool stream) {
  store_stretches(dst, place, src, e, at, nullptr, e.params_stride, stream);
}

template <class T>
inline void load_gain(T* dst, const T* gain, const Packed& e) {
  if (e.n == 1 || e.gain_step == 0) {
    std::fill_n(dst, e.size(), gain[e.gain]);
    return;
  }
  for (int64_t r = 0; r < e.rows; ++r) {
    for (int64_t i = 0; i < e.n; ++i) dst[r * e.n + i] = gain[e.gain + i * e.gain_step];
  }
}

template <class T>
inline void add_gain_gradient(const CouplingArgs& a, const Packed& e, const T* grad) {
  double* sums = a.grad_gain + e.gain;
  if (e.n == 1 || e.gain_step == 0) {
    *sums += sum_of(grad, e.size());
    return;
  }
  for (int64_t r = 0; r < e.rows; ++r) {
    for (int64_t i = 0; i < e.n; ++i) sums[i * e.gain_step] += double(grad[r * e.n + i]);
  }
}

// Where every second element of a row, or every second pixel, passes, its parameters have no gradient.
template <class P>
inline void zero_passing(P* grad, const CouplingArgs& a, const Row& w) {
  if (a.pattern == Pattern::kCheckerPixels ? w.n == 0 : a.step == 2) {
    std::fill_n(grad + w.t - a.t_start, w.rows * a.params_row, P(0));
  }
}

// Splits rows into parts of at most `room()` elements, whole rows where several are alike, describes each in `place()`
// (a copy of it would wait for the stores that made it) and calls `take` with it.
template <class Room, class Place, class Take>
inline void for_stretches(const CouplingArgs& a, const Row& w, int64_t task, int64_t sample, const Room& room,
                          const Place& place, const Take& take) {
  const int64_t x0 = sample * a.rows * a.row + w.x, p0 = sample * a.params_sample;
  const auto part = [&](int64_t row, int64_t j, int64_t n, int64_t rows) {
    const int64_t p = p0 + row * w.params_stride;
    Packed& e = place();
    e.task = task + row * w.task_stride;
    e.n = n;
    const bool last = j + n == w.n;
    e.at = last ? w.at : w.at.not_lone();
    e.s_at = last ? w.s_at : w.s_at.not_lone();
    e.t_at = last ? w.t_at : w.t_at.not_lone();
    e.gain = w.gain + j * w.gain_step;
    e.gain_step = w.gain_step;
    e.cols = w.cols ? w.cols + j : nullptr;
    e.x = x0 + row * w.x_stride + (w.cols ? 0 : j * w.at.step());
    e.s = p + w.s + j * w.s_at.step();
    e.t = p + w.t + j * w.t_at.step();
    e.rows = rows;
    e.x_stride = w.x_stride;
    e.params_stride = w.params_stride;
    e.task_stride = w.task_stride;
    take(e);
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

// Are tensors usable where they lie?
template <class X, class P>
inline bool in_place(const CouplingArgs& a) {
  return std::is_same_v<X, Arithmetic<X>> && std::is_same_v<P, Arithmetic<X>> && !a.stream;
}

// Is a row?
template <class X, class P>
inline bool direct(const CouplingArgs& a, const Row& w) {
  return in_place<X, P>(a) && w.at.step() == 1 && !w.cols && w.s_at.step() == 1 && w.gain_step <= 1 && w.rows == 1 &&
         w.n >= kDirect;
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
  const Blocks<T>& blocks = blocks_for<T>(a.activation, a.multiply_last);

  alignas(64) T in[kBlock], s[kBlock], t[kBlock], g[kBlock], out[kBlock], each[kBlock];
  Packed packed[kBlock];
  int64_t used = 0, stretches = 0;

  const auto flush = [&] {
    if (!used) return;
    const T* gains = gain ? g : nullptr;
    if (span_tasks) {
      blocks.forward_each(in, s, t, gains, out, each, used, c);
    } else {
      a.log_scale[packed[0].task] += blocks.forward(in, s, t, gains, out, nullptr, used, c);
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
  const auto pack = [&](Packed& e) {
    e.offset = used;
    load_x(in + used, x, e);
    if (!additive) load_params(s + used, params, e.s, e, e.s_at);
    load_params(t + used, params, e.t, e, e.t_at);
    if (gain) load_gain(g + used, gain, e);
    ++stretches;
    used += e.size();
    if (used == kBlock) flush();
  };
  Packed one;
  const auto alone = [&]() -> Packed& { return one; };
  const auto next = [&]() -> Packed& { return packed[stretches]; };
  const auto run = [&](const Packed& e) {
    if constexpr (std::is_same_v<X, T> && std::is_same_v<P, T>) {
      const T* gains = gain && e.gain_step ? gain + e.gain : nullptr;
      if (gain && !e.gain_step) c.set_gain(gain[e.gain]);
      a.log_scale[e.task] += blocks.forward(x + e.x, params + e.s, params + e.t, gains, y + e.x, nullptr, e.n, c);
    }
  };
  const auto checker = [&](const Packed& e) {
    const float* odd = a.odd + e.x % a.row / 2;
    if (gain) c.set_gain(gain[e.gain]);
    if constexpr (std::is_same_v<X, T> && std::is_same_v<P, T>) {
      if (!a.stream) {
        a.log_scale[e.task] += blocks.forward_checker(x + e.x, params + e.s, params + e.t, odd, y + e.x, e.n, c);
        return;
      }
    }
    load_run(in, x + e.x, e.n);
    if (!additive) load_run(s, params + e.s, e.n);
    load_run(t, params + e.t, e.n);
    a.log_scale[e.task] += blocks.forward_checker(in, s, t, odd, out, e.n, c);
    store_run(y + e.x, out, e.n, a.stream);
  };
  for_rows(
      a, begin, end,
      [&](int64_t task, int64_t sample, const Row& w) {
        const int64_t base = sample * a.rows * a.row;
        copy_passing(y + base, x + base, w, a.stream);
        if (a.pattern == Pattern::kChecker) {
          for_stretches(a, w, task, sample, [] { return kBlock; }, alone, checker);
        } else if (direct<X, P>(a, w)) {
          for_stretches(a, w, task, sample, [] { return kBlock; }, alone, run);
        } else {
          for_stretches(a, w, task, sample, [&] { return kBlock - used; }, next, pack);
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
  const Blocks<T>& blocks = blocks_for<T>(a.activation, a.multiply_last);

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
    (span_tasks ? blocks.backward_each : blocks.backward)(buffers, used, c);
    for (int64_t k = 0; k < stretches; ++k) {
      const Packed& e = packed[k];
      if (grad_x) store_x(grad_x, grad_in + e.offset, e, a.stream);
      if (grad_params && !additive) store_params(grad_params, e.s, grad_s + e.offset, e, e.s_at, a.stream);
      if (grad_params) store_params(grad_params, e.t, grad_t + e.offset, e, e.t_at, a.stream);
      if (a.grad_gain) add_gain_gradient(a, e, grad_gain + e.offset);
    }
    used = stretches = 0;
  };
  const auto pack = [&](Packed& e) {
    e.offset = used;
    load_x(g + used, grad_y, e);
    if (!additive) {
      load_x(zs + used, z, e);
      load_params(s + used, params, e.s, e, e.s_at);
    }
    if (need_t) load_params(t + used, params, e.t, e, e.t_at);
    if (gain) load_gain(gains + used, gain, e);
    for (int64_t r = 0; span_tasks && r < e.rows; ++r) {
      std::fill_n(l + used + r * e.n, e.n, T(a.grad_logdet[(e.task + r * e.task_stride) / a.chunks]));
    }
    ++stretches;
    used += e.size();
    if (used == kBlock) flush();
  };
  // The block without buffers, for tensors of the arithmetic type.
  const auto where_it_lies = [&](const Packed& e) {
    BackwardBlock<T> p = buffers;
    if constexpr (std::is_same_v<X, T> && std::is_same_v<P, T>) {
      p.g = grad_y + e.x;
      p.z = z + e.x;
      p.s = params + e.s;
      p.t = params + e.t;
      if (p.grad_in) p.grad_in = grad_x + e.x;
      if (p.grad_s) p.grad_s = grad_params + e.s;
      if (p.grad_t) p.grad_t = grad_params + e.t;
    }
    return p;
  };
  Packed one;
  const auto alone = [&]() -> Packed& { return one; };
  const auto next = [&]() -> Packed& { return packed[stretches]; };
  const auto run = [&](const Packed& e) {
    if constexpr (std::is_same_v<X, T> && std::is_same_v<P, T>) {
      l[0] = T(a.grad_logdet[e.task / a.chunks]);
      BackwardBlock<T> p = where_it_lies(e);
      p.gain = gain && e.gain_step ? gain + e.gain : nullptr;
      if (gain && !e.gain_step) c.set_gain(gain[e.gain]);
      blocks.backward(p, e.n, c);
      if (a.grad_gain) add_gain_gradient(a, e, grad_gain);
    }
  };
  const auto checker = [&](const Packed& e) {
    const float* odd = a.odd + e.x % a.row / 2;
    double sum;
    l[0] = T(a.grad_logdet[e.task / a.chunks]);
    if (gain) c.set_gain(gain[e.gain]);
    if (in_place<X, P>(a)) {
      sum = blocks.backward_checker(where_it_lies(e), odd, e.n, c);
    } else {
      load_run(g, grad_y + e.x, e.n);
      if (!additive) {
        load_run(zs, z + e.x, e.n);
        load_run(s, params + e.s, e.n);
      }
      if (need_t) load_run(t, params + e.t, e.n);
      sum = blocks.backward_checker(buffers, odd, e.n, c);
      if (grad_x) store_run(grad_x + e.x, grad_in, e.n, a.stream);
      if (buffers.grad_s) store_run(grad_params + e.s, grad_s, e.n, a.stream);
      if (buffers.grad_t) store_run(grad_params + e.t, grad_t, e.n, a.stream);
    }
    if (a.grad_gain) a.grad_gain[e.gain] += sum;
  };
  for_rows(
      a, begin, end,
      [&](int64_t task, int64_t sample, const Row& w) {
        const int64_t base = sample * a.rows * a.row;
        if (grad_x) copy_passing(grad_x + base, grad_y + base, w, a.stream);
        if (grad_params) zero_passing(grad_params + sample * a.params_sample, a, w);
        if (a.pattern == Pattern::kChecker) {
          for_stretches(a, w, task, sample, [] { return kBlock; }, alone, checker);
        } else if (direct<X, P>(a, w)) {
          for_stretches(a, w, task, sample, [] { return kBlock; }, alone, run);
        } else {
          for_stretches(a, w, task, sample, [&] { return kBlock - used; }, next, pack);
        }
      },
      [&](int64_t) {
        if (!span_tasks) flush();
      });
  flush();
  if (a.stream) stream_fence();
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
