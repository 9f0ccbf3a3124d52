// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC'11) and what is made of its words: the steps of
// pygen/reference/random.py, which explains them. IEEE additions, multiplications, square roots and conversions alone,
// so every ISA tier and every GPU gives the same bits, if the compiler fuses nothing: -ffp-contract=off, --fmad=false
// in nvcc. No torch headers.
//
// Templates over the words: uint32_t, or vectors of them for which a CPU tier has the same primitives.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __CUDACC__
#define PYGEN_HD __host__ __device__ __forceinline__
#else
#define PYGEN_HD inline __attribute__((always_inline))
#endif

namespace pygen {
namespace philox {
namespace {

constexpr uint32_t kMul0 = 0xD2511F53u, kMul1 = 0xCD9E8D57u, kKey0 = 0x9E3779B9u, kKey1 = 0xBB67AE85u;

// Element e of a sample: word (e % 64) / 16 of the counter (16 (e / 64) + e % 16, step, sample). So lanes hold
// consecutive counters and every store is contiguous.
struct Words {
  uint32_t x, y, z, w;
};

PYGEN_HD Words encrypt(Words c, uint64_t seed) {
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int r = 0; r < 10; ++r, k0 += kKey0, k1 += kKey1) {
    const uint64_t a = uint64_t(kMul0) * c.x, b = uint64_t(kMul1) * c.z;
    c = {uint32_t(b >> 32) ^ c.y ^ k0, uint32_t(b), uint32_t(a >> 32) ^ c.w ^ k1, uint32_t(a)};
  }
  return c;
}

// --- primitives ------------------------------------------------------------------------------------------------------

PYGEN_HD float as_float(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}
PYGEN_HD uint32_t as_bits(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}
PYGEN_HD float from_unsigned(uint32_t u) { return float(u); }
PYGEN_HD float from_signed(uint32_t u) { return float(int32_t(u)); }
PYGEN_HD uint32_t to_signed(float f) { return uint32_t(int32_t(f)); }  // towards zero
PYGEN_HD uint32_t shift_signed(uint32_t u, int n) { return uint32_t(int32_t(u) >> n); }
PYGEN_HD bool equal(uint32_t a, uint32_t b) { return a == b; }
PYGEN_HD bool less(float a, float b) { return a < b; }
PYGEN_HD float select(bool mask, float yes, float no) { return mask ? yes : no; }
PYGEN_HD float root(float f) {
#ifdef __CUDA_ARCH__
  return __fsqrt_rn(f);
#else
  return __builtin_sqrtf(f);
#endif
}

// --- functions -------------------------------------------------------------------------------------------------------

constexpr float kLog2Low = -2.12194440e-4f, kLog2High = 0.693359375f;
constexpr float kUnit = 2.3283064365386963e-10f;  // 2^-32

// log(1 + x) - x for 1 + x in [sqrt(1/2), sqrt(2)]
template <class F>
PYGEN_HD F log1p_rest(F x) {
  const F z = x * x;
  F p = x * 7.0376836292e-2f + -1.1514610310e-1f;
  p = p * x + 1.1676998740e-1f;
  p = p * x + -1.2420140846e-1f;
  p = p * x + 1.4249322787e-1f;
  p = p * x + -1.6668057665e-1f;
  p = p * x + 2.0000714765e-1f;
  p = p * x + -2.4999993993e-1f;
  p = p * x + 3.3333331174e-1f;
  return p * x * z - z * 0.5f;
}

// log(2^e (1 + x))
template <class F>
PYGEN_HD F join(F x, F e) {
  return x + (log1p_rest(x) + e * kLog2Low) + e * kLog2High;
}

template <class F, class U>
struct Split {
  F x;
  U e;
};

// 2^-scale f = 2^e (1 + x) with 1 + x in [sqrt(1/2), sqrt(2)], for normal f > 0
template <class F>
PYGEN_HD auto split(F f, uint32_t scale) {
  const auto b = as_bits(f) - (0x3f3504f3u + (scale << 23));
  return Split<F, decltype(as_bits(f))>{as_float((b & 0x007fffffu) + 0x3f3504f3u) - 1.0f, shift_signed(b, 23)};
}

// log of (w + 1/2) / 2^32; near 1 from the complement of w, which is below 2^31 there
template <class U>
PYGEN_HD auto log_unit(U w) {
  const auto s = split(from_unsigned(w) + 0.5f, 32);
  const auto rest = (from_signed(~w) + 0.5f) * -kUnit;
  return join(select(equal(s.e, 0u), rest, s.x), from_signed(s.e));
}

template <class U>
PYGEN_HD auto uniform(U w) {
  return from_signed(w >> 8) * 5.9604644775390625e-8f;
}

template <class U, class F>
PYGEN_HD void normal(U a, U b, F& cosine, F& sine) {
  const F r = root(log_unit(a) * -2.0f);
  const U quadrant = (b + 0x20000000u) >> 30;
  const F x = from_signed(b << 2) * 3.6572952e-10f;  // pi/2 / 2^32; x in [-pi/4, pi/4]
  const F z = x * x;
  F s = z * -1.9515295891e-4f + 8.3321608736e-3f;
  s = (s * z + -1.6666654611e-1f) * z * x + x;
  F c = z * 2.443315711809948e-5f + -1.388731625493765e-3f;
  c = (c * z + 4.166664568298827e-2f) * z * z - z * 0.5f + 1.0f;
  const auto odd = equal(quadrant & 1u, 1u);
  cosine = r * as_float(as_bits(select(odd, s, c)) ^ (((quadrant + 1u) & 2u) << 30));
  sine = r * as_float(as_bits(select(odd, c, s)) ^ ((quadrant & 2u) << 30));
}

template <class U>
PYGEN_HD auto logistic(U w) {
  const U upper = shift_signed(w, 31), h = w ^ upper;
  const auto f = from_signed(h) + 0.5f, s = (from_signed(h ^ 0x7fffffffu) + 0.5f) * 4.656612873077393e-10f;
  const auto low = split(f, 31);
  const auto x = select(equal(low.e, 0u), s * -1.0f, low.x);
  const auto near = less(s, s * 0.0f + 0.41421356f);
  const auto rest = select(near, s, f * -kUnit), e = from_signed(low.e) + select(near, f * 0.0f, f * 0.0f - 1.0f);
  const auto y = (x - rest) + ((log1p_rest(x) - log1p_rest(rest)) + e * kLog2Low) + e * kLog2High;
  return as_float(as_bits(y) ^ (upper & 0x80000000u));
}

template <class U>
PYGEN_HD auto gumbel(U w) {
  const auto s = split(log_unit(w) * -1.0f, 0);
  return join(s.x, from_signed(s.e)) * -1.0f;
}

// 2^power e^x; x and the result within the exponents of normal numbers
template <class F>
PYGEN_HD F exp(F x, uint32_t power = 0) {
  const F shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
  const F r = x - n * kLog2High - n * kLog2Low;
  F p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return (p * r * r + r + 1.0f) * as_float((as_bits(shifted) - 0x4b400000u + (power + 127u)) << 23);
}

// round(2^30 e^x) for x <= 0; x that is NaN gives anything
PYGEN_HD uint32_t exp_units(float x) { return to_signed(exp(x < -32.0f ? -32.0f : x, 30) + 0.5f); }

}  // namespace
}  // namespace philox
}  // namespace pygen
