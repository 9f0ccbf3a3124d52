// The random stream, one ISA tier: words in tiles of 64, and the distributions that are made of them.
#pragma once
#include "common/philox.h"
#include "random_args.h"
#include "vmath.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int kTile = 64, kTileLanes = 16;

// --- vectors, several at once ----------------------------------------------------------------------------------------

#if defined(CPU_CAPABILITY_AVX512)
constexpr int kBytes = 64, kVectors = 2;
#elif defined(CPU_CAPABILITY_AVX2)
constexpr int kBytes = 32, kVectors = 1;
#else
constexpr int kBytes = 16, kVectors = 1;
#endif
constexpr int kVector = kBytes / 4;  // words in a vector; kVectors of them hold one word of counters under way at once
typedef uint64_t Q __attribute__((vector_size(kBytes)));
typedef uint32_t U __attribute__((vector_size(kBytes)));
typedef int32_t I __attribute__((vector_size(kBytes)));
typedef float F __attribute__((vector_size(kBytes)));

// N vectors of V. An operation on a pack is written as N operations that do not wait for each other: the chains here
// are longer than the window in which a processor finds independent ones.
template <class V, int N>
struct Pack {
  V v[N];
};

template <int N, class Op>
PYGEN_INLINE auto each(const Op& op) {
  Pack<decltype(op(0)), N> out;
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) out.v[i] = op(i);
  return out;
}

#define PYGEN_PACK_OPERATOR(op)                                     \
  template <class V, int N>                                         \
  PYGEN_INLINE Pack<V, N> operator op(Pack<V, N> a, Pack<V, N> b) { \
    return each<N>([&](int i) { return V(a.v[i] op b.v[i]); });     \
  }                                                                 \
  template <class V, int N, class S>                                \
  PYGEN_INLINE Pack<V, N> operator op(Pack<V, N> a, S b) {          \
    return each<N>([&](int i) { return V(a.v[i] op b); });          \
  }
PYGEN_PACK_OPERATOR(+)
PYGEN_PACK_OPERATOR(-)
PYGEN_PACK_OPERATOR(*)
PYGEN_PACK_OPERATOR(/)
PYGEN_PACK_OPERATOR(^)
PYGEN_PACK_OPERATOR(&)
PYGEN_PACK_OPERATOR(<<)
PYGEN_PACK_OPERATOR(>>)
#undef PYGEN_PACK_OPERATOR

template <int N>
PYGEN_INLINE Pack<U, N> operator~(Pack<U, N> a) {
  return each<N>([&](int i) { return ~a.v[i]; });
}

// The primitives of common/philox.h.
template <int N>
PYGEN_INLINE Pack<F, N> as_float(Pack<U, N> a) {
  return each<N>([&](int i) { return F(a.v[i]); });
}
template <int N>
PYGEN_INLINE Pack<U, N> as_bits(Pack<F, N> a) {
  return each<N>([&](int i) { return U(a.v[i]); });
}
template <int N>
PYGEN_INLINE Pack<F, N> from_signed(Pack<U, N> a) {
  return each<N>([&](int i) { return __builtin_convertvector(I(a.v[i]), F); });
}
template <int N>
PYGEN_INLINE Pack<F, N> from_unsigned(Pack<U, N> a) {
#if defined(CPU_CAPABILITY_AVX512)
  return each<N>([&](int i) { return F(_mm512_cvtepu32_ps(__m512i(a.v[i]))); });
#else
  return from_signed(a >> 16) * 65536.0f + from_signed(a & 0xffffu);  // exact, exact, rounded once
#endif
}
template <int N>
PYGEN_INLINE Pack<U, N> shift_signed(Pack<U, N> a, int n) {
  return each<N>([&](int i) { return U(I(a.v[i]) >> n); });
}
template <int N>
PYGEN_INLINE Pack<I, N> equal(Pack<U, N> a, uint32_t b) {
  return each<N>([&](int i) { return I(a.v[i] == b); });
}
template <int N>
PYGEN_INLINE Pack<I, N> less(Pack<F, N> a, Pack<F, N> b) {
  return each<N>([&](int i) { return I(a.v[i] < b.v[i]); });
}
template <int N>
PYGEN_INLINE Pack<F, N> select(Pack<I, N> mask, Pack<F, N> yes, Pack<F, N> no) {
  return each<N>([&](int i) { return F(mask.v[i] ? yes.v[i] : no.v[i]); });
}
template <int N>
PYGEN_INLINE Pack<F, N> root(Pack<F, N> a) {
#if defined(CPU_CAPABILITY_AVX512)
  return each<N>([&](int i) { return F(_mm512_sqrt_ps(__m512(a.v[i]))); });
#elif defined(CPU_CAPABILITY_AVX2)
  return each<N>([&](int i) { return F(_mm256_sqrt_ps(__m256(a.v[i]))); });
#elif defined(__x86_64__)
  return each<N>([&](int i) { return F(_mm_sqrt_ps(__m128(a.v[i]))); });
#else
  for (F& f : a.v) {
    for (int j = 0; j < kBytes / 4; ++j) f[j] = __builtin_sqrtf(f[j]);
  }
  return a;
#endif
}

// --- words -----------------------------------------------------------------------------------------------------------

PYGEN_INLINE Q mul32(Q a, uint32_t m) {
#if defined(CPU_CAPABILITY_AVX512)
  return Q(_mm512_mul_epu32(__m512i(a), _mm512_set1_epi64(m)));
#elif defined(CPU_CAPABILITY_AVX2)
  return Q(_mm256_mul_epu32(__m256i(a), _mm256_set1_epi64x(m)));
#elif defined(__x86_64__)
  return Q(_mm_mul_epu32(__m128i(a), _mm_set1_epi64x(m)));
#else
  return (a & 0xffffffffu) * (Q{} + m);
#endif
}

template <int N>
PYGEN_INLINE Pack<U, N> all(uint32_t value) {
  return each<N>([&](int) { return U{} + value; });
}

// The four words of N vectors of counters. One 64-bit lane carries one counter word in its low half. What is in the
// high half is never read, because the widening multiplication ignores it: a round is two of these, two shifts and two
// xors of three, with no shuffle on any ISA. Vectors of even counters and of odd ones alternate.
template <int N>
PYGEN_INLINE void draw(Pack<U, N> x, Pack<U, N> y, Pack<U, N> z, Pack<U, N> w, uint64_t seed, Pack<U, N>* words) {
  const auto halves = [](const Pack<U, N>& a) {
    return each<2 * N>([&](int v) { return v % 2 ? Q(a.v[v / 2]) >> 32 : Q(a.v[v / 2]); });
  };
  auto a = halves(x), b = halves(y), c = halves(z), d = halves(w);
#pragma GCC unroll 10
  for (uint32_t r = 0; r < 10; ++r) {
    const Q k0 = Q{} + (uint32_t(seed) + r * philox::kKey0), k1 = Q{} + (uint32_t(seed >> 32) + r * philox::kKey1);
    const auto p = each<2 * N>([&](int v) { return mul32(a.v[v], philox::kMul0); });
    const auto q = each<2 * N>([&](int v) { return mul32(c.v[v], philox::kMul1); });
    a = each<2 * N>([&](int v) { return (q.v[v] >> 32) ^ b.v[v] ^ k0; });
    c = each<2 * N>([&](int v) { return (p.v[v] >> 32) ^ d.v[v] ^ k1; });
    b = q, d = p;
  }
  const auto whole = [](const Pack<Q, 2 * N>& h) {
    return each<N>([&](int v) { return U((h.v[2 * v] & 0xffffffffu) | (h.v[2 * v + 1] << 32)); });
  };
  words[0] = whole(a), words[1] = whole(b), words[2] = whole(c), words[3] = whole(d);
}

template <Distribution D>
using Value = std::conditional_t<D == Distribution::kBits, uint32_t, float>;

// Writes what words become: vector v of word w to place(w, v).
template <Distribution D, int N, class Place>
PYGEN_INLINE void put_values(const Pack<U, N>* words, const Place& place) {
  const auto put = [&](int w, const auto& pack) {
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) std::memcpy(place(w, v), &pack.v[v], kBytes);
  };
  if constexpr (D == Distribution::kNormal) {
    // both pairs of words at once
    const auto a = each<2 * N>([&](int i) { return words[2 * (i / N)].v[i % N]; });
    const auto b = each<2 * N>([&](int i) { return words[2 * (i / N) + 1].v[i % N]; });
    Pack<F, 2 * N> cosine, sine;
    philox::normal(a, b, cosine, sine);
#pragma GCC unroll 8
    for (int i = 0; i < 2 * N; ++i) {
      std::memcpy(place(2 * (i / N), i % N), &cosine.v[i], kBytes);
      std::memcpy(place(2 * (i / N) + 1, i % N), &sine.v[i], kBytes);
    }
  } else {
#pragma GCC unroll 4
    for (int w = 0; w < 4; ++w) {
      if constexpr (D == Distribution::kBits) put(w, words[w]);
      if constexpr (D == Distribution::kUniform) put(w, philox::uniform(words[w]));
      if constexpr (D == Distribution::kLogistic) put(w, philox::logistic(words[w]));
      if constexpr (D == Distribution::kGumbel) put(w, philox::gumbel(words[w]));
    }
  }
}

// --- elements --------------------------------------------------------------------------------------------------------

PYGEN_INLINE uint64_t sample_of(const Stream& s, int64_t row) {
  return s.ids ? uint64_t(s.ids[row]) : s.first_sample + uint64_t(row);
}

alignas(64) constexpr uint32_t kCount[] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                           16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};

// The elements of a tile, or of several that N vectors of counters make.
template <Distribution D, int N>
PYGEN_INLINE void fill_tiles(const Stream& s, uint64_t sample, int64_t tile, Value<D>* __restrict out) {
  for (int first = 0; first < std::max(N * kVector, kTileLanes); first += N * kVector) {
    Pack<U, N> x, words[4];
    std::memcpy(&x, kCount + first, sizeof(x));
    draw(x + uint32_t(tile * kTileLanes), all<N>(s.step), all<N>(uint32_t(sample)), all<N>(uint32_t(sample >> 32)),
         s.seed, words);
    put_values<D>(words, [&](int w, int v) {
      const int lane = first + v * kVector;
      return out + lane / kTileLanes * kTile + w * kTileLanes + lane % kTileLanes;
    });
  }
}

// Elements [first, first + n) of one sample.
template <Distribution D>
inline void fill_sample(const Stream& s, uint64_t sample, int64_t first, int64_t n, Value<D>* __restrict out) {
  alignas(64) Value<D> some[kTile];
  constexpr int64_t kTiles = std::max(1, kVectors * kVector / kTileLanes);  // at once
  const int64_t last = (first + n + kTile - 1) / kTile;
  for (int64_t tile = first / kTile; tile < last;) {
    const int64_t begin = tile * kTile - first;  // of the tile, in out
    if (begin >= 0 && begin + kTiles * kTile <= n) {
      fill_tiles<D, kVectors>(s, sample, tile, out + begin);
      tile += kTiles;
    } else {
      fill_tiles<D, 1>(s, sample, tile, some);
      const int64_t from = std::max<int64_t>(0, -begin), to = std::min<int64_t>(kTile, n - begin);
      std::memcpy(out + begin + from, some + from, size_t(to - from) * sizeof(some[0]));
      ++tile;
    }
  }
}

// Rows so short that each has its elements in one word of some lanes: as many elements at a time as lanes, whatever
// their rows.
template <Distribution D>
inline void fill_short(const Stream& s, int64_t begin, int64_t end, Value<D>* __restrict out) {
  constexpr int kLanes = kVectors * kVector;
  alignas(64) uint32_t x[kLanes], z[kLanes], w[kLanes];
  alignas(64) Value<D> values[4 * kLanes];
  const int64_t word = s.offset % kTile / kTileLanes;
  const uint32_t first = uint32_t(s.offset / kTile * kTileLanes + s.offset % kTileLanes);
  int64_t row = begin / s.row, element = begin % s.row;
  const auto read = [](const uint32_t* from) {
    Pack<U, kVectors> pack;
    std::memcpy(&pack, from, sizeof(pack));
    return pack;
  };
  for (int64_t i = begin; i < end; i += kLanes) {
    const int n = int(std::min<int64_t>(kLanes, end - i));
    for (int j = 0; j < kLanes; ++j) {
      const uint64_t sample = sample_of(s, j < n ? row : 0);
      x[j] = first + uint32_t(element), z[j] = uint32_t(sample), w[j] = uint32_t(sample >> 32);
      if (++element == s.row) element = 0, ++row;
    }
    Pack<U, kVectors> words[4];
    draw(read(x), all<kVectors>(s.step), read(z), read(w), s.seed, words);
    put_values<D>(words, [&](int k, int v) { return values + k * kLanes + v * kVector; });
    std::memcpy(out + (i - begin), values + word * kLanes, size_t(n) * sizeof(values[0]));
  }
}

// Elements [begin, end) of [batch, row], to out[0], out[1], ...
template <Distribution D>
inline void fill_values(const Stream& s, int64_t begin, int64_t end, Value<D>* out) {
  if (s.offset % kTileLanes + s.row <= kTileLanes) return fill_short<D>(s, begin, end, out);
  for (int64_t i = begin; i < end;) {
    const int64_t row = i / s.row, element = i % s.row, n = std::min(s.row - element, end - i);
    fill_sample<D>(s, sample_of(s, row), s.offset + element, n, out + (i - begin));
    i += n;
  }
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
