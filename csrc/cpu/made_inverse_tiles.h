// Products of tiles of weights with vectors of samples, one ISA tier.
#pragma once
#include <utility>

#include "vmath.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

// Sums of a tile stay in registers: kMadeRows rows of up to kMadeVectors vectors.
#if defined(CPU_CAPABILITY_AVX512)
constexpr int kMadeRows = 6, kMadeVectors = 4;  // 24 + 4 + 1 of 32
#elif defined(CPU_CAPABILITY_AVX2)
constexpr int kMadeRows = 6, kMadeVectors = 2;  // 12 + 2 + 1 of 16
#else
constexpr int kMadeRows = 4, kMadeVectors = 1;  // a vector of at::vec is two registers here: 8 + 2 + 1 of 16
#endif

// Of few rows several sums each, over every so many-th input: one alone would wait for itself.
constexpr int sums_of(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

// Rows in memory: row r of vector v at data + r * row + v * vector.
template <class T>
struct Rows {
  T* data;
  int64_t row, vector;
  PYGEN_INLINE T* at(int64_t r, int64_t v) const { return data + r * row + v * vector; }
  Rows from(int64_t r) const { return {data + r * row, row, vector}; }
};

// out += weights [inputs][rows] times in, of which an input's vectors lie side by side
template <class T, int kRows, int kV>
__attribute__((noinline)) void multiply_rows(const T* weights, const T* in, int64_t inputs, const Rows<T>& out) {
  using V = Vec<T>;
  constexpr int64_t W = V::size();
  constexpr int kSums = sums_of(kRows);
  V sums[kSums][kRows][kV];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) {
      sums[0][r][v] = V::loadu(out.at(r, v));
#pragma GCC unroll 4
      for (int u = 1; u < kSums; ++u) sums[u][r][v] = V(T(0));
    }
  }
  const auto add = [&](auto& sum) __attribute__((always_inline)) {
    V x[kV];
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) x[v] = V::loadu(in + v * W);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const V w(weights[r]);
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) sum[r][v] = at::vec::fmadd(w, x[v], sum[r][v]);
    }
    weights += kRows, in += kV * W;
  };
  int64_t k = 0;
  for (; k + kSums <= inputs; k += kSums) {
#pragma GCC unroll 4
    for (int u = 0; u < kSums; ++u) add(sums[u]);
  }
  for (; k < inputs; ++k) add(sums[0]);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) {
      V sum = sums[0][r][v];
#pragma GCC unroll 4
      for (int u = 1; u < kSums; ++u) sum = sum + sums[u][r][v];
      sum.store(out.at(r, v));
    }
  }
}

// in += the transposed weights times out
template <class T, int kRows, int kV>
__attribute__((noinline)) void multiply_rows_back(const T* weights, T* in, int64_t inputs, const Rows<T>& out) {
  using V = Vec<T>;
  constexpr int64_t W = V::size();
  V grads[kRows][kV];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) grads[r][v] = V::loadu(out.at(r, v));
  }
  for (int64_t k = 0; k < inputs; ++k, weights += kRows, in += kV * W) {
    V sum[kV];
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) sum[v] = V::loadu(in + v * W);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const V w(weights[r]);
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) sum[v] = at::vec::fmadd(w, grads[r][v], sum[v]);
    }
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) sum[v].store(in + v * W);
  }
}

// The functions for 1, ..., kMadeRows rows.
template <class T, int kV>
struct Tiles {
  using Function = void (*)(const T*, const T*, int64_t, const Rows<T>&);
  using Backward = void (*)(const T*, T*, int64_t, const Rows<T>&);
  Function forward[kMadeRows];
  Backward backward[kMadeRows];

  template <int... kLess>
  static constexpr Tiles of(std::integer_sequence<int, kLess...>) {
    return {{multiply_rows<T, kLess + 1, kV>...}, {multiply_rows_back<T, kLess + 1, kV>...}};
  }
};
template <class T, int kV>
constexpr Tiles<T, kV> kTiles = Tiles<T, kV>::of(std::make_integer_sequence<int, kMadeRows>());

// Cuts n rows into tiles of about the same size: calls f(first, how many).
template <class F>
PYGEN_INLINE void for_tiles(int64_t n, const F& f) {
  const int64_t count = tiles(n, kMadeRows);
  for (int64_t i = 0; i < count; ++i) f(n * i / count, n * (i + 1) / count - n * i / count);
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
