// Inverses of autoregressive transforms, a lane to a sample, one ISA tier. In PyTorch: reference/made_inverse.py.
//
// A block of samples goes through the degrees in order: the features of a degree are inverted, then the units of that
// degree computed, layer by layer. Units lie in the order of their degrees, so that what a step reads is the first part
// of a layer; a step's weights are packed in tiles of rows, in the order in which they are multiplied.
#pragma once
#include "made_inverse_features.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

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
