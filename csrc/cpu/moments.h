// Running sums of x - shift and of (x - shift)(x - shift)^T, one ISA tier.
#pragma once
#include "gemm.h"
#include "moments_args.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

// Blocks of kDepth rows: differences in double, rounded to T, in one array; then its products, added to the triangle.
template <class X>
void accumulate_moments(const Workers& workers, const MomentsArgs& a) {
  using T = Arithmetic<X>;
  constexpr int64_t kColumns = 64;
  if (a.rows == 0 || a.d == 0) return;
  const int64_t most = std::min(a.rows, kDepth), stride = tiles(a.d, kColumns) * kColumns;
  Scratch<T> scratch(most * stride + pack_size<T>(a.d, a.d, most));
  T *const centred = scratch, *const packed = centred + most * stride;
  for (int64_t first = 0; first < a.rows; first += kDepth) {
    const int64_t rows = std::min(kDepth, a.rows - first);
    const X* x = static_cast<const X*>(a.x) + first * a.row_stride;
    workers(tiles(a.d, kColumns), [&](int64_t task) {
      const int64_t column = task * kColumns, n = std::min(kColumns, a.d - column);
      T values[kColumns];
      double sums[kColumns] = {};
      const double* shift = a.shift + column;
      for (int64_t i = 0; i < rows; ++i) {
        load(values, x + i * a.row_stride + column * a.column_stride, Spread(a.column_stride, false, true), nullptr, n);
        T* out = centred + i * stride + column;
        for (int64_t j = 0; j < n; ++j) {
          const double difference = double(values[j]) - shift[j];
          sums[j] += difference;
          out[j] = T(difference);
        }
      }
      for (int64_t j = 0; j < n; ++j) a.total[column + j] += sums[j];
    });
    const Operand<T> operand{centred, 1, stride};
    multiply(workers, {a.d, a.d, rows, true}, 1, operand, operand, a.scatter, a.d, packed);
  }
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
