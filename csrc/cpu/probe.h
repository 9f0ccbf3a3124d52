// The arithmetic ceiling of this tier, for benchmarks.
#pragma once
#include <ATen/cpu/vec/vec.h>

#include "table.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

template <class T>
double fma_chains(int64_t n) {
  using V = at::vec::Vectorized<T>;
  constexpr int kChains = 20;  // more than latency times throughput, fewer than registers
  V x[kChains];
  for (int i = 0; i < kChains; ++i) x[i] = V(T(i) * T(1e-3));
  const V b(T(0.999)), c(T(1e-5));
  for (int64_t k = 0; k < n; ++k) {
#pragma GCC unroll 20
    for (int i = 0; i < kChains; ++i) x[i] = at::vec::fmadd(x[i], b, c);
  }
  T sum[V::size()];
  for (int i = 1; i < kChains; ++i) x[0] = x[0] + x[i];
  x[0].store(sum);
  volatile T sink = sum[0];  // keeps the loop
  (void)sink;
  return 2.0 * kChains * V::size() * double(n);
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
