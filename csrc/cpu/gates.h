// Gates and the concatenated ELU over rows, one ISA tier. In PyTorch: reference/gates.py.
#pragma once
#include "gate_math.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

// --- walking over rows -----------------------------------------------------------------------------------------------

// Up to kBlock elements of a row: where they lie in wide and in narrow tensors, and what they are part of.
struct GatePlace {
  int64_t task, sample, row, start, wide, narrow, n;
};

template <class F>
PYGEN_INLINE void walk(const GatesArgs& a, int64_t begin, int64_t end, const F& f) {
  for (int64_t task = begin; task < end; ++task) {
    const int64_t sample = task / a.chunks, first = task % a.chunks * a.rows_per_chunk;
    for (int64_t row = first; row < std::min(a.rows, first + a.rows_per_chunk); ++row) {
      const int64_t length = std::min(a.row, a.run - row * a.row);
      for (int64_t i = 0; i < length; i += kBlock) {
        f(GatePlace{task, sample, row, i, sample * a.wide_sample + row * a.wide_row + i,
                    sample * a.narrow_sample + row * a.narrow_row + i, std::min(kBlock, length - i)});
      }
    }
  }
  if (a.stream) stream_fence();
}

// Elements in the type of the arithmetic: as they lie, or converted.
template <class X>
class GateInput {
 public:
  using T = Arithmetic<X>;
  PYGEN_INLINE const T* read(const void* base, int64_t at, int64_t n) {
    if (!base) return nullptr;
    const X* p = static_cast<const X*>(base) + at;
    if constexpr (std::is_same_v<X, T>) {
      return p;
    } else {
      load_run(values_, p, n);
      return values_;
    }
  }

 private:
  T values_[kBlock];
};

template <class X>
class GateOutput {
 public:
  using T = Arithmetic<X>;
  GateOutput(void* base, bool stream)
      : base_(static_cast<X*>(base)), stream_(stream), direct_(std::is_same_v<X, T> && base && !stream) {}

  // where to write n elements, before finish() moves them to where they belong
  PYGEN_INLINE T* at(int64_t at) {
    at_ = at;
    if constexpr (std::is_same_v<X, T>) {
      if (direct_) return base_ + at;
    }
    return values_;
  }
  PYGEN_INLINE void finish(int64_t n) {
    if (base_ && !direct_) store_run(base_ + at_, values_, n, stream_);
  }

 private:
  X* base_;
  bool stream_, direct_;
  int64_t at_ = 0;
  T values_[kBlock];
};

// --- gates -----------------------------------------------------------------------------------------------------------

// One half of x + bias + condition.
template <class T>
struct PreActivation {
  const T *x, *bias, *condition;  // bias, condition: null if there is none
  T number;                       // a bias of every element

  PreActivation(const GatesArgs& a, const GatePlace& at, const T* x_, const T* condition_, bool second)
      : x(x_), bias(nullptr), condition(condition_), number(0) {
    if (!a.bias) return;
    const T* own = static_cast<const T*>(a.bias) + at.sample * a.bias_sample;
    if (a.pixels) {
      bias = own + second * a.row + at.start;
    } else {
      number = own[second * a.rows + at.row];
    }
  }
  PYGEN_INLINE Vec<T> load(int64_t i, int64_t w) const {
    Vec<T> z = Vec<T>::loadu(x + i, w) + (bias ? Vec<T>::loadu(bias + i, w) : Vec<T>(number));
    return condition ? z + Vec<T>::loadu(condition + i, w) : z;
  }
};

template <Gate kGate, class X>
void gate_rows(const GatesArgs& args, int64_t begin, int64_t end) {
  using T = Arithmetic<X>;
  GateInput<X> in[5];
  GateOutput<X> out(args.out, args.stream);
  walk(args, begin, end, [&](const GatePlace& at) __attribute__((always_inline)) {
    const int64_t n = at.n, other = at.wide + args.half;
    const PreActivation<T> a(args, at, in[0].read(args.x, at.wide, n), in[1].read(args.condition, at.wide, n), false);
    const PreActivation<T> b(args, at, in[2].read(args.x, other, n), in[3].read(args.condition, other, n), true);
    const T* residual = in[4].read(args.residual, at.narrow, n);
    T* y = out.at(at.narrow);
    for_vectors<T>(n, [&](int64_t i, auto w) __attribute__((always_inline)) {
      const Vec<T> v = gate<kGate>(a.load(i, w), b.load(i, w));
      (residual ? v + Vec<T>::loadu(residual + i, w) : v).store(y + i, w);
    });
    out.finish(n);
  });
}

template <class T>
__attribute__((noinline)) void add_to_sums(const GatesArgs& a, const GatePlace& at, const T* gradient, bool second) {
  if (a.pixels) {
    double* sums = a.sums + at.task * 2 * a.row + second * a.row + at.start;
    for (int64_t i = 0; i < at.n; ++i) sums[i] += double(gradient[i]);
  } else {
    a.sums[(2 * at.sample + second) * a.rows + at.row] += sum_of(gradient, at.n);
  }
}

template <Gate kGate, class X>
void gate_backward_rows(const GatesArgs& args, int64_t begin, int64_t end) {
  using T = Arithmetic<X>;
  GateInput<X> in[5];
  GateOutput<X> out_a(args.out, args.stream), out_b(args.out, args.stream);
  walk(args, begin, end, [&](const GatePlace& at) __attribute__((always_inline)) {
    const int64_t n = at.n, other = at.wide + args.half;
    const PreActivation<T> a(args, at, in[0].read(args.x, at.wide, n), in[1].read(args.condition, at.wide, n), false);
    const PreActivation<T> b(args, at, in[2].read(args.x, other, n), in[3].read(args.condition, other, n), true);
    const T* g = in[4].read(args.grad_y, at.narrow, n);
    T *grad_a = out_a.at(at.wide), *grad_b = out_b.at(other);
    for_vectors<T>(n, [&](int64_t i, auto w) __attribute__((always_inline)) {
      const GateGradient<T> grad = gate_backward<kGate>(a.load(i, w), b.load(i, w), Vec<T>::loadu(g + i, w));
      grad.a.store(grad_a + i, w);
      grad.b.store(grad_b + i, w);
    });
    if (args.sums) {
      add_to_sums(args, at, grad_a, false);
      add_to_sums(args, at, grad_b, true);
    }
    out_a.finish(n);
    out_b.finish(n);
  });
}

template <class X>
void gated(const GatesArgs& a, int64_t begin, int64_t end) {
  return a.gate == Gate::kTanh ? gate_rows<Gate::kTanh, X>(a, begin, end) : gate_rows<Gate::kLinear, X>(a, begin, end);
}

template <class X>
void gated_backward(const GatesArgs& a, int64_t begin, int64_t end) {
  return a.gate == Gate::kTanh ? gate_backward_rows<Gate::kTanh, X>(a, begin, end)
                               : gate_backward_rows<Gate::kLinear, X>(a, begin, end);
}

// --- concatenated ELU ------------------------------------------------------------------------------------------------

template <class X>
void concat_elu(const GatesArgs& args, int64_t begin, int64_t end) {
  using T = Arithmetic<X>;
  using V = Vec<T>;
  GateInput<X> in;
  GateOutput<X> out_a(args.out, args.stream), out_b(args.out, args.stream);
  walk(args, begin, end, [&](const GatePlace& at) __attribute__((always_inline)) {
    const T* x = in.read(args.x, at.narrow, at.n);
    T *first = out_a.at(at.wide), *second = out_b.at(at.wide + args.half);
    for_vectors<T>(at.n, [&](int64_t i, auto w) __attribute__((always_inline)) {
      V positive, negative;
      concat_elu(V::loadu(x + i, w), positive, negative);
      positive.store(first + i, w);
      negative.store(second + i, w);
    });
    out_a.finish(at.n);
    out_b.finish(at.n);
  });
}

template <class X>
void concat_elu_backward(const GatesArgs& args, int64_t begin, int64_t end) {
  using T = Arithmetic<X>;
  using V = Vec<T>;
  GateInput<X> in[3];
  GateOutput<X> out(args.out, args.stream);
  walk(args, begin, end, [&](const GatePlace& at) __attribute__((always_inline)) {
    const int64_t n = at.n;
    const T* x = in[0].read(args.x, at.narrow, n);
    const T *first = in[1].read(args.grad_y, at.wide, n), *second = in[2].read(args.grad_y, at.wide + args.half, n);
    T* grad = out.at(at.narrow);
    for_vectors<T>(n, [&](int64_t i, auto w) __attribute__((always_inline)) {
      const V v = V::loadu(x + i, w), g = V::loadu(first + i, w), h = V::loadu(second + i, w);
      const Exp<T> e = exp_parts<true>(v.abs().neg());
      const auto positive = less(V(T(0)), v);
      const V small = scale2(select(positive, h, g) * e.m, e.n);
      select(positive, g - small, small - h).store(grad + i, w);
    });
    out.finish(n);
  });
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
