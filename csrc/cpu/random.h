// Kernels of the random stream, one ISA tier: distributions in every storage type, draws from given ones.
#pragma once
#include <limits>

#include "categorical.h"
#include "random_args.h"
#include "stream.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kDraws = 1024;  // words drawn at once: they stay in the first-level cache

// --- storage ---------------------------------------------------------------------------------------------------------

template <class F>
inline void with_float_type(FloatType type, const F& f) {
  if (type == FloatType::kF32) f(float{});
  if (type == FloatType::kF64) f(double{});
  if (type == FloatType::kBF16) f(c10::BFloat16{});
  if (type == FloatType::kF16) f(c10::Half{});
}

template <class T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

// dst[i] = T(src[i])
template <class T, class W>
inline void put(T* __restrict dst, const W* __restrict src, int64_t n) {
  if constexpr (std::is_same_v<T, W> || sizeof(T) == 2) {
    store(dst, src, 1, nullptr, n, false);
  } else {
    for (int64_t i = 0; i < n; ++i) dst[i] = T(src[i]);
  }
}

template <Distribution D>
inline void fill_as(const Stream& s, FloatType type, void* out, int64_t begin, int64_t end) {
  with_float_type(type, [&](auto t) {
    using T = decltype(t);
    T* p = static_cast<T*>(out) + begin;
    if constexpr (std::is_same_v<T, float>) return fill_values<D>(s, begin, end, p);
    alignas(64) float some[kDraws];
    for (int64_t i = begin; i < end; i += kDraws, p += kDraws) {
      const int64_t n = std::min(kDraws, end - i);
      fill_values<D>(s, i, i + n, some);
      if constexpr (D == Distribution::kUniform && sizeof(T) == 2) {  // towards zero: the result stays below 1
        constexpr uint32_t kKept = ~0u << (std::is_same_v<T, c10::Half> ? 13 : 16);
        for (int64_t k = 0; k < n; ++k) some[k] = philox::as_float(philox::as_bits(some[k]) & kKept);
      }
      put(p, some, n);
    }
  });
}

void random_fill(const Stream& s, Distribution d, FloatType type, void* out, int64_t begin, int64_t end) {
  switch (d) {
    case Distribution::kBits:
      return fill_values<Distribution::kBits>(s, begin, end, static_cast<uint32_t*>(out) + begin);
    case Distribution::kUniform:
      return fill_as<Distribution::kUniform>(s, type, out, begin, end);
    case Distribution::kNormal:
      return fill_as<Distribution::kNormal>(s, type, out, begin, end);
    case Distribution::kLogistic:
      return fill_as<Distribution::kLogistic>(s, type, out, begin, end);
    case Distribution::kGumbel:
      return fill_as<Distribution::kGumbel>(s, type, out, begin, end);
  }
}

// --- bernoulli -------------------------------------------------------------------------------------------------------

// 1 where w < 2^32 p, exactly; whether all p are probabilities
PYGEN_INLINE bool compare(const uint32_t* __restrict w, const float* __restrict p, float* __restrict out, int64_t n) {
  uint32_t bad = 0;
#pragma omp simd reduction(| : bad)
  for (int64_t i = 0; i < n; ++i) {
    const float q = p[i], t = q * 4294967296.0f;
    const int32_t high = int32_t(t * 1.52587890625e-5f);  // t = 2^16 high + low, the least integer from there on:
    const float low = t - float(high) * 65536.0f;
    const int32_t floor = int32_t(low);
    const uint32_t last = (uint32_t(high) << 16) + uint32_t(floor) - (float(floor) < low ? 0u : 1u);
    out[i] = (q > 0.0f) & (w[i] <= last) ? 1.0f : 0.0f;
    bad |= (q >= 0.0f) & (q <= 1.0f) ? 0u : 1u;
  }
  return bad == 0;
}

PYGEN_INLINE bool compare(const uint32_t* __restrict w, const double* __restrict p, double* __restrict out, int64_t n) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    out[i] = double(w[i]) < p[i] * 4294967296.0 ? 1.0 : 0.0;
    bad |= (p[i] >= 0.0) & (p[i] <= 1.0) ? 0u : 1u;
  }
  return bad == 0;
}

template <class T>
bool bernoulli(const Stream& s, const void* p_, int64_t p_sample, int64_t p_step, void* out_, int64_t begin,
               int64_t end) {
  using W = Wide<T>;
  const T* p = static_cast<const T*>(p_);
  T* out = static_cast<T*>(out_);
  alignas(64) uint32_t words[kDraws];
  alignas(64) W probabilities[kDraws], draws[kDraws];
  bool fine = true;
  for (int64_t i = begin; i < end; i += kDraws) {
    const int64_t n = std::min(kDraws, end - i);
    fill_values<Distribution::kBits>(s, i, i + n, words);
    for (int64_t k = 0; k < n;) {  // row by row, unless p lies as the result does
      const int64_t row = (i + k) / s.row, element = (i + k) % s.row;
      const int64_t m = p_step && p_sample == s.row ? n : std::min(n - k, s.row - element);
      const T* from = p + row * p_sample + element * p_step;
      if (p_step) {
        if constexpr (std::is_same_v<T, W>) {
          std::memcpy(probabilities + k, from, size_t(m) * sizeof(T));
        } else {
          load(probabilities + k, from, 1, nullptr, m);
        }
      } else {
        std::fill_n(probabilities + k, m, W(*from));
      }
      k += m;
    }
    fine &= compare(words, probabilities, draws, n);
    put(out + i, draws, n);
  }
  return fine;
}

// --- categorical -----------------------------------------------------------------------------------------------------

template <class X>
bool categorical(const Stream& s, const void* logits, int64_t categories, int64_t* out, int64_t begin, int64_t end) {
  alignas(64) uint32_t words[kDraws];
  const X* p = static_cast<const X*>(logits);
  bool fine = true;
  for (int64_t i = begin; i < end; i += kDraws) {
    const int64_t n = std::min(kDraws, end - i);
    fill_values<Distribution::kBits>(s, i, i + n, words);
    for (int64_t k = 0; k < n; ++k) {
      out[i + k] = categorical_row(p + (i + k) * categories, categories, words[k]);
      fine &= out[i + k] >= 0;
    }
  }
  return fine;
}

// --- dequantize ------------------------------------------------------------------------------------------------------

// y = (x + u) scale + shift, in place of u; whether all x are levels
template <class X, class W>
PYGEN_INLINE bool add_noise(const X* __restrict x, W* __restrict u, int64_t n, X last, W scale, W shift) {
  uint32_t bad = 0;
#pragma omp simd reduction(| : bad)
  for (int64_t k = 0; k < n; ++k) {
    bad |= x[k] > last ? 1u : 0u;
    if constexpr (std::is_signed_v<X>) bad |= x[k] < X(0) ? 1u : 0u;
    u[k] = (W(x[k]) + u[k]) * scale + shift;
  }
  return bad == 0;
}

template <class X>
bool dequantize(const Stream& s, const void* x_, const void* noise_, int64_t noise_step, int64_t levels, double scale,
                double shift, FloatType type, void* out, int64_t begin, int64_t end) {
  const X* x = static_cast<const X*>(x_);
  const X last = X(std::min<int64_t>(levels - 1, std::numeric_limits<X>::max()));
  int bits = 24;  // of noise: float32 holds 24 of level and noise
  while (bits > 0 && (levels - 1) >> (24 - bits)) --bits;
  const float unit = bits ? 1.0f / float(1 << bits) : 0.0f;
  const int drop = bits ? 32 - bits : 31;
  bool fine = true;
  with_float_type(type, [&](auto t) {
    using T = decltype(t);
    using W = Wide<T>;
    const T* noise = static_cast<const T*>(noise_);
    alignas(64) uint32_t words[kDraws];
    alignas(64) W y[kDraws];
    for (int64_t i = begin; i < end; i += kDraws) {
      const int64_t n = std::min(kDraws, end - i);
      if (noise) {
        for (int64_t k = 0; k < n; ++k) y[k] = W(noise[(i + k) * noise_step]);
      } else {
        fill_values<Distribution::kBits>(s, i, i + n, words);
        for (int64_t k = 0; k < n; ++k) y[k] = W(float(int32_t(words[k] >> drop)) * unit);
      }
      fine &= add_noise(x + i, y, n, last, W(scale), W(shift));
      put(static_cast<T*>(out) + i, y, n);
    }
  });
  return fine;
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
