// Steps of diffusion samplers, one ISA tier. In PyTorch: reference/diffusion_step.py.
//
// A group of vectors is in registers at once: x, g, x0 and a result of each. Which tensors there are, and of which
// type, is found at run time: branches that always go the same way, beside memory that is waited for.
#pragma once
#include <limits>

#include "diffusion_step_args.h"
#include "stored_blocks.h"
#include "stream.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

// What is known at compile time. kPlain: no noise, nothing known; a form of its own, since vectors that may not be used
// are nevertheless kept. kUsual: besides, one output, no rescaling, no threshold, tensors of one type Own, and results
// that fit the caches, where branches take as long as the work.
enum class StepForm { kAny, kPlain, kUsual };

constexpr int64_t kStepBlock = 1024;  // elements whose noise is drawn at once: it stays in the first-level cache

#if defined(CPU_CAPABILITY_AVX512)
constexpr int kStepVectors = 4;
#else
constexpr int kStepVectors = 2;
#endif

// --- vectors of any storage type -------------------------------------------------------------------------------------

// N vectors of n elements; with 0 beyond n
template <int N, class T, class S>
PYGEN_INLINE void load_vectors(Vec<T>* v, const S* p, int64_t n) {
  using V = Vec<T>;
  constexpr int64_t kWhole = N * V::size();
  S padded[kWhole];
  if (n < kWhole) {
    std::fill_n(padded, kWhole, static_cast<S>(0.f));
    std::memcpy(padded, p, size_t(n) * sizeof(S));
    p = padded;
  }
  if constexpr (std::is_same_v<T, S>) {
#pragma GCC unroll 4
    for (int k = 0; k < N; ++k) v[k] = V::loadu(p + k * V::size());
  } else if constexpr (std::is_same_v<T, float> && sizeof(S) == 2) {
#pragma GCC unroll 4
    for (int k = 0; k < N; ++k) at::vec::load_to_float<S>(p + k * V::size(), v[k]);
  } else {
    alignas(64) T wide[kWhole];
    for (int64_t i = 0; i < kWhole; ++i) wide[i] = static_cast<T>(p[i]);
#pragma GCC unroll 4
    for (int k = 0; k < N; ++k) {
      v[k] = V::loadu(wide + k * V::size());
      if constexpr (std::is_same_v<S, uint8_t>) v[k] = (v[k] - V(T(127.5))) / V(T(127.5));
    }
  }
}

template <StepForm kForm, class Own, int N, class T>
PYGEN_INLINE void load_vectors(Vec<T>* v, const Stored& from, int64_t at, int64_t n) {
  if constexpr (kForm == StepForm::kUsual) return load_vectors<N>(v, static_cast<const Own*>(from.data) + at, n);
  with_storage(from.type, [&](auto s) __attribute__((always_inline)) {
    load_vectors<N>(v, static_cast<const decltype(s)*>(from.data) + at, n);
  });
}

// the inverse
template <int N, class T, class S>
PYGEN_INLINE void store_vectors(S* p, const Vec<T>* v, int64_t n, bool stream) {
  using V = Vec<T>;
  constexpr int64_t kWhole = N * V::size();
  constexpr bool kSame = std::is_same_v<T, S>, kPairs = std::is_same_v<T, float> && sizeof(S) == 2;
  alignas(64) S some[std::max<int64_t>(N, 2) * V::size()];
  const bool direct = n == kWhole && !stream && (kSame || (kPairs && N > 1));
  S* to = direct ? p : some;
  if constexpr (kSame) {
#pragma GCC unroll 4
    for (int k = 0; k < N; ++k) v[k].store(to + k * V::size());
  } else if constexpr (kPairs) {
#pragma GCC unroll 4
    for (int k = 0; k < N; k += 2) {
      at::vec::convert_from_float<S>(v[k], v[std::min(k + 1, N - 1)]).store(to + k * V::size());
    }
  } else {
    alignas(64) T wide[kWhole];
#pragma GCC unroll 4
    for (int k = 0; k < N; ++k) v[k].store(wide + k * V::size());
    for (int64_t i = 0; i < kWhole; ++i) to[i] = static_cast<S>(wide[i]);
  }
  if (!direct) copy(p, some, n, stream);
}

template <StepForm kForm, class Own, int N, class T>
PYGEN_INLINE void store_vectors(const Written& to, int64_t at, const Vec<T>* v, int64_t n, bool stream) {
  if constexpr (kForm == StepForm::kUsual) return store_vectors<N>(static_cast<Own*>(to.data) + at, v, n, false);
  with_storage(Storage(to.type), [&](auto s) __attribute__((always_inline)) {
    using S = decltype(s);
    if constexpr (!std::is_same_v<S, uint8_t>) store_vectors<N>(static_cast<S*>(to.data) + at, v, n, stream);
  });
}

// --- coefficients ----------------------------------------------------------------------------------------------------

template <class T>
struct StepRow {
  T a, e, b, d, past[kStepHistory];
};

// Of a run.
template <class T>
struct StepCoefficients {
  T weight[kStepOutputs], p, q, clip, known, known_noise, scale, log_std, slope;
  StepRow<T> row[kStepResults];
  T rescale = 1, threshold = 1;

  inline void read(const StepArgs& a, int64_t run) {
    const int64_t start = (a.index ? a.index[run] : a.row) * a.columns;
    if (a.wide) {
      read(a, static_cast<const double*>(a.table) + start);
    } else {
      read(a, static_cast<const float*>(a.table) + start);
    }
    if (a.rescale) rescale = T(a.rescale[run / a.sample_runs]);
    if (a.threshold) threshold = T(a.threshold[run / a.sample_runs]);
  }

  template <class S>
  inline void read(const StepArgs& a, const S* c) {
    for (int j = 0; j < a.outputs; ++j) weight[j] = T(*c++);
    for (T* t : {&p, &q, &clip, &known, &known_noise, &scale, &log_std, &slope}) *t = T(*c++);
    for (int k = 0; k < a.results; ++k) {
      StepRow<T>& r = row[k];
      for (T* t : {&r.a, &r.e, &r.b, &r.d}) *t = T(*c++);
      for (int i = 0; i < a.history; ++i) r.past[i] = T(*c++);
    }
  }
};

// --- the step --------------------------------------------------------------------------------------------------------

// v[k] = f(k) for N vectors, which do not wait for each other
template <int N, class T, class F>
PYGEN_INLINE void each_vector(Vec<T>* v, const F& f) {
#pragma GCC unroll 4
  for (int k = 0; k < N; ++k) v[k] = f(k);
}

// n elements from i on, at most N vectors. noise: element 0 of it is element `first`.
template <StepForm kForm, class Own, int N, class T>
PYGEN_INLINE void step_vectors(const StepArgs& a, const StepCoefficients<T>& c, const Stored& noise, int64_t first,
                               int64_t i, int64_t n) {
  using V = Vec<T>;
  using at::vec::fmadd;
  constexpr bool kUsual = kForm == StepForm::kUsual;
  V x[N], g[N], x0[N];
  load_vectors<kForm, Own, N>(x, a.x, i, n);
  if constexpr (kUsual) {
    load_vectors<kForm, Own, N>(g, a.output[0], i, n);
    each_vector<N>(g, [&](int k) { return fmadd(V(c.weight[0]), g[k], V(T(0))); });  // as below: the sign of a 0
  } else {
    each_vector<N>(g, [](int) { return V(T(0)); });
    for (int j = 0; j < a.outputs; ++j) {
      V m[N];
      load_vectors<kForm, Own, N>(m, a.output[j], i, n);
      each_vector<N>(g, [&](int k) { return fmadd(V(c.weight[j]), m[k], g[k]); });
    }
  }
  if (!kUsual && a.rescale) each_vector<N>(g, [&](int k) { return g[k] * V(c.rescale); });
  each_vector<N>(x0, [&](int k) { return fmadd(V(c.p), x[k], V(c.q) * g[k]); });
  if (c.clip != std::numeric_limits<T>::infinity()) {
    const V high(c.clip), low(-c.clip);
    each_vector<N>(x0, [&](int k) { return at::vec::clamp(x0[k], low, high); });
  }
  if (!kUsual && a.threshold) {
    const V s(c.threshold), low(-c.threshold);
    each_vector<N>(x0, [&](int k) { return at::vec::clamp(x0[k], low, s) / s; });
  }

  V z[N], kept[N];
  if constexpr (kForm == StepForm::kAny) {
    if (noise.data) load_vectors<kForm, Own, N>(z, noise, i - first, n);
    if (a.known.data) {
      load_vectors<kForm, Own, N>(kept, a.known, i, n);
      each_vector<N>(kept, [&](int k) { return V(c.known) * kept[k]; });
      if (a.known_noise.data) {
        V own[N];
        load_vectors<kForm, Own, N>(own, a.known_noise, i, n);
        each_vector<N>(kept, [&](int k) { return fmadd(V(c.known_noise), own[k], kept[k]); });
      } else if (noise.data) {
        each_vector<N>(kept, [&](int k) { return fmadd(V(c.known_noise), z[k], kept[k]); });
      }
    }
    if (noise.data && a.log_std.data) {
      V l[N];
      load_vectors<kForm, Own, N>(l, a.log_std, i, n);
      each_vector<N>(z, [&](int k) {
        const Exp<T> e = exp_parts(fmadd(V(c.slope), l[k], V(c.log_std)));
        return scale2(e.m, e.n) * z[k];
      });
    }
  }

  for (int r = 0; r < a.results; ++r) {
    const StepRow<T>& row = c.row[r];
    V y[N];
    each_vector<N>(y, [&](int k) { return fmadd(V(row.b), x0[k], fmadd(V(row.e), g[k], V(row.a) * x[k])); });
    if (kForm == StepForm::kAny && noise.data) each_vector<N>(y, [&](int k) { return fmadd(V(row.d), z[k], y[k]); });
    for (int h = 0; h < a.history; ++h) {
      V past[N];
      load_vectors<kForm, Own, N>(past, a.past[h], i, n);
      each_vector<N>(y, [&](int k) { return fmadd(V(row.past[h]), past[k], y[k]); });
    }
    if (kForm == StepForm::kAny && r == 0 && a.known.data) {
      V m[N];
      load_vectors<kForm, Own, N>(m, a.mask, i, n);
      each_vector<N>(y, [&](int k) { return fmadd(m[k], kept[k], (V(T(1)) - m[k]) * y[k]); });
    }
    store_vectors<kForm, Own, N>(a.result[r], i, y, n, a.stream);
    if (r == 0 && a.copies) {
      V u[N];
      each_vector<N>(u, [&](int k) { return V(c.scale) * y[k]; });
      for (int64_t batch = 0; batch < a.copies; ++batch) {
        store_vectors<kForm, Own, N>(a.next, batch * a.elements + i, u, n, a.stream);
      }
    }
  }
}

template <StepForm kForm, class Own, class T>
void step_elements(const StepArgs& a, int64_t begin, int64_t end) {
  constexpr int64_t kVector = Vec<T>::size(), kGroup = kStepVectors * kVector;
  StepCoefficients<T> c;
  int64_t read = -1;  // the run that c is of
  alignas(64) float drawn[kForm == StepForm::kAny ? kStepBlock : 1];
  Stored noise = a.noise;
  int64_t first = 0;
  for (int64_t block = begin; block < end; block += kStepBlock) {
    const int64_t stop = std::min(end, block + kStepBlock);
    if (kForm == StepForm::kAny && a.draws) {
      fill_values<Distribution::kNormal>(a.place, block, stop, drawn);
      noise = {drawn, Storage::kF32};
      first = block;
    }
    for (int64_t i = block; i < stop;) {
      const int64_t run = i / a.run, last = std::min(stop, (run + 1) * a.run);
      if (run != read) c.read(a, run), read = run;
      for (; i + kGroup <= last; i += kGroup) step_vectors<kForm, Own, kStepVectors>(a, c, noise, first, i, kGroup);
      for (; i < last; i += kVector) step_vectors<kForm, Own, 1>(a, c, noise, first, i, std::min(kVector, last - i));
      i = last;
    }
  }
  if (a.stream) stream_fence();
}

// Whether a step has the form kUsual with tensors of one storage type.
inline bool usual(const StepArgs& a, Storage type) {
  const auto read = [&](const Stored& s) { return s.type == type; };
  const auto made = [&](const Written& w) { return Storage(w.type) == type; };
  return a.outputs == 1 && !a.rescale && !a.threshold && !a.stream && read(a.x) && read(a.output[0]) &&
         std::all_of(a.past, a.past + a.history, read) && std::all_of(a.result, a.result + a.results, made) &&
         (!a.copies || made(a.next));
}

template <class T>
void diffusion_step(const StepArgs& a, int64_t begin, int64_t end) {
  const bool plain = !a.draws && !a.noise.data && !a.known.data;
  if (!plain) return step_elements<StepForm::kAny, T, T>(a, begin, end);
  const auto done = [&](auto s) {
    using S = decltype(s);
    if constexpr (std::is_same_v<S, T> || (std::is_same_v<T, float> && sizeof(S) == 2)) {
      step_elements<StepForm::kUsual, S, T>(a, begin, end);
      return true;
    }
    return false;
  };
  if (usual(a, a.x.type) && with_storage(a.x.type, done)) return;
  step_elements<StepForm::kPlain, T, T>(a, begin, end);
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
