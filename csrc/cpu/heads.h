// A 1x1 convolution and the likelihood that its outputs give, by blocks of sites whose logits stay in the cache; one
// ISA tier. In PyTorch: reference/heads.py.
#pragma once
#include "gate_math.h"
#include "heads_args.h"
#include "pixels.h"
#include "scratch.h"
#include "tile.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kTerms = 128;     // of a sum in one chain: an error of a logit is a relative one of e^logit
constexpr int64_t kSiteTerms = 64;  // the same, of the gradient of a weight
constexpr int64_t kLevels = 16;     // the same, of exponentials
constexpr int64_t kPending = 1024;  // sites whose gradients of weights are added in T, before they are in double

// Outputs up to which a copy of h costs more than it saves: of rows of sites that are far apart in memory; transposed,
// where a site's inputs lie together.
constexpr int64_t kFewOutputs = 16, kFewDots = 4;

// c [rows, columns] = a b, or has it added, with whole vectors of columns.
template <bool kDense, class T>  // kDense: a_row is 1
void multiply(int64_t rows, int64_t columns, int64_t depth, const T* a, int64_t a_row, int64_t a_step, const T* b,
              int64_t b_step, T* c, int64_t c_row, bool add, int64_t terms = kTerms) {
  static constexpr int64_t kZero = 0;
  constexpr int64_t W = Vec<T>::size();
  const int64_t vectors = columns / W, panels = tiles(vectors, kMaxVectors);
  for (int64_t k = 0; k < depth; k += terms) {
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t first = vectors * panel / panels, last = vectors * (panel + 1) / panels;
      Tile<T> t{};
      t.a = a + k * a_step, t.a_row = a_row, t.a_step = a_step;
      t.b = b + k * b_step + first * W, t.b_step = b_step;
      t.depth = std::min(terms, depth - k);
      t.a_start = t.b_start = &kZero, t.parts = 1;
      t.c = c + first * W, t.c_row = c_row, t.fresh = !add && k == 0;
      multiply_rows<kDense>(t, last - first, rows);
    }
  }
}

// The sites of one task after another, and scratch for their logits, [outputs, sites]. Lanes are sites, or inputs of a
// site: h is read both ways, one of which is that of the memory that it lies in.
template <class T>
class HeadBlock {
 public:
  const int64_t stride;          // of a row of logits: lines of a column are in different sets of a cache
  int64_t count = 0, lanes = 0;  // sites, and as many as whole vectors hold, of which the last may hold anything

  explicit HeadBlock(const HeadsArgs& a)
      : stride((tiles(a.block, Vec<T>::size()) | 1) * Vec<T>::size()),
        a_(a),
        backward_(a.grad != nullptr),
        columns_(padded<T>(a.inputs)),
        logits_(a.outputs * stride),
        rows_(2 * stride),
        by_input_(a.inputs * stride),
        by_site_(backward_ ? a.block * columns_ : 0),
        grad_h_(a.grad_h ? std::max(a.inputs * stride, a.block * columns_) : 0),
        weight_(backward_ ? a.outputs * columns_ : 0),
        sums_(a.grad_weight ? a.outputs * columns_ : 0) {
    if (!sites_together() && backward_) {
      for (int64_t k = 0; k < a.outputs; ++k) std::copy_n(weight() + k * a.inputs, a.inputs, weight_ + k * columns_);
    }
  }

  void compute(int64_t task) {
    const int64_t sample = task / a_.blocks, first = task % a_.blocks * a_.block;
    count = std::min(a_.block, a_.sites - first);
    lanes = padded<T>(count);
    site_ = sample * a_.sites + first;
    place_ = sample * a_.h_sample + first * a_.h_site;
    if (!sites_together() && a_.outputs <= std::min(kFewDots, a_.inputs / Vec<T>::size())) {
      for (int64_t k = 0; k < a_.outputs; ++k) find_dots(k);
    } else {
      for (int64_t k = 0; k < a_.outputs; ++k) std::fill_n(logits_ + k * stride, lanes, bias(k));
      const auto [rows, step] = by_input();
      multiply<false, T>(a_.outputs, lanes, a_.inputs, weight(), a_.inputs, 1, rows, step, logits_, stride, true);
    }
  }

  T* row(int64_t k) { return rows_ + k * stride; }  // of something for each lane
  T* logits(int64_t channel) { return logits_ + channel * a_.levels * stride; }

  // Calls f(i, its place in target, nll and grad) for the sites i, in runs along which places are neighbours.
  template <class F>
  void for_sites(int64_t channel, const F& f) const {
    int64_t image = site_ / a_.area, pixel = site_ % a_.area;
    for (int64_t i = 0; i < count; ++image, pixel = 0) {
      const int64_t end = a_.channels == 1 ? count : std::min(count, i + a_.area - pixel);
      for (int64_t at = (image * a_.channels + channel) * a_.area + pixel; i < end; ++i, ++at) f(i, at);
    }
  }

  // From the logits' gradient, in their place.
  void add_gradients() {
    if (a_.grad_h) find_grad_h();
    if (a_.grad_weight) {
      const auto [rows, step] = by_site();
      multiply<false, T>(a_.outputs, columns_, count, logits_, stride, 1, rows, step, sums_, columns_, pending_ > 0,
                         kSiteTerms);
      pending_ += count;
      if (pending_ >= kPending) flush();
    }
    if (a_.grad_bias) {
      for (int64_t k = 0; k < a_.outputs; ++k) a_.grad_bias[k] += sum_of(logits_ + k * stride, count);
    }
  }

  void flush() {
    if (pending_ == 0) return;
    for (int64_t k = 0; k < a_.outputs; ++k) {
      for (int64_t i = 0; i < a_.inputs; ++i) a_.grad_weight[k * a_.inputs + i] += double(sums_[k * columns_ + i]);
    }
    pending_ = 0;
  }

 private:
  struct Rows {
    const T* data;
    int64_t step;
  };

  const T* h() const { return static_cast<const T*>(a_.h) + place_; }
  const T* weight() const { return static_cast<const T*>(a_.weight); }
  T bias(int64_t k) const { return a_.bias ? static_cast<const T*>(a_.bias)[k] : T(0); }
  bool sites_together() const { return a_.h_site == 1; }

  // The logits of one output where a site's inputs lie together: products of vectors, whose lanes are added last.
  void find_dots(int64_t k) {
    using V = Vec<T>;
    constexpr int64_t W = V::size();
    const T* w = weight() + k * a_.inputs;
    alignas(64) T sums[W * W] = {};
    for (int64_t i = 0; i < count; i += W) {
      const T* x = h() + i * a_.inputs;
      for (int64_t j = 0; j < std::min(W, count - i); ++j, x += a_.inputs) {
        V sum(T(0));
        for_vectors<T>(a_.inputs, [&](int64_t v, auto n) __attribute__((always_inline)) {
          sum = at::vec::fmadd(V::loadu(x + v, n), V::loadu(w + v, n), sum);
        });
        sum.store(sums + j * W);
      }
      V r[W];
      for (int64_t j = 0; j < W; ++j) r[j] = V::loadu(sums + j * W);
      transpose<T>(r);
      for (int64_t n = W / 2; n > 0; n /= 2) {
        for (int64_t j = 0; j < n; ++j) r[j] = r[j] + r[j + n];
      }
      (r[0] + V(bias(k))).store(logits_ + k * stride + i);
    }
  }

  // [inputs, lanes]
  Rows by_input() {
    if (sites_together() && count == lanes && a_.outputs <= kFewOutputs) return {h(), a_.h_input};
    if (sites_together()) {
      for (int64_t i = 0; i < a_.inputs; ++i) load_run(by_input_ + i * stride, h() + i * a_.h_input, count);
    } else {
      store_pixels(static_cast<T*>(by_input_), stride, 1, a_.inputs, count, h(), a_.inputs);
    }
    return {by_input_, stride};
  }

  // [sites, columns_]
  Rows by_site() {
    if (!sites_together() && columns_ == a_.inputs) return {h(), a_.inputs};
    load_pixels(h(), a_.h_input, a_.h_site, a_.inputs, count, static_cast<T*>(by_site_), columns_);
    return {by_site_, columns_};
  }

  void find_grad_h() {
    T* out = static_cast<T*>(a_.grad_h) + place_;
    if (sites_together()) {
      const bool direct = count == lanes;
      T* rows = direct ? out : grad_h_;
      const int64_t step = direct ? a_.h_input : stride;
      multiply<true, T>(a_.inputs, lanes, a_.outputs, weight(), 1, a_.inputs, logits_, stride, rows, step, false);
      for (int64_t i = 0; i < a_.inputs && !direct; ++i) std::copy_n(rows + i * step, count, out + i * a_.h_input);
    } else {
      const bool direct = columns_ == a_.inputs;
      T* rows = direct ? out : grad_h_;
      multiply<true, T>(count, columns_, a_.outputs, logits_, 1, stride, weight_, columns_, rows, columns_, false);
      for (int64_t i = 0; i < count && !direct; ++i) std::copy_n(rows + i * columns_, a_.inputs, out + i * a_.inputs);
    }
  }

  const HeadsArgs& a_;
  const bool backward_;
  const int64_t columns_;  // inputs, as many as whole vectors hold
  Scratch<T> logits_, rows_, by_input_, by_site_, grad_h_, weight_, sums_;
  int64_t site_ = 0, place_ = 0, pending_ = 0;
};

// --- the categorical head
// ---------------------------------------------------------------------------------------------

// Of a vector of sites, over the levels of a channel: z - top is at most 0, and sums of e^(z - top), which replaces z
// if kStore.
template <class T>
struct Softmax {
  Vec<T> top, sum;
};

template <bool kStore, class T>
PYGEN_INLINE Softmax<T> softmax(std::conditional_t<kStore, T, const T>* z, int64_t stride, int64_t levels) {
  using V = Vec<T>;
  V tops[2] = {V::loadu(z), V::loadu(z)};  // a NaN may be passed over: its exponential is none
  int64_t l = 0;
  for (; l + 2 <= levels; l += 2) {
    tops[0] = at::vec::clamp_min(V::loadu(z + l * stride), tops[0]);
    tops[1] = at::vec::clamp_min(V::loadu(z + (l + 1) * stride), tops[1]);
  }
  if (l < levels) tops[0] = at::vec::clamp_min(V::loadu(z + l * stride), tops[0]);
  const V top = at::vec::clamp_min(tops[1], tops[0]);
  V sum(T(0));
  for (l = 0; l < levels; l += kLevels) {
    V part(T(0));
    for (int64_t j = l; j < std::min(levels, l + kLevels); ++j) {
      const Exp<T> parts = exp_parts<true>(V::loadu(z + j * stride) - top);
      const V e = scale2(parts.m, parts.n);
      if constexpr (kStore) e.store(z + j * stride);
      part = part + e;
    }
    sum = sum + part;
  }
  return {top, sum};
}

template <class T>
void categorical_values(const HeadsArgs& a, HeadBlock<T>& block) {
  using V = Vec<T>;
  T* nll = static_cast<T*>(a.nll);
  for (int64_t channel = 0; channel < a.channels; ++channel) {
    const T* z = block.logits(channel);
    T *const tops = block.row(0), *const logs = block.row(1);
    for (int64_t i = 0; i < block.lanes; i += V::size()) {
      const Softmax<T> of = softmax<false, T>(z + i, block.stride, a.levels);
      of.top.store(tops + i);
      of.sum.log().store(logs + i);
    }
    block.for_sites(channel,
                    [&](int64_t i, int64_t at) { nll[at] = logs[i] + (tops[i] - z[a.target[at] * block.stride + i]); });
  }
}

template <class T>
void categorical_gradients(const HeadsArgs& a, HeadBlock<T>& block) {
  using V = Vec<T>;
  const T* grad = static_cast<const T*>(a.grad);
  for (int64_t channel = 0; channel < a.channels; ++channel) {
    T *const z = block.logits(channel), *const g = block.row(0);
    block.for_sites(channel, [&](int64_t i, int64_t at) { g[i] = grad[at]; });
    for (int64_t i = 0; i < block.lanes; i += V::size()) {
      const V factor = V::loadu(g + i) / softmax<true, T>(z + i, block.stride, a.levels).sum;
      for (T* e = z + i; e < z + i + a.levels * block.stride; e += block.stride) (V::loadu(e) * factor).store(e);
    }
    block.for_sites(channel, [&](int64_t i, int64_t at) { z[a.target[at] * block.stride + i] -= g[i]; });
  }
}

// --- the Bernoulli head
// -----------------------------------------------------------------------------------------------

template <class T>
PYGEN_INLINE T sign_of(int64_t target) {  // not a choice: bits are too random for a branch
  return T(1 - 2 * int32_t(target));
}

// s = (1 - 2 target) z turns into f(s).
template <class T, class F>
inline void map_signed(const HeadsArgs& a, HeadBlock<T>& block, int64_t channel, const F& f) {
  T* z = block.logits(channel);
  block.for_sites(channel, [&](int64_t i, int64_t at) { z[i] *= sign_of<T>(a.target[at]); });
  for (int64_t i = 0; i < block.lanes; i += Vec<T>::size()) f(Vec<T>::loadu(z + i)).store(z + i);
}

template <class T>
void bernoulli_values(const HeadsArgs& a, HeadBlock<T>& block) {
  for (int64_t channel = 0; channel < a.channels; ++channel) {
    map_signed(a, block, channel, [](const Vec<T>& s) __attribute__((always_inline)) {
      const Exp<T> e = exp_parts<true>(s.abs().neg());
      return at::vec::maximum(s, Vec<T>(T(0))) + scale2(e.m, e.n).log1p();
    });
    const T* z = block.logits(channel);
    block.for_sites(channel, [&](int64_t i, int64_t at) { static_cast<T*>(a.nll)[at] = z[i]; });
  }
}

template <class T>
void bernoulli_gradients(const HeadsArgs& a, HeadBlock<T>& block) {
  const T* grad = static_cast<const T*>(a.grad);
  for (int64_t channel = 0; channel < a.channels; ++channel) {
    map_signed(a, block, channel, [](const Vec<T>& s) __attribute__((always_inline)) {
      const Sigmoid<T> p = sigmoid_parts(s);
      return scale2(p.top / p.bottom, p.n);
    });
    T* z = block.logits(channel);
    block.for_sites(channel, [&](int64_t i, int64_t at) { z[i] *= sign_of<T>(a.target[at]) * grad[at]; });
  }
}

// --- any head
// ---------------------------------------------------------------------------------------------------------

template <class T, void (*kValues)(const HeadsArgs&, HeadBlock<T>&)>
void head_nll(const HeadsArgs& a, int64_t begin, int64_t end) {
  HeadBlock<T> block(a);
  for (; begin < end; ++begin) {
    block.compute(begin);
    kValues(a, block);
  }
}

template <class T, void (*kGradients)(const HeadsArgs&, HeadBlock<T>&)>  // kGradients: of the logits, in their place
void head_nll_backward(const HeadsArgs& a, int64_t begin, int64_t end) {
  HeadBlock<T> block(a);
  for (; begin < end; ++begin) {
    block.compute(begin);
    kGradients(a, block);
    block.add_gradients();
  }
  block.flush();
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
