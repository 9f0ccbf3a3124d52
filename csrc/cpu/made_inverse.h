// Inverses of autoregressive transforms, a lane to a sample, one ISA tier. In PyTorch: reference/made_inverse.py.
//
// A block of samples goes through the degrees in order: the features of a degree are inverted, then the units of that
// degree computed, layer by layer. Units lie in the order of their degrees, so that what a step reads is the first part
// of a layer; a step's weights are packed in tiles of rows, in the order in which they are multiplied.
#pragma once
#include "coupling_blocks.h"
#include "lanes.h"
#include "made_inverse_args.h"
#include "rational_quadratic_spline.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

// --- tiles of weights ------------------------------------------------------------------------------------------------

// Sums of a tile stay in registers: kMadeRows rows of up to kMadeVectors vectors.
#if defined(CPU_CAPABILITY_AVX512)
constexpr int kMadeRows = 6, kMadeVectors = 4;  // 24 + 4 + 1 of 32
#elif defined(CPU_CAPABILITY_AVX2)
constexpr int kMadeRows = 6, kMadeVectors = 2;  // 12 + 2 + 1 of 16
#else
constexpr int kMadeRows = 4, kMadeVectors = 1;  // a vector of at::vec is two registers here: 8 + 2 + 1 of 16
#endif

// Of few rows several sums each, over every so many-th input: one alone would wait for itself.
constexpr int sums_of(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

// Rows in memory: row r of vector v at data + r * row + v * vector.
template <class T>
struct Rows {
  T* data;
  int64_t row, vector;
  PYGEN_INLINE T* at(int64_t r, int64_t v) const { return data + r * row + v * vector; }
  Rows from(int64_t r) const { return {data + r * row, row, vector}; }
};

// out += weights [inputs][rows] times in, of which an input's vectors lie side by side
template <class T, int kRows, int kV>
__attribute__((noinline)) void multiply_rows(const T* weights, const T* in, int64_t inputs, const Rows<T>& out) {
  using V = Vec<T>;
  constexpr int64_t W = V::size();
  constexpr int kSums = sums_of(kRows);
  V sums[kSums][kRows][kV];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) {
      sums[0][r][v] = V::loadu(out.at(r, v));
#pragma GCC unroll 4
      for (int u = 1; u < kSums; ++u) sums[u][r][v] = V(T(0));
    }
  }
  const auto add = [&](auto& sum) __attribute__((always_inline)) {
    V x[kV];
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) x[v] = V::loadu(in + v * W);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const V w(weights[r]);
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) sum[r][v] = at::vec::fmadd(w, x[v], sum[r][v]);
    }
    weights += kRows, in += kV * W;
  };
  int64_t k = 0;
  for (; k + kSums <= inputs; k += kSums) {
#pragma GCC unroll 4
    for (int u = 0; u < kSums; ++u) add(sums[u]);
  }
  for (; k < inputs; ++k) add(sums[0]);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) {
      V sum = sums[0][r][v];
#pragma GCC unroll 4
      for (int u = 1; u < kSums; ++u) sum = sum + sums[u][r][v];
      sum.store(out.at(r, v));
    }
  }
}

// in += the transposed weights times out
template <class T, int kRows, int kV>
__attribute__((noinline)) void multiply_rows_back(const T* weights, T* in, int64_t inputs, const Rows<T>& out) {
  using V = Vec<T>;
  constexpr int64_t W = V::size();
  V grads[kRows][kV];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) grads[r][v] = V::loadu(out.at(r, v));
  }
  for (int64_t k = 0; k < inputs; ++k, weights += kRows, in += kV * W) {
    V sum[kV];
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) sum[v] = V::loadu(in + v * W);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const V w(weights[r]);
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) sum[v] = at::vec::fmadd(w, grads[r][v], sum[v]);
    }
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) sum[v].store(in + v * W);
  }
}

// The functions for 1, ..., kMadeRows rows.
template <class T, int kV>
struct Tiles {
  using Function = void (*)(const T*, const T*, int64_t, const Rows<T>&);
  using Backward = void (*)(const T*, T*, int64_t, const Rows<T>&);
  Function forward[kMadeRows];
  Backward backward[kMadeRows];

  template <int... kLess>
  static constexpr Tiles of(std::integer_sequence<int, kLess...>) {
    return {{multiply_rows<T, kLess + 1, kV>...}, {multiply_rows_back<T, kLess + 1, kV>...}};
  }
};
template <class T, int kV>
constexpr Tiles<T, kV> kTiles = Tiles<T, kV>::of(std::make_integer_sequence<int, kMadeRows>());

// Cuts n rows into tiles of about the same size: calls f(first, how many).
template <class F>
PYGEN_INLINE void for_tiles(int64_t n, const F& f) {
  const int64_t count = tiles(n, kMadeRows);
  for (int64_t i = 0; i < count; ++i) f(n * i / count, n * (i + 1) / count - n * i / count);
}

// --- what a step is --------------------------------------------------------------------------------------------------

struct Span {
  int64_t first, last;
};

inline Span of_step(const MadeUnits& u, int64_t step) { return {step ? u.ends[step - 1] : 0, u.ends[step]}; }

// Inputs that the units of layer l, or the parameters, may read at a step.
inline int64_t readable(const MadeArgs& a, int64_t l, int64_t step) {
  const MadeUnits& below = a.units[l];
  return l < a.hidden ? below.ends[step] : of_step(below, step).first;
}

// Parameters of a feature lie in parts: a spline's three kinds. Calls f(first, how many).
template <class F>
PYGEN_INLINE void for_parts(const MadeArgs& a, const F& f) {
  if (!a.is_spline) return f(0, a.parameters);
  const SplineParts parts(a.parameters, false);
  f(0, parts.each), f(parts.each, parts.each), f(2 * parts.each, parts.slopes);
}

template <class T>
void made_pack(const MadeArgs& a, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    const int64_t l = task / a.steps, step = task % a.steps, inputs = readable(a, l, step);
    const MadeLayer& layer = a.layers[l];
    const MadeUnits& below = a.units[l];
    const T* const weights = static_cast<const T*>(layer.weights);
    T* to = static_cast<T*>(a.packed) + layer.packed[step];
    const auto tile = [&](const int64_t* rows, int64_t n) {
      for (int64_t k = 0; k < inputs; ++k, to += n) {
        const T* const from = weights + below.order[k];
        for (int64_t r = 0; r < n; ++r) to[r] = from[rows[r] * below.count];
      }
    };
    const auto rows_of = [&](int64_t n, const auto& row) {
      for_tiles(n, [&](int64_t first, int64_t count) {
        int64_t rows[kMadeRows];
        for (int64_t r = 0; r < count; ++r) rows[r] = row(first + r);
        tile(rows, count);
      });
    };
    const MadeUnits& own = a.units[l < a.hidden ? l + 1 : 0];
    const auto [first, last] = of_step(own, step);
    if (l < a.hidden) {
      rows_of(last - first, [&](int64_t i) { return own.order[first + i]; });
      continue;
    }
    for (int64_t j = first; j < last; ++j) {
      for_parts(a, [&](int64_t part, int64_t n) {
        rows_of(n, [&](int64_t i) { return own.order[j] * a.parameters + part + i; });
      });
    }
  }
}

// --- nonlinearities --------------------------------------------------------------------------------------------------

template <class T>
PYGEN_INLINE Vec<T> sigmoid_of(const Vec<T>& h) {
  const Vec<T> e = exp_normal(h.abs().neg()), one(1);
  return select(less(h, Vec<T>(0)), e, one) / (one + e);
}

template <class T, Nonlinearity F>
PYGEN_INLINE Vec<T> apply_one(const Vec<T>& h) {
  using V = Vec<T>;
  const V zero(0);
  if constexpr (F == Nonlinearity::kRelu) return select(less(h, zero), zero, h);
  if constexpr (F == Nonlinearity::kLeakyRelu) return select(less(h, zero), h * V(T(0.01)), h);
  if constexpr (F == Nonlinearity::kElu) return select(less(h, zero), expm1(at::vec::clamp_max(h, zero)), h);
  if constexpr (F == Nonlinearity::kTanh) return tanh(h);
  if constexpr (F == Nonlinearity::kSigmoid) return sigmoid_of(h);
  if constexpr (F == Nonlinearity::kSilu) return h * sigmoid_of(h);
}

// f'(h)
template <class T, Nonlinearity F>
PYGEN_INLINE Vec<T> slope_one(const Vec<T>& h) {
  using V = Vec<T>;
  const V zero(0), one(1);
  if constexpr (F == Nonlinearity::kRelu) return select(less(zero, h), one, zero);
  if constexpr (F == Nonlinearity::kLeakyRelu) return select(less(zero, h), one, V(T(0.01)));
  if constexpr (F == Nonlinearity::kElu) return select(less(zero, h), one, exp_normal(at::vec::clamp_max(h, zero)));
  if constexpr (F == Nonlinearity::kTanh) {
    const V t = tanh(h);
    return at::vec::fmadd(t.neg(), t, one);
  }
  if constexpr (F == Nonlinearity::kSigmoid) return sigmoid_of(h) * sigmoid_of(h.neg());
  if constexpr (F == Nonlinearity::kSilu) return sigmoid_of(h) * at::vec::fmadd(h, sigmoid_of(h.neg()), one);
}

template <class F>
PYGEN_INLINE void with_nonlinearity(Nonlinearity f, const F& body) {
  using N = Nonlinearity;
  switch (f) {
    case N::kRelu:
      return body(std::integral_constant<N, N::kRelu>());
    case N::kLeakyRelu:
      return body(std::integral_constant<N, N::kLeakyRelu>());
    case N::kElu:
      return body(std::integral_constant<N, N::kElu>());
    case N::kTanh:
      return body(std::integral_constant<N, N::kTanh>());
    case N::kSigmoid:
      return body(std::integral_constant<N, N::kSigmoid>());
    case N::kSilu:
      return body(std::integral_constant<N, N::kSilu>());
  }
}

// to = f(h), n elements, whole vectors
template <class T>
void apply_nonlinearity(Nonlinearity f, const T* h, T* to, int64_t n) {
  with_nonlinearity(f, [&](auto kind) {
    for (int64_t i = 0; i < n; i += Vec<T>::size()) apply_one<T, kind.value>(Vec<T>::loadu(h + i)).store(to + i);
  });
}

// grad *= f'(h)
template <class T>
void apply_slope(Nonlinearity f, const T* h, T* grad, int64_t n) {
  with_nonlinearity(f, [&](auto kind) {
    for (int64_t i = 0; i < n; i += Vec<T>::size()) {
      (Vec<T>::loadu(grad + i) * slope_one<T, kind.value>(Vec<T>::loadu(h + i))).store(grad + i);
    }
  });
}

// --- transforms of features ------------------------------------------------------------------------------------------

// Inverts the affine transform of a feature of kV vectors of samples, and differentiates that.
template <class T, int kV>
class AffineFeature {
 public:
  static constexpr int64_t kLanes = kV * Vec<T>::size();

  explicit AffineFeature(const MadeArgs& a)
      : consts_(a.affine),
        blocks_(blocks_for<T>(a.affine.activation, a.affine.multiply_last)),
        memory_(4 * kLanes),
        last_(a.affine.multiply_last) {
    const bool additive = a.affine.activation == Activation::kAdditive;
    const int64_t leads = additive || a.shift_leads;
    scale_ = leads * kLanes, shift_ = (1 - leads) * kLanes;
  }

  // where parameters go from `first` on, and where their gradients are
  Rows<T> rows(int64_t first) const { return {memory_ + first * kLanes, kLanes, Vec<T>::size()}; }
  Rows<T> gradients(int64_t first) const { return rows(2 + first); }

  void invert(const T* y, T* x, T* each) {
    blocks_.forward_each(y, memory_ + scale_, memory_ + shift_, nullptr, x, each, kLanes, consts_);
  }

  void differentiate(const T* y, const T* x, const T* grad_x, const T* grad_each, T* grad_y) {
    T* const grads = memory_ + 2 * kLanes;
    blocks_.backward_each({grad_x, grad_each, last_ ? x : y, memory_ + scale_, memory_ + shift_, nullptr, grad_y,
                           grads + scale_, grads + shift_, nullptr},
                          kLanes, consts_);
  }

 private:
  CouplingConsts<T> consts_;
  const Blocks<T>& blocks_;
  Scratch<T> memory_;  // the parameters; their gradients
  int64_t scale_, shift_;
  bool last_;
};

// The same of splines.
template <class T, int kV>
class SplineFeature {
 public:
  static constexpr int64_t W = Vec<T>::size(), kLanes = kV * W;

  explicit SplineFeature(const MadeArgs& a)
      : numbers_(a.spline),
        each_(SplineParts(a.parameters, false).each),
        blocks_(a.spline.bins),
        slopes_(a.spline, W) {}

  // `first` is the first of a kind
  Rows<T> rows(int64_t first) const { return rows(int(first / each_), 0); }
  Rows<T> gradients(int64_t first) const {
    const int kind = int(first / each_);
    return rows(kind, first_knot(numbers_.args, kind));
  }

  void invert(const T* y, T* x, T* each) {
    std::copy_n(y, kLanes, x);
    find(x);
    evaluate_bins<false, true>(numbers_, kV, bins_, x, each);
  }

  void differentiate(const T* y, const T*, const T* grad_x, const T* grad_each, T* grad_y) {
    std::copy_n(y, kLanes, grad_y);
    find(grad_y);
    differentiate_bins<false, true>(numbers_, kV, bins_, blocks_, grad_y, grad_x, grad_each);
    for (int v = 0; v < kV; ++v) share_ends(numbers_.args, blocks_[size_t(v)]);
  }

 private:
  Rows<T> rows(int kind, int64_t first) const {
    return {blocks_[0].kind(kind) + first * W, W, blocks_[1].widths - blocks_[0].widths};
  }
  void find(const T* y) {
    find_bins<false, true>(numbers_, kV, blocks_, y, bins_, {});
    for (int v = 0; v < kV; ++v) slopes_.load(blocks_[size_t(v)].slopes, 1, W, bins_[v]);
  }

  SplineNumbers<T> numbers_;
  int64_t each_;
  SplineMemory<T> blocks_;
  SplineSlopes slopes_;
  SplineBin<T> bins_[kV];
};

// --- the sweep -------------------------------------------------------------------------------------------------------

template <class T, int kV, template <class, int> class Feature>
class Sweep {
  static constexpr int64_t W = Vec<T>::size(), kLanes = kV * W;

 public:
  Sweep(const MadeArgs& a, bool backward) : a_(a), backward_(backward), feature_(a), memory_(allocate()) {
    T* at = memory_;
    const auto take = [&](int64_t rows) {
      T* const own = at;
      at += rows * kLanes;
      return own;
    };
    y_ = take(features()), x_ = take(features()), each_ = take(1), staged_ = take(widest());
    for (int64_t l = 0; l < a.hidden; ++l) {
      const int64_t n = a.units[l + 1].count;
      Layer& own = layers_.emplace_back();
      own.before = take(n);
      own.after = a_.f_follows(l) && (backward || a_.is_added(l)) ? take(n) : own.before;
      if (backward) own.grad = take(n);
      if (backward && a_.is_added(l)) own.grad_added = take(n);
    }
    for (int64_t l = 0; l <= a.hidden; ++l) biases_.push_back(a.layers[l].bias_sample ? take(rows(l)) : nullptr);
    if (backward) grad_x_ = take(features()), grad_y_ = take(features()), grad_each_ = take(1);
  }

  void forward(int64_t block) {
    start(block);
    double total[kLanes] = {};
    for (int64_t step = 0; step < a_.steps; ++step) {
      const auto [first, last] = of_step(a_.units[0], step);
      for (int64_t j = first; j < last; ++j) {
        parameters(step, j);
        feature_.invert(y_ + j * kLanes, x_ + j * kLanes, each_);
        for (int64_t i = 0; i < kLanes; ++i) total[i] += double(each_[i]);
      }
      if (last == features()) break;
      for (int64_t l = 0; l < a_.hidden; ++l) units(l, step);
    }
    put(a_.x, x_);
    for (int64_t i = 0; i < samples_; ++i) static_cast<T*>(a_.logabsdet)[sample_ + i] = T(total[i]);
  }

  void backward(int64_t block) {
    start(block);
    get(a_.found, x_, features(), a_.units[0].order);
    get(a_.grad_x, grad_x_, features(), a_.units[0].order);
    get(a_.grad_logabsdet, grad_each_, 1, nullptr);
    int64_t step = 0;
    for (; a_.units[0].ends[step] < features(); ++step) {
      for (int64_t l = 0; l < a_.hidden; ++l) units(l, step);
    }
    for (int64_t l = 0; l < a_.hidden; ++l) {
      const int64_t n = a_.units[l + 1].count * kLanes;
      std::fill_n(layers_[size_t(l)].grad, n, T(0));
      if (layers_[size_t(l)].grad_added) std::fill_n(layers_[size_t(l)].grad_added, n, T(0));
    }
    features_back(step);
    while (step-- > 0) {
      for (int64_t l = a_.hidden - 1; l >= 0; --l) units_back(l, step);
      features_back(step);
    }
    put(a_.grad_y, grad_y_);
    put(a_.grad_total, grad_x_);
  }

 private:
  // A hidden layer: before the nonlinearity, as the next one reads it; gradients of `after`, and of `before` by what
  // adds it.
  struct Layer {
    T *before, *after, *grad, *grad_added;
  };

  int64_t features() const { return a_.units[0].count; }
  int64_t rows(int64_t l) const { return l < a_.hidden ? a_.units[l + 1].count : features() * a_.parameters; }
  int64_t widest() const {
    int64_t most = features();
    for (int64_t l = 0; l <= a_.hidden; ++l) most = a_.layers[l].bias_sample ? std::max(most, rows(l)) : most;
    return most;
  }

  int64_t allocate() const {
    int64_t total = (backward_ ? 4 : 2) * features() + 2 + widest() + rows(a_.hidden);
    for (int64_t l = 0; l < a_.hidden; ++l) total += 5 * rows(l);
    return total * kLanes;
  }

  // samples [batch, n] as rows of lanes, in an order
  void get(const void* from, T* to, int64_t n, const int64_t* order) {
    const Lanes<T, T> lanes(n, 1, n);
    for (int v = 0; v < kV; ++v) {
      const int64_t first = std::min<int64_t>(v * W, samples_ - 1), count = std::min<int64_t>(W, samples_ - first);
      lanes.load(static_cast<const T*>(from) + (sample_ + first) * n, count, staged_);
      for (int64_t c = 0; c < n; ++c) lane(staged_, order ? order[c] : c).store(to + c * kLanes + v * W);
    }
  }

  void put(void* to, const T* from) {
    const Lanes<T, T> lanes(features(), 1, features());
    for (int v = 0; v * W < samples_; ++v) {
      for (int64_t c = 0; c < features(); ++c) {
        Vec<T>::loadu(from + c * kLanes + v * W).store(staged_ + a_.units[0].order[c] * W);
      }
      lanes.store(static_cast<T*>(to) + (sample_ + v * W) * features(), std::min<int64_t>(W, samples_ - v * W),
                  staged_);
    }
  }

  void start(int64_t block) {
    sample_ = block * kLanes, samples_ = std::min(kLanes, a_.batch - sample_);
    get(a_.y, y_, features(), a_.units[0].order);
    for (int64_t l = 0; l <= a_.hidden; ++l) {
      if (biases_[size_t(l)]) get(a_.layers[l].bias, biases_[size_t(l)], rows(l), nullptr);
    }
  }

  // the bias of a row
  PYGEN_INLINE Vec<T> bias(int64_t l, int64_t row, int64_t v) const {
    if (const T* own = biases_[size_t(l)]) return Vec<T>::loadu(own + row * kLanes + v * W);
    return Vec<T>(static_cast<const T*>(a_.layers[l].bias)[row]);
  }

  const T* weights(int64_t l, int64_t step) const {
    return static_cast<const T*>(a_.packed) + a_.layers[l].packed[step];
  }
  const T* read_by(int64_t l) const { return l ? layers_[size_t(l - 1)].after : x_; }

  void units(int64_t l, int64_t step) {
    const MadeUnits& own = a_.units[l + 1];
    const auto [first, last] = of_step(own, step);
    if (first == last) return;
    const int64_t* const skip = a_.layers[l].skip;
    T* const to = layers_[size_t(l)].before;
    for (int64_t i = first; i < last; ++i) {
      for (int64_t v = 0; v < kV; ++v) {
        Vec<T> sum = bias(l, own.order[i], v);
        if (skip) sum = sum + Vec<T>::loadu(layers_[size_t(l - 2)].before + skip[i] * kLanes + v * W);
        sum.store(to + i * kLanes + v * W);
      }
    }
    multiply(weights(l, step), read_by(l), readable(a_, l, step), {to + first * kLanes, kLanes, W}, last - first);
    if (a_.f_follows(l)) {
      apply_nonlinearity(a_.nonlinearity, to + first * kLanes, layers_[size_t(l)].after + first * kLanes,
                         (last - first) * kLanes);
    }
  }

  void units_back(int64_t l, int64_t step) {
    const auto [first, last] = of_step(a_.units[l + 1], step);
    if (first == last) return;
    const Layer& own = layers_[size_t(l)];
    const int64_t at = first * kLanes, n = (last - first) * kLanes;
    if (a_.f_follows(l)) apply_slope(a_.nonlinearity, own.before + at, own.grad + at, n);
    if (own.grad_added) add(own.grad + at, own.grad_added + at, n);
    if (const int64_t* skip = a_.layers[l].skip) {
      for (int64_t i = first; i < last; ++i) {
        add(layers_[size_t(l - 2)].grad_added + skip[i] * kLanes, own.grad + i * kLanes, kLanes);
      }
    }
    multiply_back(weights(l, step), l ? layers_[size_t(l - 1)].grad : grad_x_, readable(a_, l, step),
                  {own.grad + at, kLanes, W}, last - first);
  }

  static void add(T* to, const T* from, int64_t n) {
    for (int64_t i = 0; i < n; i += W) (Vec<T>::loadu(to + i) + Vec<T>::loadu(from + i)).store(to + i);
  }

  // what follows the weights of a feature's parameters
  const T* parameters_of(int64_t step, int64_t j, int64_t inputs) const {
    return weights(a_.hidden, step) + (j - of_step(a_.units[0], step).first) * a_.parameters * inputs;
  }

  void parameters(int64_t step, int64_t j) {
    const int64_t l = a_.hidden, inputs = readable(a_, l, step), row = a_.units[0].order[j] * a_.parameters;
    const T* weights = parameters_of(step, j, inputs);
    for_parts(a_, [&](int64_t part, int64_t n) {
      const Rows<T> out = feature_.rows(part);
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t v = 0; v < kV; ++v) bias(l, row + part + i, v).store(out.at(i, v));
      }
      weights = multiply(weights, read_by(l), inputs, out, n);
    });
  }

  void features_back(int64_t step) {
    const auto [first, last] = of_step(a_.units[0], step);
    const int64_t l = a_.hidden, inputs = readable(a_, l, step);
    for (int64_t j = first; j < last; ++j) {
      parameters(step, j);
      feature_.differentiate(y_ + j * kLanes, x_ + j * kLanes, grad_x_ + j * kLanes, grad_each_, grad_y_ + j * kLanes);
      const T* weights = parameters_of(step, j, inputs);
      for_parts(a_, [&](int64_t part, int64_t n) {
        weights = multiply_back(weights, layers_.back().grad, inputs, feature_.gradients(part), n);
      });
    }
  }

  // out += weights times in; returns where the weights end
  static const T* multiply(const T* weights, const T* in, int64_t inputs, const Rows<T>& out, int64_t n) {
    for_tiles(n, [&](int64_t first, int64_t count) {
      kTiles<T, kV>.forward[count - 1](weights, in, inputs, out.from(first));
      weights += count * inputs;
    });
    return weights;
  }

  static const T* multiply_back(const T* weights, T* in, int64_t inputs, const Rows<T>& out, int64_t n) {
    for_tiles(n, [&](int64_t first, int64_t count) {
      kTiles<T, kV>.backward[count - 1](weights, in, inputs, out.from(first));
      weights += count * inputs;
    });
    return weights;
  }

  const MadeArgs& a_;
  bool backward_;
  Feature<T, kV> feature_;
  Scratch<T> memory_;
  T *y_, *x_, *each_, *staged_, *grad_x_ = nullptr, *grad_y_ = nullptr, *grad_each_ = nullptr;
  std::vector<Layer> layers_;
  std::vector<T*> biases_;
  int64_t sample_ = 0, samples_ = 0;
};

// Calls f with the sweep for the vectors and the transform that are asked for.
template <class T, class F>
void with_sweep(const MadeArgs& a, bool backward, const F& f) {
  const auto of = [&](auto vectors) {
    constexpr int kV = decltype(vectors)::value;
    if constexpr (kV <= kMadeVectors) {
      if (a.is_spline) {
        Sweep<T, kV, SplineFeature> sweep(a, backward);
        f(sweep);
      } else {
        Sweep<T, kV, AffineFeature> sweep(a, backward);
        f(sweep);
      }
    }
  };
  a.vectors == 4   ? of(std::integral_constant<int, 4>())
  : a.vectors == 2 ? of(std::integral_constant<int, 2>())
                   : of(std::integral_constant<int, 1>());
}

template <class T>
void made_forward(const MadeArgs& a, int64_t begin, int64_t end) {
  with_sweep<T>(a, false, [&](auto& sweep) {
    for (int64_t block = begin; block < end; ++block) sweep.forward(block);
  });
}

template <class T>
void made_backward(const MadeArgs& a, int64_t begin, int64_t end) {
  with_sweep<T>(a, true, [&](auto& sweep) {
    for (int64_t block = begin; block < end; ++block) sweep.backward(block);
  });
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
