// A draw from a row of logits, one ISA tier: the inverse of the distribution function, in integers.
#pragma once
#include <limits>

#include "stream.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int kSums = 256;

// The first category up to which the units of softmax sum to more than w / 2^32 of all; -1: these are no logits.
template <class X>
inline int64_t categorical_row(const X* logits, int64_t categories, uint32_t word) {
  using W = Arithmetic<X>;
  constexpr W kNone = -std::numeric_limits<W>::infinity();
  alignas(64) W x[kTile], top[kTileLanes];
  alignas(64) uint32_t units[kTile];

  // up to 64 logits, and how many vectors of 16 they fill, with -inf behind them
  const auto read = [&](int64_t begin) {
    const int64_t n = std::min<int64_t>(kTile, categories - begin);
    if constexpr (sizeof(X) == 2) {
      load(x, logits + begin, 1, nullptr, n);
    } else {
      for (int64_t i = 0; i < n; ++i) x[i] = logits[begin + i];
    }
    const int64_t padded = (n + kTileLanes - 1) / kTileLanes * kTileLanes;
    for (int64_t i = n; i < padded; ++i) x[i] = kNone;
    return padded;
  };
  std::fill_n(top, kTileLanes, kNone);
  for (int64_t k = 0; k < categories; k += kTile) {
    const int64_t n = read(k);
    for (int64_t i = 0; i < n; i += kTileLanes) {
#pragma omp simd
      for (int j = 0; j < kTileLanes; ++j) top[j] = x[i + j] > top[j] ? x[i + j] : top[j];
    }
  }
  const W most = *std::max_element(top, top + kTileLanes);

  uint32_t bad = 0;
  const auto weigh = [&](int64_t begin) {
    const int64_t n = read(begin);
    uint64_t sum = 0;
#pragma omp simd reduction(| : bad)
    for (int64_t i = 0; i < n; ++i) {
      const float d = float(x[i] - most);
      bad |= d <= 0.0f ? 0u : 1u;
      units[i] = philox::exp_units(d);
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; ++i) sum += units[i];
    return sum;
  };
  uint64_t sums[kSums], total = 0;
  const int64_t stretch = (categories + kTile * kSums - 1) / (kTile * kSums) * kTile;  // categories to a sum
  for (int64_t k = 0, s = 0; k < categories; k += stretch, ++s) {
    sums[s] = 0;
    for (int64_t i = k; i < std::min(categories, k + stretch); i += kTile) sums[s] += weigh(i);
    total += sums[s];
  }
  if (bad || most == kNone) return -1;

  uint64_t threshold = word * (total >> 32) + (word * (total & 0xffffffffu) >> 32);
  int64_t k = 0;
  for (int s = 0; threshold >= sums[s]; ++s, k += stretch) threshold -= sums[s];
  if (categories > kTile) {
    for (uint64_t sum; (sum = weigh(k)) <= threshold; k += kTile) threshold -= sum;
  }
  int64_t i = 0;
  for (; units[i] <= threshold; ++i) threshold -= units[i];
  return k + i;
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
