// A tile of a product of matrices in registers that reads both operands where they lie, one ISA tier: for those that
// fit a cache as they are. gemm.h packs larger ones.
#pragma once
#include <array>
#include <utility>

#include "vmath.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

#if defined(CPU_CAPABILITY_AVX512)
constexpr int kRowsOf[] = {0, 12, 12, 8, 6};  // of a tile, by its vectors: up to 24 accumulators of 32 registers
#elif defined(CPU_CAPABILITY_AVX2)
constexpr int kRowsOf[] = {0, 8, 6, 4};  // up to 12 of 16
#else
constexpr int kRowsOf[] = {0, 4};  // a vector of at::vec is two registers here
#endif
constexpr int kMaxVectors = int(std::size(kRowsOf)) - 1;
constexpr int kMaxRows = 12;

template <class T>
constexpr int64_t padded(int64_t n) {  // to whole vectors
  return tiles(n, Vec<T>::size()) * Vec<T>::size();
}

// c[i] += sum over parts and k of a[i, k] b[k], with b[k] and c[i] some vectors of columns.
template <class T>
struct Tile {
  const T* a;
  int64_t a_row, a_step;
  const T* b;
  int64_t b_step, depth;
  const int64_t *a_start, *b_start;  // of each part
  int64_t parts;
  T* c;
  int64_t c_row;
  const T* live;  // the columns that count: 1, or 0 where c stays as it is; null: all
  bool fresh;     // c holds nothing yet: the sum is stored
};

template <class T, bool kDense, int R, int V>  // kDense: a_row is 1
__attribute__((noinline)) void multiply_add(const Tile<T>& t) {
  using X = Vec<T>;
  X sum[R][V];
#pragma GCC unroll 12
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[i][v] = X(T(0));
  }
  const int64_t a_row = kDense ? 1 : t.a_row, a_step = t.a_step, b_step = t.b_step, depth = t.depth;
  for (int64_t part = 0; part < t.parts; ++part) {
    const T* b = t.b + t.b_start[part];
    const T* a[(R + 2) / 3];  // three rows to a pointer: what addresses can express
#pragma GCC unroll 4
    for (int i = 0; i < (R + 2) / 3; ++i) a[i] = t.a + t.a_start[part] + 3 * i * a_row;
    for (int64_t k = 0; k < depth; ++k) {
      X row[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) row[v] = X::loadu(b + v * X::size());
#pragma GCC unroll 12
      for (int i = 0; i < R; ++i) {
        const X x(a[i / 3][i % 3 * a_row]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[i][v] = at::vec::fmadd(x, row[v], sum[i][v]);
      }
      b += b_step;
#pragma GCC unroll 4
      for (int i = 0; i < (R + 2) / 3; ++i) a[i] += a_step;
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      T* c = t.c + i * t.c_row + v * X::size();
      X s = sum[i][v];
      if (t.live) s = select(less(X(T(0)), X::loadu(t.live + v * X::size())), s, X(T(0)));
      (t.fresh ? s : X::loadu(c) + s).store(c);
    }
  }
}

template <class T>
using TilesByRows = std::array<void (*)(const Tile<T>&), kMaxRows + 1>;

template <class T, bool kDense, int V, int... R>
constexpr TilesByRows<T> tiles_of_rows(std::integer_sequence<int, R...>) {
  TilesByRows<T> by_rows{};
  ((by_rows[R + 1] = multiply_add<T, kDense, R + 1, V>), ...);
  return by_rows;
}
template <class T, bool kDense, int... V>
constexpr std::array<TilesByRows<T>, kMaxVectors> tiles_of_vectors(std::integer_sequence<int, V...>) {
  return {tiles_of_rows<T, kDense, V + 1>(std::make_integer_sequence<int, kRowsOf[V + 1]>())...};
}
template <class T, bool kDense>
constexpr auto kTiles = tiles_of_vectors<T, kDense>(std::make_integer_sequence<int, kMaxVectors>());

// Tiles of nearly equal size for any number of rows: none of a single row among large ones.
template <bool kDense, class T>
inline void multiply_rows(Tile<T> t, int64_t vectors, int64_t rows) {
  const TilesByRows<T>& by_rows = kTiles<T, kDense>[size_t(vectors - 1)];
  const int64_t count = tiles(rows, kRowsOf[vectors]);
  if (count == 0) return;
  const int64_t least = rows / count, larger = rows % count;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = least + (i < larger);
    by_rows[size_t(n)](t);
    t.a += n * t.a_row;
    t.c += n * t.c_row;
  }
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
