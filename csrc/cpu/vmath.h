// Vector maths that at::vec lacks, on top of it: exp as mantissa and exponent, exact scaling by powers of two, a fast
// tanh, sums of logarithms by products, streaming stores. Same inline namespace as at::vec's: one copy per ISA tier.
//
// Measured worst errors against float64 (tests/coupling/test_vmath.py): exp 0.96 ulp, tanh 0.88 ulp, atan 2.17 ulp.
#pragma once
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

// GCC leaves functions that return several vectors as calls, with every vector through memory.
#define PYGEN_INLINE inline __attribute__((always_inline))

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

template <class T>
using Vec = at::vec::Vectorized<T>;

template <class X>  // of a storage type
using Arithmetic = std::conditional_t<std::is_same_v<X, double>, double, float>;

constexpr int64_t kBlock = 512;  // elements that are handled together

constexpr int64_t tiles(int64_t n, int64_t size) { return (n + size - 1) / size; }  // of this size, for n

// Calls f(i, full vector count or tail count as a constant or a number) over n elements.
template <class T, class F>
PYGEN_INLINE void for_vectors(int64_t n, const F& f) {
  constexpr int64_t W = Vec<T>::size();
  int64_t i = 0;
  for (; i + W <= n; i += W) f(i, std::integral_constant<int64_t, W>());
  if (i < n) f(i, n - i);
}

// Comparisons as the ISA holds them: a mask register, or a vector.
#if defined(CPU_CAPABILITY_AVX512)
PYGEN_INLINE __mmask16 less(const Vec<float>& a, const Vec<float>& b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
PYGEN_INLINE __mmask8 less(const Vec<double>& a, const Vec<double>& b) { return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ); }
PYGEN_INLINE __mmask16 less_equal(const Vec<float>& a, const Vec<float>& b) {
  return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ);
}
PYGEN_INLINE __mmask8 less_equal(const Vec<double>& a, const Vec<double>& b) {
  return _mm512_cmp_pd_mask(a, b, _CMP_LE_OQ);
}
PYGEN_INLINE __mmask16 equal(const Vec<float>& a, const Vec<float>& b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
PYGEN_INLINE __mmask8 equal(const Vec<double>& a, const Vec<double>& b) { return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ); }
PYGEN_INLINE Vec<float> select(__mmask16 mask, const Vec<float>& yes, const Vec<float>& no) {
  return _mm512_mask_blend_ps(mask, no, yes);
}
PYGEN_INLINE Vec<double> select(__mmask8 mask, const Vec<double>& yes, const Vec<double>& no) {
  return _mm512_mask_blend_pd(mask, no, yes);
}
#else
template <class T>
PYGEN_INLINE Vec<T> less(const Vec<T>& a, const Vec<T>& b) {
  return a < b;
}
template <class T>
PYGEN_INLINE Vec<T> less_equal(const Vec<T>& a, const Vec<T>& b) {
  return a <= b;
}
template <class T>
PYGEN_INLINE Vec<T> equal(const Vec<T>& a, const Vec<T>& b) {
  return a == b;
}
template <class T>
PYGEN_INLINE Vec<T> select(const Vec<T>& mask, const Vec<T>& yes, const Vec<T>& no) {
  return Vec<T>::blendv(no, yes, mask);
}
#endif

// --- exact scaling ---------------------------------------------------------------------------------------------------

#if defined(CPU_CAPABILITY_AVX512)
PYGEN_INLINE Vec<float> scale2(const Vec<float>& x, const Vec<float>& n) { return _mm512_scalef_ps(x, n); }
PYGEN_INLINE Vec<double> scale2(const Vec<double>& x, const Vec<double>& n) { return _mm512_scalef_pd(x, n); }
#else
// 2^n for integral n within the exponents of normal numbers
#if defined(CPU_CAPABILITY_AVX2)
PYGEN_INLINE Vec<float> pow2(const Vec<float>& n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
PYGEN_INLINE Vec<double> pow2(const Vec<double>& n) {
  const __m256i i = _mm256_cvtepi32_epi64(_mm256_cvtpd_epi32(n));
  return _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_add_epi64(i, _mm256_set1_epi64x(1023)), 52));
}
#else
template <class T>
PYGEN_INLINE Vec<T> pow2(const Vec<T>& n) {
  alignas(64) T v[Vec<T>::size()];
  n.store(v);
  for (T& e : v) {
    if constexpr (sizeof(T) == 4) {
      const uint32_t bits = uint32_t(int32_t(e) + 127) << 23;
      std::memcpy(&e, &bits, 4);
    } else {
      const uint64_t bits = uint64_t(int64_t(e) + 1023) << 52;
      std::memcpy(&e, &bits, 8);
    }
  }
  return Vec<T>::loadu(v);
}
#endif
// x 2^n, rounded once for normal results; n is integral or NaN
template <class T>
PYGEN_INLINE Vec<T> scale2(const Vec<T>& x, const Vec<T>& n) {
  constexpr T kMax = sizeof(T) == 4 ? 126 : 1022;
  const Vec<T> lo(-kMax), hi(kMax);
  Vec<T> part = at::vec::clamp(select(n.isnan(), Vec<T>(0), n), lo, hi), rest = n - part;
  Vec<T> y = x * pow2(part);
  if (rest.eq(Vec<T>(0)).zero_mask() != 0) {  // some lane is still to be scaled (or NaN, as x then is)
    for (int i = 0; i < 3; ++i) {
      part = at::vec::clamp(select(rest.isnan(), Vec<T>(0), rest), lo, hi);
      rest = rest - part;
      y = y * pow2(part);
    }
  }
  return y;
}
#endif

// --- exp, expm1, tanh, atan ------------------------------------------------------------------------------------------

// e^u = (1 + q) 2^n with 1 + q in [1/sqrt 2, sqrt 2]; n = 0 and q = e^u - 1, as exact as e^u, near u = 0. Where u is
// clamped every product of e^u with a finite number is 0 or infinite anyway.
template <class T>
struct Expm1 {
  Vec<T> q, n;
};

// Of any |u| below 2^20.
PYGEN_INLINE Expm1<float> expm1_rest(const Vec<float>& x) {
  using V = Vec<float>;
  using at::vec::fmadd;
  const V n = (x * V(1.44269504088896341f)).round();
  const V r = fmadd(n, V(2.12194440e-4f), fmadd(n, V(-0.693359375f), x));
  V p(1.9875691500e-4f);  // Cephes expf
  p = fmadd(p, r, V(1.3981999507e-3f));
  p = fmadd(p, r, V(8.3334519073e-3f));
  p = fmadd(p, r, V(4.1665795894e-2f));
  p = fmadd(p, r, V(1.6666665459e-1f));
  p = fmadd(p, r, V(5.0000001201e-1f));
  return {fmadd(p, r * r, r), n};
}

PYGEN_INLINE Expm1<double> expm1_rest(const Vec<double>& x) {
  using V = Vec<double>;
  using at::vec::fmadd;
  const V n = (x * V(1.4426950408889634073599)).round();
  const V r = fmadd(n, V(-1.42860682030941723212e-6), fmadd(n, V(-6.93145751953125e-1), x));
  const V z = r * r;  // Cephes exp: 1 + 2 r P / (Q - r P)
  V p = fmadd(z, V(1.26177193074810590878e-4), V(3.02994407707441961300e-2));
  p = fmadd(p, z, V(9.99999999999999999910e-1)) * r;
  V q = fmadd(z, V(3.00198505138664455042e-6), V(2.52448340349684104192e-3));
  q = fmadd(q, z, V(2.27265548208155028766e-1));
  q = fmadd(q, z, V(2.00000000000000000005e0));
  const V half = p / (q - p);
  return {half + half, n};
}

template <bool kNegative = false, class T>  // kNegative: u <= 0
PYGEN_INLINE Expm1<T> expm1_parts(const Vec<T>& u) {
  const Vec<T> limit(sizeof(T) == 4 ? 250 : 2000);
  return expm1_rest(kNegative ? at::vec::clamp_min(u, limit.neg()) : at::vec::clamp(u, limit.neg(), limit));
}

// e^u = m 2^n with m in [1/sqrt 2, sqrt 2]
template <class T>
struct Exp {
  Vec<T> m, n;
};

template <bool kNegative = false, class T>
PYGEN_INLINE Exp<T> exp_parts(const Vec<T>& u) {
  const Expm1<T> e = expm1_parts<kNegative>(u);
  return {e.q + Vec<T>(T(1)), e.n};
}

template <class T>
PYGEN_INLINE Vec<T> expm1(const Vec<T>& u) {  // u <= 0
  const Expm1<T> e = expm1_parts<true>(u);
  const Vec<T> one(T(1)), p = scale2(one, e.n);
  return at::vec::fmadd(p, e.q, p - one);
}

template <class T>
constexpr T kLeastExponent = sizeof(T) == 4 ? T(-87) : T(-708);  // e^ of it is normal

// x 2^n where n and the result are within the exponents of normal numbers
template <class T>
PYGEN_INLINE Vec<T> scale2_normal(const Vec<T>& x, const Vec<T>& n) {
#if defined(CPU_CAPABILITY_AVX512)
  return scale2(x, n);
#else
  return x * pow2(n);
#endif
}

// e^u for u up to 80, or 700 of float64; of u below kLeastExponent e^kLeastExponent
template <class T>
PYGEN_INLINE Vec<T> exp_normal(const Vec<T>& u) {
  const Expm1<T> e = expm1_rest(at::vec::clamp_min(u, Vec<T>(kLeastExponent<T>)));
  return scale2_normal(e.q + Vec<T>(1), e.n);
}

#if defined(CPU_CAPABILITY_AVX512)
// x - floor(x)
PYGEN_INLINE Vec<float> fraction(const Vec<float>& x) {
  return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}
PYGEN_INLINE Vec<double> fraction(const Vec<double>& x) {
  return _mm512_reduce_pd(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}
#endif

template <class T>
constexpr T kLog2E = T(1.4426950408889634073599);
template <class T>
constexpr T kLeastExponent2 = sizeof(T) == 4 ? T(-126) : T(-1022);  // 2^ of it is normal

// 2^r for r in [0, 1): the polynomial of least relative error that is 1 at 0 (Remez)
PYGEN_INLINE Vec<float> exp2_fraction(const Vec<float>& r) {
  using V = Vec<float>;
  using at::vec::fmadd;
  V p(2.16129149696e-4f);
  p = fmadd(p, r, V(1.24678464508e-3f));
  p = fmadd(p, r, V(9.67545156522e-3f));
  p = fmadd(p, r, V(5.54852806202e-2f));
  p = fmadd(p, r, V(2.40229305552e-1f));
  p = fmadd(p, r, V(6.93147044443e-1f));
  return fmadd(p, r, V(1.f));
}

PYGEN_INLINE Vec<double> exp2_fraction(const Vec<double>& r) {
  using V = Vec<double>;
  using at::vec::fmadd;
  V p(6.2634676739714015645e-10);
  p = fmadd(p, r, V(6.5595285107014307366e-9));
  p = fmadd(p, r, V(1.0253212619915602424e-7));
  p = fmadd(p, r, V(1.3208367265634951006e-6));
  p = fmadd(p, r, V(1.5253175057363969491e-5));
  p = fmadd(p, r, V(1.5403512309541489839e-4));
  p = fmadd(p, r, V(1.3333558629569363318e-3));
  p = fmadd(p, r, V(9.6181290995507498502e-3));
  p = fmadd(p, r, V(5.5504108665602257479e-2));
  p = fmadd(p, r, V(2.4022650695906330188e-1));
  p = fmadd(p, r, V(6.9314718055994592842e-1));
  return fmadd(p, r, V(1.));
}

// 2^t where that is a normal number. As exact as t: e^u by 2^(u log2 e) has an error of u eps.
template <class T>
PYGEN_INLINE Vec<T> exp2_normal(const Vec<T>& t) {
#if defined(CPU_CAPABILITY_AVX512)
  return scale2_normal(exp2_fraction(fraction(t)), t);  // takes the floor
#else
  const Vec<T> n = t.floor();
  return scale2_normal(exp2_fraction(t - n), n);
#endif
}

// a / b where b, 1 / b and the quotient are normal, within an ulp
#if defined(CPU_CAPABILITY_AVX512)
PYGEN_INLINE Vec<float> divide_normal(const Vec<float>& a, const Vec<float>& b) {
  using V = Vec<float>;
  const V guess = _mm512_rcp14_ps(b);
  const V inverse = _mm512_fmadd_ps(_mm512_fnmadd_ps(b, guess, V(1.f)), guess, guess);
  const V q = a * inverse;
  return _mm512_fmadd_ps(_mm512_fnmadd_ps(b, q, a), inverse, q);
}
#endif
template <class T>
PYGEN_INLINE Vec<T> divide_normal(const Vec<T>& a, const Vec<T>& b) {
  return a / b;
}

// e^-u and 1 - e^-u for u >= 0
template <class T>
PYGEN_INLINE void exp_complement(const Vec<T>& u, Vec<T>& power, Vec<T>& complement) {
  const Expm1<T> e = expm1_rest(at::vec::clamp_min(u.neg(), Vec<T>(kLeastExponent<T>)));
  const Vec<T> one(1), scale = scale2_normal(one, e.n), rest = scale * e.q;
  power = rest + scale;
  complement = (one - scale) - rest;
}

PYGEN_INLINE Vec<double> log_normal(const Vec<double>& x) { return x.log(); }

// log x of normal x > 0
PYGEN_INLINE Vec<float> log_normal(const Vec<float>& x) {
  using V = Vec<float>;
  using at::vec::fmadd;
#if defined(CPU_CAPABILITY_AVX512)
  const V n = _mm512_getexp_ps(x * V(1.41421356f));
  const V f = scale2(x, n.neg()) - V(1.f);
#elif defined(CPU_CAPABILITY_AVX2)
  const __m256i root = _mm256_set1_epi32(0x3f3504f3), bits = _mm256_sub_epi32(_mm256_castps_si256(x), root);
  const V n = _mm256_cvtepi32_ps(_mm256_srai_epi32(bits, 23));
  const __m256i low = _mm256_and_si256(bits, _mm256_set1_epi32(0x007fffff));
  const V f = V(_mm256_castsi256_ps(_mm256_add_epi32(low, root))) + fmadd(x, V(0.f), V(-1.f));  // NaN of NaN
#else
  alignas(64) float v[V::size()], e[V::size()];
  x.store(v);
  for (int64_t i = 0; i < V::size(); ++i) {
    int32_t bits;
    std::memcpy(&bits, v + i, 4);
    bits -= 0x3f3504f3;
    e[i] = float(bits >> 23);
    bits = (bits & 0x007fffff) + 0x3f3504f3;
    std::memcpy(v + i, &bits, 4);
  }
  const V n = V::loadu(e), f = V::loadu(v) + fmadd(x, V(0.f), V(-1.f));
#endif
  const V z = f * f;
  V p(7.0376836292e-2f);  // Cephes logf
  p = fmadd(p, f, V(-1.1514610310e-1f));
  p = fmadd(p, f, V(1.1676998740e-1f));
  p = fmadd(p, f, V(-1.2420140846e-1f));
  p = fmadd(p, f, V(1.4249322787e-1f));
  p = fmadd(p, f, V(-1.6668057665e-1f));
  p = fmadd(p, f, V(2.0000714765e-1f));
  p = fmadd(p, f, V(-2.4999993993e-1f));
  p = fmadd(p, f, V(3.3333331174e-1f));
  const V y = fmadd(z, fmadd(p, f, V(-0.5f)), n * V(-2.12194440e-4f));
  return fmadd(n, V(0.693359375f), f + y);
}

// log(1 + e) for e in [0, 1]
PYGEN_INLINE Vec<float> log1p_unit(const Vec<float>& e) {
  using V = Vec<float>;
  using at::vec::fmadd;
  V p(2.07294846e-3f);  // the polynomial of least relative error (Remez)
  p = fmadd(p, e, V(-1.363148341e-2f));
  p = fmadd(p, e, V(4.198136434e-2f));
  p = fmadd(p, e, V(-8.307406729e-2f));
  p = fmadd(p, e, V(1.246712177e-1f));
  p = fmadd(p, e, V(-1.612933517e-1f));
  p = fmadd(p, e, V(1.98979318e-1f));
  p = fmadd(p, e, V(-2.498857898e-1f));
  p = fmadd(p, e, V(3.333268977e-1f));
  p = fmadd(p, e, V(-4.999998729e-1f));
  return fmadd(p, e * e, e);
}

PYGEN_INLINE Vec<double> log1p_unit(const Vec<double>& e) {
  using V = Vec<double>;
  using at::vec::fmadd;
  const V one(1), z = one + e;
  // with what rounding z lost, which is so little that 1 / z may be a line
  return fmadd(e - (z - one), fmadd(z, V(-0.5), V(1.5)), log_normal(z));
}

PYGEN_INLINE Vec<double> tanh(const Vec<double>& x) { return x.tanh(); }

PYGEN_INLINE Vec<float> tanh(const Vec<float>& x) {
  using V = Vec<float>;
  using at::vec::fmadd;
  const V a = x.abs(), z = x * x;
  V p(-5.70498872745e-3f);  // Cephes tanhf, |x| < 0.625
  p = fmadd(p, z, V(2.06390887954e-2f));
  p = fmadd(p, z, V(-5.37397155531e-2f));
  p = fmadd(p, z, V(1.33314422036e-1f));
  p = fmadd(p, z, V(-3.33332819422e-1f));
  const V small = fmadd(p * z, x, x);
  // 1 - d with d = 2 / (e^2a + 1), whose roundings are added up: p q is what p = 2^n lacks to e^2a
  const V one(1.f), two(2.f);
  const Expm1<float> e = expm1_rest(at::vec::clamp_max(a + a, V(40.f)));
  const V power = scale2_normal(one, e.n), whole = power + one, bottom = fmadd(power, e.q, whole);
  const V d = two / bottom, lost = fmadd(power, e.q, whole - bottom);
  const V over = fmadd(d, lost, fmadd(d, bottom, two.neg()));  // d (e^2a + 1) - 2
  const V high = one - d, low = (one - high) - d;
  const V big = high + fmadd(over, d * V(0.5f), low);
  const V signed_big = select(less(x, V(0.f)), big.neg(), big);
  return select(less(a, V(0.625f)), small, signed_big);
}

PYGEN_INLINE Vec<double> atan(const Vec<double>& x) { return x.atan(); }

PYGEN_INLINE Vec<float> atan(const Vec<float>& x) {
  using V = Vec<float>;
  using at::vec::fmadd;
  const V a = x.abs(), one(1.f), zero(0.f);  // Cephes atanf: about 0, pi / 4 or pi / 2
  const auto middle = less(V(0.41421356237f), a), far = less(V(2.41421356237f), a);
  const V top = select(far, V(-1.f), select(middle, a - one, a));
  const V bottom = select(far, a, select(middle, a + one, one));
  const V base = select(far, V(1.57079632679f), select(middle, V(0.78539816339f), zero));
  const V r = top / bottom, z = r * r;
  V p(8.05374449538e-2f);
  p = fmadd(p, z, V(-1.38776856032e-1f));
  p = fmadd(p, z, V(1.99777106478e-1f));
  p = fmadd(p, z, V(-3.33329491539e-1f));
  const V rest = select(far, V(-4.37113883e-8f), select(middle, V(-2.18556941e-8f), zero));  // base + rest is exact
  const V y = base + (fmadd(p * z, r, r) + rest);
  return select(less(x, zero), y.neg(), y);
}

// --- sums, in double -------------------------------------------------------------------------------------------------

PYGEN_INLINE void widen(const Vec<float>& x, Vec<double>& lo, Vec<double>& hi) {
#if defined(CPU_CAPABILITY_AVX512)
  lo = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
  hi = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
#elif defined(CPU_CAPABILITY_AVX2)
  lo = _mm256_cvtps_pd(_mm256_castps256_ps128(x));
  hi = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
#else
  alignas(64) float v[Vec<float>::size()];
  alignas(64) double w[Vec<float>::size()];
  x.store(v);
  for (int64_t i = 0; i < Vec<float>::size(); ++i) w[i] = v[i];
  lo = Vec<double>::loadu(w);
  hi = Vec<double>::loadu(w + Vec<double>::size());
#endif
}

template <class T>
struct Sum;

template <>
struct Sum<double> {
  Vec<double> lanes{0.0};
  PYGEN_INLINE void add(const Vec<double>& x) { lanes = lanes + x; }
  double total() const {
    alignas(64) double v[Vec<double>::size()];
    lanes.store(v);
    double s = 0;
    for (double e : v) s += e;
    return s;
  }
};

template <>
struct Sum<float> {
  Vec<double> lo{0.0}, hi{0.0};
  PYGEN_INLINE void add(const Vec<float>& x) {
    Vec<double> a, b;
    widen(x, a, b);
    lo = lo + a;
    hi = hi + b;
  }
  double total() const { return Sum<double>{lo + hi}.total(); }
};

template <class T>
inline double sum_of(const T* x, int64_t n) {
  Sum<T> sum;
  int64_t i = 0;
  for (; i + Vec<T>::size() <= n; i += Vec<T>::size()) sum.add(Vec<T>::loadu(x + i));
  double rest = 0;
  for (; i < n; ++i) rest += double(x[i]);
  return sum.total() + rest;
}

// Sum of log q and of log(1 + e) over many vectors. In float32 the logarithm of a product, kept in double, so that the
// sum costs two conversions and two multiplications a vector and is exact to 1e-16 a factor; in float64 term by term.
template <class T>
struct LogSum;

template <>
struct LogSum<double> {
  Sum<double> sum;
  void add(const Vec<double>& q) { sum.add(q.log()); }
  void add1p(const Vec<double>& e) { sum.add(e.log1p()); }
  void flush() {}
  double total() const { return sum.total(); }
};

template <>
struct LogSum<float> {
  Vec<double> lo{1.0}, hi{1.0};
  Sum<double> sum;

  PYGEN_INLINE void add(const Vec<float>& q) {
    Vec<double> a, b;
    widen(q, a, b);
    lo = lo * a;
    hi = hi * b;
  }
  PYGEN_INLINE void add1p(const Vec<float>& e) {
    Vec<double> a, b;
    widen(e, a, b);
    lo = at::vec::fmadd(lo, a, lo);
    hi = at::vec::fmadd(hi, b, hi);
  }
  // To be called before a product leaves the range of double: 7 arbitrary float32 factors, or 1000 in [1, 2].
  void flush() {
    sum.add(lo.log() + hi.log());
    lo = hi = Vec<double>(1.0);
  }
  double total() {
    flush();
    return sum.total();
  }
};

// --- loads and stores that convert, gather and stream ----------------------------------------------------------------

constexpr int64_t kCall = 8;  // below, a loop is faster than a call of memcpy

// How elements lie: every step-th. Where that is every second, each is one of a pair of neighbours that no other row
// shares: second() if the later one; lone() if the last is a pair's first and has no neighbour.
class Spread {
 public:
  Spread() = default;  // not set: whoever has many of them need not pay for that
  PYGEN_INLINE Spread(int64_t step, bool second = false, bool lone = false) : code_(step * 4 + lone * 2 + second) {}

  PYGEN_INLINE int64_t step() const { return code_ >> 2; }
  PYGEN_INLINE bool second() const { return code_ & 1; }
  PYGEN_INLINE bool lone() const { return code_ & 2; }
  PYGEN_INLINE Spread not_lone() const { return Spread(step(), second()); }

 private:
  int64_t code_;  // one word: a copy of several fields would wait for each of their stores
};

// Pairs of neighbours as integers, which compilers vectorise.
template <int kBytes>
struct PairOf;
template <>
struct PairOf<2> {
  using One = uint16_t __attribute__((may_alias));
  using Two = uint32_t __attribute__((aligned(2), may_alias));
};
template <>
struct PairOf<4> {
  using One = uint32_t __attribute__((may_alias));
  using Two = uint64_t __attribute__((aligned(4), may_alias));
};

template <class S>
inline int64_t load_pairs(S* __restrict dst, const S* __restrict src, const Spread& at, int64_t n) {
  using One = typename PairOf<sizeof(S)>::One;
  const auto* pairs = reinterpret_cast<const typename PairOf<sizeof(S)>::Two*>(src - at.second());
  const int shift = at.second() ? 8 * sizeof(S) : 0;
  auto* ones = reinterpret_cast<One*>(dst);
  n -= at.lone();
  for (int64_t i = 0; i < n; ++i) ones[i] = One(pairs[i] >> shift);
  return n;
}

template <class S>
inline int64_t store_pairs(S* __restrict dst, const S* __restrict src, const Spread& at, int64_t n) {
  using One = typename PairOf<sizeof(S)>::One;
  using Two = typename PairOf<sizeof(S)>::Two;
  auto* pairs = reinterpret_cast<Two*>(dst - at.second());
  const int shift = at.second() ? 8 * sizeof(S) : 0;
  const Two other = ~(Two(One(-1)) << shift);
  const auto* ones = reinterpret_cast<const One*>(src);
  n -= at.lone();
  for (int64_t i = 0; i < n; ++i) pairs[i] = (pairs[i] & other) | (Two(ones[i]) << shift);
  return n;
}

template <class T, class S>
inline void load_run(T* __restrict dst, const S* __restrict src, int64_t n) {
  if constexpr (std::is_same_v<T, S>) {
    std::memcpy(dst, src, size_t(n) * sizeof(T));
  } else {
    int64_t i = 0;
    if constexpr (sizeof(S) == 2) {
      for (; i + Vec<T>::size() <= n; i += Vec<T>::size()) {
        Vec<float> v;
        at::vec::load_to_float<S>(src + i, v);
        v.store(dst + i);
      }
    }
    for (; i < n; ++i) dst[i] = static_cast<T>(src[i]);
  }
}

// dst[i] = src[i * step] or src[cols[i] * step], from storage type S to arithmetic type T; at most kBlock elements
template <class T, class S>
inline void load(T* __restrict dst, const S* __restrict src, const Spread& at, const int64_t* cols, int64_t n) {
  if (cols) {
    for (int64_t i = 0; i < n; ++i) dst[i] = static_cast<T>(src[cols[i] * at.step()]);
    return;
  }
  if (at.step() == 1 && n >= kCall) return load_run(dst, src, n);
  int64_t i = 0;
  if constexpr (sizeof(S) <= 4) {
    if (at.step() == 2 && n >= kCall) {
      if constexpr (std::is_same_v<T, S>) {
        i = load_pairs(dst, src, at, n);
      } else {
        S dense[kBlock];
        i = load_pairs(dense, src, at, n);
        load_run(dst, dense, i);
      }
    }
  }
  for (; i < n; ++i) dst[i] = static_cast<T>(src[i * at.step()]);
}

// memcpy past the caches: for outputs larger than the last of them, where a normal store first reads what it overwrites
template <class T>
inline void stream_copy(T* __restrict dst, const T* __restrict src, int64_t n) {
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
#if defined(CPU_CAPABILITY_AVX512)
  constexpr int64_t kBytes = 64;
#else
  constexpr int64_t kBytes = 32;
#endif
  auto* d = reinterpret_cast<char*>(dst);
  auto* s = reinterpret_cast<const char*>(src);
  int64_t bytes = n * int64_t(sizeof(T));
  const int64_t head = std::min<int64_t>(bytes, -reinterpret_cast<intptr_t>(d) & (kBytes - 1));
  std::memcpy(d, s, size_t(head));
  d += head, s += head, bytes -= head;
  for (; bytes >= kBytes; d += kBytes, s += kBytes, bytes -= kBytes) {
#if defined(CPU_CAPABILITY_AVX512)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(d), _mm512_loadu_si512(s));
#else
    _mm256_stream_si256(reinterpret_cast<__m256i*>(d), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(s)));
#endif
  }
  std::memcpy(d, s, size_t(bytes));
#else
  std::memcpy(dst, src, size_t(n) * sizeof(T));
#endif
}

inline void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

template <class T>
inline void copy(T* __restrict dst, const T* __restrict src, int64_t n, bool stream) {
  if (stream) {
    stream_copy(dst, src, n);
  } else {
    std::memcpy(dst, src, size_t(n) * sizeof(T));
  }
}

template <class S, class T>
inline void store_run(S* __restrict dst, const T* __restrict src, int64_t n, bool stream) {
  if constexpr (std::is_same_v<T, S>) {
    copy(dst, src, n, stream);
  } else {
    constexpr int64_t kPair = 2 * Vec<T>::size();
    int64_t i = 0;
    for (; i + kPair <= n; i += kPair) {
      at::vec::convert_from_float<S>(Vec<T>::loadu(src + i), Vec<T>::loadu(src + i + Vec<T>::size())).store(dst + i);
    }
    for (; i < n; ++i) dst[i] = static_cast<S>(src[i]);
  }
}

// the inverse of load
template <class S, class T>
inline void store(S* __restrict dst, const T* __restrict src, const Spread& at, const int64_t* cols, int64_t n,
                  bool stream) {
  if (cols) {
    for (int64_t i = 0; i < n; ++i) dst[cols[i] * at.step()] = static_cast<S>(src[i]);
    return;
  }
  if (at.step() == 1 && n >= kCall) return store_run(dst, src, n, stream);
  int64_t i = 0;
  if constexpr (sizeof(S) <= 4) {
    if (at.step() == 2 && n >= kCall) {
      if constexpr (std::is_same_v<T, S>) {
        i = store_pairs(dst, src, at, n);
      } else {
        S dense[kBlock];
        store_run(dense, src, n, false);
        i = store_pairs(dst, dense, at, n);
      }
    }
  }
  for (; i < n; ++i) dst[i * at.step()] = static_cast<S>(src[i]);
}

// --- transposes ------------------------------------------------------------------------------------------------------

// Of a square of Vec<T>::size() rows in registers.
template <class T>
PYGEN_INLINE void transpose(Vec<T>* r) {
  constexpr int kSize = Vec<T>::size();
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (sizeof(T) == 4) {
    __m512 t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
      t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    __m512 q[16];  // 4 x 4 squares: of rows 4 i ... 4 i + 3, column j of each 128 bits
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      q[4 * i] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
      q[4 * i + 1] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
      q[4 * i + 2] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
      q[4 * i + 3] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m512 a = _mm512_shuffle_f32x4(q[j], q[4 + j], 0x88), b = _mm512_shuffle_f32x4(q[j], q[4 + j], 0xdd);
      const __m512 c = _mm512_shuffle_f32x4(q[8 + j], q[12 + j], 0x88);
      const __m512 d = _mm512_shuffle_f32x4(q[8 + j], q[12 + j], 0xdd);
      r[j] = _mm512_shuffle_f32x4(a, c, 0x88), r[8 + j] = _mm512_shuffle_f32x4(a, c, 0xdd);
      r[4 + j] = _mm512_shuffle_f32x4(b, d, 0x88), r[12 + j] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
    return;
  }
#elif defined(CPU_CAPABILITY_AVX2)
  if constexpr (sizeof(T) == 4) {
    __m256 t[8], q[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
      t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      q[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
      q[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
      q[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
      q[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      r[j] = _mm256_permute2f128_ps(q[j], q[4 + j], 0x20);
      r[4 + j] = _mm256_permute2f128_ps(q[j], q[4 + j], 0x31);
    }
    return;
  }
#endif
  alignas(64) T v[kSize][kSize], w[kSize][kSize];
  for (int i = 0; i < kSize; ++i) r[i].store(v[i]);
  for (int i = 0; i < kSize; ++i) {
    for (int j = 0; j < kSize; ++j) w[i][j] = v[j][i];
  }
  for (int i = 0; i < kSize; ++i) r[i] = Vec<T>::loadu(w[i]);
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
