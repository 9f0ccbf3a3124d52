// Products of matrices, one ISA tier: C += alpha A B, of which only a lower triangle where that is all that is wanted.
//
// Both operands are packed into panels in the order in which a tile of C in registers reads them. Every element of C is
// summed over k in order, in blocks of kDepth, whoever computes it: the same bits for any number of threads.
#pragma once
#include <algorithm>

#include "scratch.h"
#include "vmath.h"
#include "workers.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

// --- tiles -----------------------------------------------------------------------------------------------------------

// A tile of C stays in registers: kTileRows times kTileVectors accumulators, a row of B and one element of A.
#if defined(CPU_CAPABILITY_AVX512)
constexpr int kTileRows = 8, kTileVectors = 3;  // 24 + 3 + 1 of 32
#elif defined(CPU_CAPABILITY_AVX2)
constexpr int kTileRows = 4, kTileVectors = 3;  // 12 + 3 + 1 of 16
#else
constexpr int kTileRows = 4, kTileVectors = 1;  // a vector of at::vec is two registers here: 8 + 2 + 1 of 16
#endif
template <class T>
constexpr int kTileColumns = kTileVectors * Vec<T>::size();

constexpr int64_t kDepth = 256;                 // of a packed block: a panel of A stays in the first-level cache
constexpr int64_t kBlockRows = 16 * kTileRows;  // of C in one task; what it reads of B stays in the second-level cache
constexpr int64_t kBlockPanels = 8;

// out [kTileRows, kTileColumns] = a b, or has it added, with a [depth, kTileRows] and b [depth, kTileColumns].
template <class T>
__attribute__((noinline)) void multiply_tile(const T* a, const T* b, int64_t depth, T* out, bool add) {
  using V = Vec<T>;
  V c[kTileRows][kTileVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 3
    for (int v = 0; v < kTileVectors; ++v) c[i][v] = V(T(0));
  }
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; ++k, a += kTileRows, b += kTileColumns<T>) {
    V row[kTileVectors];
#pragma GCC unroll 3
    for (int v = 0; v < kTileVectors; ++v) row[v] = V::loadu(b + v * V::size());
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
      const V x(a[i]);
#pragma GCC unroll 3
      for (int v = 0; v < kTileVectors; ++v) c[i][v] = at::vec::fmadd(x, row[v], c[i][v]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 3
    for (int v = 0; v < kTileVectors; ++v) {
      T* to = out + i * kTileColumns<T> + v * V::size();
      (add ? V::loadu(to) + c[i][v] : c[i][v]).store(to);
    }
  }
}

// --- packing ---------------------------------------------------------------------------------------------------------

// Where an operand is other than zero, by its index (a row of A, a column of B) and k.
enum class Reach { kAll, kUpTo, kFrom };  // kUpTo: k <= index; kFrom: k >= index

// A or B: element (index, k) is data[index * step + k * k_step]; one of the steps is 1. What `reach` leaves out is
// taken as zero and never read.
template <class T>
struct Operand {
  const T* data;
  int64_t step, k_step;
  Reach reach = Reach::kAll;

  // [first, last): the k at which some of the indices [begin, end) are not zero, within [k0, k1)
  int64_t first(int64_t begin, int64_t k0) const { return reach == Reach::kFrom ? std::max(k0, begin) : k0; }
  int64_t last(int64_t end, int64_t k1) const { return reach == Reach::kUpTo ? std::min(k1, end) : k1; }
};

// One panel: out [k1 - k0, kWidth] = the indices [begin, begin + kWidth), those past `count` as zero.
template <int kWidth, class T>
inline void pack_panel(const Operand<T>& x, int64_t begin, int64_t count, int64_t k0, int64_t k1, T* out) {
  const int64_t end = std::min(count, begin + kWidth);
  if (x.step == 1) {
    for (int64_t k = k0; k < k1; ++k, out += kWidth) {
      const int64_t from = x.reach == Reach::kUpTo ? std::min(end, std::max(begin, k)) : begin;
      const int64_t to = x.reach == Reach::kFrom ? std::max(begin, std::min(end, k + 1)) : end;
      const T* row = x.data + k * x.k_step;
      if (from == begin && to == begin + kWidth) {
        for (int i = 0; i < kWidth; ++i) out[i] = row[begin + i];
      } else {
        for (int64_t i = begin; i < begin + kWidth; ++i) out[i - begin] = i >= from && i < to ? row[i] : T(0);
      }
    }
    return;
  }
  for (int64_t i = begin; i < begin + kWidth; ++i, ++out) {
    const int64_t from = i < end ? std::min(k1, x.first(i, k0)) : k1,
                  to = i < end ? std::max(from, x.last(i + 1, k1)) : k1;
    const T* row = x.data + i * x.step;
    for (int64_t k = k0; k < from; ++k) out[(k - k0) * kWidth] = T(0);
    for (int64_t k = from; k < to; ++k) out[(k - k0) * kWidth] = row[k];
    for (int64_t k = to; k < k1; ++k) out[(k - k0) * kWidth] = T(0);
  }
}

// --- the product -----------------------------------------------------------------------------------------------------

// Elements of scratch that multiply() needs.
template <class T>
constexpr int64_t pack_size(int64_t rows, int64_t columns, int64_t depth) {
  return (tiles(rows, kTileRows) * kTileRows + tiles(columns, kTileColumns<T>) * kTileColumns<T>)*std::min(depth,
                                                                                                           kDepth);
}

struct Product {
  int64_t rows, columns, depth;
  bool lower = false;  // only C[i][j] with j <= i are computed, and stored
  bool add = true;     // to C; else C is overwritten
};

// C [rows, columns] (+)= alpha A B in rows of `stride` elements. Products are rounded to T, sums over blocks to C.
template <class T, class S>
void multiply(const Workers& workers, const Product& p, double alpha, const Operand<T>& a, const Operand<T>& b, S* c,
              int64_t stride, std::type_identity_t<T>* scratch) {
  constexpr int64_t kColumns = kTileColumns<T>, kBlockColumns = kBlockPanels * kColumns, kPacked = 32;
  constexpr int64_t kChain = std::is_same_v<T, S> ? kDepth : 64;  // terms of one sum in T, of which the few add up
  const int64_t a_panels = tiles(p.rows, kTileRows), b_panels = tiles(p.columns, kColumns);
  const int64_t blocks = tiles(p.columns, kBlockColumns);
  T* const packed_b = scratch + a_panels * kTileRows * std::min(p.depth, kDepth);
  for (int64_t k0 = 0; k0 < p.depth; k0 += kDepth) {
    const int64_t k1 = std::min(p.depth, k0 + kDepth), depth = k1 - k0;
    workers(tiles(a_panels + b_panels, kPacked), [&](int64_t task) {
      for (int64_t i = task * kPacked; i < std::min(a_panels + b_panels, (task + 1) * kPacked); ++i) {
        if (i < a_panels) {
          pack_panel<kTileRows>(a, i * kTileRows, p.rows, k0, k1, scratch + i * kTileRows * depth);
        } else {
          const int64_t j = (i - a_panels) * kColumns;
          pack_panel<kColumns>(b, j, p.columns, k0, k1, packed_b + j * depth);
        }
      }
    });
    workers(tiles(p.rows, kBlockRows) * blocks, [&](int64_t task) {
      alignas(64) T tile[kTileRows * kColumns];
      const int64_t i1 = std::min(p.rows, (task / blocks + 1) * kBlockRows);
      const int64_t j1 = std::min(p.columns, (task % blocks + 1) * kBlockColumns);
      for (int64_t i = task / blocks * kBlockRows; i < i1; i += kTileRows) {
        const int64_t rows = std::min<int64_t>(kTileRows, i1 - i);
        for (int64_t j = task % blocks * kBlockColumns; j < (p.lower ? std::min(j1, i + rows) : j1); j += kColumns) {
          const int64_t columns = std::min(kColumns, j1 - j);
          const int64_t from = b.first(j, a.first(i, k0)), to = b.last(j + columns, a.last(i + rows, k1));
          const bool add = p.add || k0 > 0;
          if (add && from >= to) continue;
          for (int64_t k = from; k == from || k < to; k += kChain) {
            multiply_tile(scratch + i * depth + (k - k0) * kTileRows, packed_b + j * depth + (k - k0) * kColumns,
                          std::min(kChain, to - k), tile, k > from);
          }
          for (int64_t r = 0; r < rows; ++r) {
            const int64_t n = p.lower ? std::min(columns, i + r + 1 - j) : columns;
            S* out = c + (i + r) * stride + j;
            const T* in = tile + r * kColumns;
            if (add) {
              for (int64_t q = 0; q < n; ++q) out[q] += S(alpha) * S(in[q]);
            } else {
              for (int64_t q = 0; q < n; ++q) out[q] = S(alpha) * S(in[q]);
            }
          }
        }
      }
    });
  }
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
