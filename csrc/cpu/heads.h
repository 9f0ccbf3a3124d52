// A 1x1 convolution and the likelihood that its outputs give, by blocks of sites whose logits stay in the cache; one
// ISA tier. In PyTorch: reference/heads.py.
#pragma once
#include <limits>

#include "gate_math.h"
#include "gemm.h"
#include "heads_args.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

// A product within a task: one thread. (Inlined, it has GCC warn of loops that never run.)
__attribute__((noinline)) void run_serially(int64_t tasks, void (*task)(void*, int64_t), void* context) {
  for (int64_t i = 0; i < tasks; ++i) task(context, i);
}
constexpr Workers kSerial{run_serially};

constexpr int64_t kTerms = 128;  // of a logit's sum in one chain: an error of a logit is a relative one of e^logit

// The sites of one task, and scratch for their logits and for products.
template <class T>
class HeadBlock {
 public:
  explicit HeadBlock(const HeadsArgs& a)
      : a_(a),
        logits_(a.block * a.outputs),
        packed_(std::max({pack_size<T>(a.block, a.outputs, a.inputs), pack_size<T>(a.outputs, a.inputs, a.block),
                          pack_size<T>(a.block, a.inputs, a.outputs), pack_size<T>(a.inputs, a.block, a.outputs)})) {}

  void compute(int64_t task) {
    const int64_t sample = task / a_.blocks;
    first_ = task % a_.blocks * a_.block;
    count = std::min(a_.block, a_.sites - first_);
    site_ = sample * a_.sites + first_;
    place_ = sample * a_.h_sample + first_ * a_.h_site;
    const T* bias = static_cast<const T*>(a_.bias);
    for (int64_t i = 0; i < count; ++i) {
      T* row = logits_ + i * a_.outputs;
      if (bias) {
        std::copy_n(bias, a_.outputs, row);
      } else {
        std::fill_n(row, a_.outputs, T(0));
      }
    }
    for (int64_t k = 0; k < a_.inputs; k += kTerms) {
      multiply<T>(kSerial, {count, a_.outputs, std::min(kTerms, a_.inputs - k)}, 1,
                  {h() + k * a_.h_input, a_.h_site, a_.h_input}, {weight() + k, a_.inputs, 1}, static_cast<T*>(logits_),
                  a_.outputs, packed_);
    }
  }

  T* logits(int64_t i, int64_t channel) { return logits_ + i * a_.outputs + channel * a_.levels; }

  // of site i and a channel in target, nll and grad
  int64_t at(int64_t i, int64_t channel) const {
    const int64_t site = site_ + i;
    return (site / a_.area * a_.channels + channel) * a_.area + site % a_.area;
  }

  // From the logits' gradient, in their place.
  void add_gradients() {
    const Operand<T> by_site{logits_, a_.outputs, 1};
    if (a_.grad_h) {
      T* out = static_cast<T*>(a_.grad_h) + place_;
      const Operand<T> by_input{weight(), 1, a_.inputs};
      if (a_.h_site == 1) {
        multiply<T>(kSerial, {a_.inputs, count, a_.outputs, false, false}, 1, by_input, by_site, out, a_.h_input,
                    packed_);
      } else {
        multiply<T>(kSerial, {count, a_.inputs, a_.outputs, false, false}, 1, by_site, by_input, out, a_.h_site,
                    packed_);
      }
    }
    if (a_.grad_weight) {
      multiply<T>(kSerial, {a_.outputs, a_.inputs, count}, 1, {logits_, 1, a_.outputs}, {h(), a_.h_input, a_.h_site},
                  a_.grad_weight, a_.inputs, packed_);
    }
    if (a_.grad_bias) {
      for (int64_t i = 0; i < count; ++i) {
        const T* row = logits_ + i * a_.outputs;
        for (int64_t k = 0; k < a_.outputs; ++k) a_.grad_bias[k] += double(row[k]);
      }
    }
  }

  int64_t count = 0;

 private:
  const T* h() const { return static_cast<const T*>(a_.h) + place_; }
  const T* weight() const { return static_cast<const T*>(a_.weight); }

  const HeadsArgs& a_;
  Scratch<T> logits_, packed_;
  int64_t first_ = 0, site_ = 0, place_ = 0;
};

// --- the categorical head
// ---------------------------------------------------------------------------------------------

template <class T, class W>
PYGEN_INLINE Vec<T> load_logits(const T* z, W w) {  // e^z = 0 past the last
  return Vec<T>::set(Vec<T>(-std::numeric_limits<T>::infinity()), Vec<T>::loadu(z, w), w);
}

template <class T>
inline T largest(const T* z, int64_t n) {  // NaN if one is
  using V = Vec<T>;
  V m(-std::numeric_limits<T>::infinity());
  for_vectors<T>(
      n, [&](int64_t i, auto w) __attribute__((always_inline)) { m = at::vec::maximum(m, load_logits(z + i, w)); });
  T lanes[V::size()];
  m.store(lanes);
  T top = lanes[0];
  for (T v : lanes) top = v > top || v != v ? v : top;
  return top;
}

// z turns into e^(z - top) if kStore; returns the sum
template <bool kStore, class T>
inline T exponentials(std::conditional_t<kStore, T, const T>* z, int64_t n, T top) {
  using V = Vec<T>;
  V sum(T(0));
  for_vectors<T>(n, [&](int64_t i, auto w) __attribute__((always_inline)) {
    const Exp<T> parts = exp_parts<true>(load_logits<T>(z + i, w) - V(top));
    const V e = scale2(parts.m, parts.n);
    if constexpr (kStore) e.store(z + i, w);
    sum = sum + e;
  });
  T lanes[V::size()];
  sum.store(lanes);
  T total(0);
  for (T v : lanes) total += v;
  return total;
}

template <class T>
void categorical_values(const HeadsArgs& a, HeadBlock<T>& block) {
  for (int64_t channel = 0; channel < a.channels; ++channel) {
    for (int64_t i = 0; i < block.count; ++i) {
      const T *z = block.logits(i, channel), top = largest(z, a.levels);
      const int64_t at = block.at(i, channel);
      const T sum = exponentials<false, T>(z, a.levels, top);
      static_cast<T*>(a.nll)[at] = std::log(sum) + (top - z[a.target[at]]);
    }
  }
}

template <class T>
void categorical_gradients(const HeadsArgs& a, HeadBlock<T>& block) {
  for (int64_t channel = 0; channel < a.channels; ++channel) {
    for (int64_t i = 0; i < block.count; ++i) {
      T* z = block.logits(i, channel);
      const int64_t at = block.at(i, channel);
      const T g = static_cast<const T*>(a.grad)[at];
      const T factor = g / exponentials<true, T>(z, a.levels, largest<T>(z, a.levels));
      for (int64_t l = 0; l < a.levels; ++l) z[l] *= factor;
      z[a.target[at]] -= g;
    }
  }
}

// --- the Bernoulli head
// -----------------------------------------------------------------------------------------------

// Calls f(logit, its place in target, nll and grad).
template <class T, class F>
inline void for_logits(const HeadsArgs& a, HeadBlock<T>& block, const F& f) {
  for (int64_t i = 0; i < block.count; ++i) {
    T* z = block.logits(i, 0);
    const int64_t first = block.at(i, 0);
    for (int64_t channel = 0; channel < a.channels; ++channel) f(z[channel], first + channel * a.area);
  }
}

// A block's logits lie together: s = (1 - 2 target) z turns into f(s), vector by vector.
template <class T, class F>
inline void map_signed(const HeadsArgs& a, HeadBlock<T>& block, const F& f) {
  for_logits(a, block, [&](T& z, int64_t at) { z = a.target[at] ? -z : z; });
  T* z = block.logits(0, 0);
  for_vectors<T>(block.count * a.outputs,
                 [&](int64_t i, auto w) __attribute__((always_inline)) { f(Vec<T>::loadu(z + i, w)).store(z + i, w); });
}

template <class T>
void bernoulli_values(const HeadsArgs& a, HeadBlock<T>& block) {
  map_signed(a, block, [](const Vec<T>& s) __attribute__((always_inline)) {
    const Exp<T> e = exp_parts<true>(s.abs().neg());
    return at::vec::maximum(s, Vec<T>(T(0))) + scale2(e.m, e.n).log1p();
  });
  for_logits(a, block, [&](T z, int64_t at) { static_cast<T*>(a.nll)[at] = z; });
}

template <class T>
void bernoulli_gradients(const HeadsArgs& a, HeadBlock<T>& block) {
  map_signed(a, block, [](const Vec<T>& s) __attribute__((always_inline)) {
    const Sigmoid<T> p = sigmoid_parts(s);
    return scale2(p.top / p.bottom, p.n);
  });
  for_logits(a, block, [&](T& z, int64_t at) {
    const T g = static_cast<const T*>(a.grad)[at];
    z *= a.target[at] ? -g : g;
  });
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
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
