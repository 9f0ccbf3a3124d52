// The loss of diffusion models and its gradient, one ISA tier. In PyTorch: reference/diffusion_loss.py.
#pragma once
#include "diffusion_loss_args.h"
#include "stored_blocks.h"
#include "stream.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

// f(sample, chunk, first, n) for the blocks of elements [first, first + n) of a sample
template <class F>
PYGEN_INLINE void for_loss_blocks(const LossPlan& plan, int64_t begin, int64_t end, const F& f) {
  for (int64_t task = begin; task < end; ++task) {
    const int64_t sample = task / plan.chunks, chunk = task % plan.chunks;
    const int64_t last = std::min((chunk + 1) * kLossTask, plan.size);
    for (int64_t i = chunk * kLossTask; i < last; i += kBlock) f(sample, chunk, i, std::min(kBlock, last - i));
  }
  if (plan.stream) stream_fence();
}

// Normals of the stream in the type of the arithmetic.
template <class T>
class Noise {
 public:
  const T* draw(const Stream& place, int64_t at, int64_t n) {
    fill_values<Distribution::kNormal>(place, at, at + n, drawn_);
    if constexpr (std::is_same_v<T, float>) {
      return drawn_;
    } else {
      for (int64_t i = 0; i < n; ++i) wide_[i] = drawn_[i];
      return wide_;
    }
  }

 private:
  alignas(64) float drawn_[kBlock];
  alignas(64) T wide_[std::is_same_v<T, float> ? 1 : kBlock];
};

// d = output - (a x0 + s z), and the sum of its squares; z: null if there is none
template <class T>
double squares(const T* output, const T* x0, const T* z, T a, T s, T* difference, int64_t n) {
  using V = Vec<T>;
  Sum<T> sum;
  for_vectors<T>(n, [&](int64_t i, auto w) __attribute__((always_inline)) {
    V target = V(a) * V::loadu(x0 + i, w);
    if (z) target = at::vec::fmadd(V(s), V::loadu(z + i, w), target);
    V d = V::loadu(output + i, w) - target;
    d.store(difference + i, w);
    if constexpr (!std::is_same_v<decltype(w), std::integral_constant<int64_t, V::size()>>) {
      d = V::loadu(difference + i, w);  // 0 beyond the end, whatever a and s are
    }
    sum.add(d * d);
  });
  return sum.total();
}

template <class T>
void loss(const LossArgs& args, int64_t begin, int64_t end) {
  const LossPlan& plan = args.plan;
  BlockReader<T> outputs, samples, given;
  BlockWriter<T> differences(args.difference.data, args.difference.type, plan.stream);
  Noise<T> noise;
  for_loss_blocks(plan, begin, end, [&](int64_t sample, int64_t chunk, int64_t first, int64_t n) {
    const int64_t at = sample * plan.size + first;
    const T *output = outputs.read(args.output, at, n), *x0 = samples.read(args.x0, at, n);
    const T* z = args.draws ? noise.draw(args.place, at, n) : args.noise.data ? given.read(args.noise, at, n) : nullptr;
    T* difference = differences.at(at);
    double* sums = args.sums + sample * (plan.chunks + plan.runs) + chunk;
    for_runs(plan.run, first, n, [&](int64_t r, int64_t place, int64_t count) {
      const double* c = args.coefficients + 2 * (sample * plan.runs + r);
      const int64_t k = place - first;
      sums[r] += squares(output + k, x0 + k, z ? z + k : nullptr, T(c[0]), T(c[1]), difference + k, count);
    });
    differences.put(n);
  });
}

template <class T>
void loss_backward(const LossBackwardArgs& args, int64_t begin, int64_t end) {
  using V = Vec<T>;
  const LossPlan& plan = args.plan;
  BlockReader<T> differences;
  const auto& to = args.gradient;
  BlockWriter<T> gradients[kLossGradients] = {{to[0].data, to[0].type, plan.stream},
                                              {to[1].data, to[1].type, plan.stream},
                                              {to[2].data, to[2].type, plan.stream}};
  for_loss_blocks(plan, begin, end, [&](int64_t sample, int64_t, int64_t first, int64_t n) {
    const int64_t at = sample * plan.size + first;
    const T* difference = differences.read(args.difference, at, n);
    for (int g = 0; g < kLossGradients; ++g) {
      if (!to[g].data) continue;
      T* gradient = gradients[g].at(at);
      for_runs(plan.run, first, n, [&](int64_t r, int64_t place, int64_t count) {
        const V factor(T(args.factors[kLossGradients * (sample * plan.runs + r) + g]));
        const T* d = difference + (place - first);
        T* out = gradient + (place - first);
        for_vectors<T>(count, [&](int64_t i, auto w)
                                  __attribute__((always_inline)) { (V::loadu(d + i, w) * factor).store(out + i, w); });
      });
      gradients[g].put(n);
    }
  });
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
