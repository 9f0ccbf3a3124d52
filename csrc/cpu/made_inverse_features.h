// What happens to units and features in the inverse of an autoregressive transform, a lane to a sample, one ISA tier.
#pragma once
#include "coupling_blocks.h"
#include "made_inverse_args.h"
#include "made_inverse_tiles.h"
#include "spline_lanes.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

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
        slopes_(a.spline, 1, W) {}

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
    for (int v = 0; v < kV; ++v) slopes_.load(blocks_[size_t(v)].slopes, W, bins_[v]);
  }

  SplineNumbers<T> numbers_;
  int64_t each_;
  SplineMemory<T> blocks_;
  SplineSlopes<T, T> slopes_;
  SplineBin<T> bins_[kV];
};

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
