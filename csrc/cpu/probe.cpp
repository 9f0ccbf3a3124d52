// Private ops that benchmarks measure others against: an op that does nothing, and the arithmetic ceiling.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <atomic>
#include <chrono>

#include "table.h"

namespace pygen {
namespace {

at::Tensor empty(const at::Tensor& x, const at::Tensor&) { return x; }

// Operations a second of register-resident fused multiply-adds, on all threads at once.
double fma_rate(int64_t n, bool float64) {
  const auto& k = kernels<ProbeKernels>();
  std::atomic<int64_t> operations{0};
  const auto start = std::chrono::steady_clock::now();
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t begin, int64_t end) {
    for (; begin < end; ++begin) operations += int64_t((float64 ? k.fma64 : k.fma32)(n));
  });
  return double(operations) / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

TORCH_LIBRARY_FRAGMENT(pygen, m) {
  m.def("_empty(Tensor(a) x, Tensor params) -> Tensor(a)");
  m.def("_fma_rate(int n, bool float64) -> float", &fma_rate);
}
TORCH_LIBRARY_IMPL(pygen, CPU, m) { m.impl("_empty", &empty); }
TORCH_LIBRARY_IMPL(pygen, AutogradCPU, m) { m.impl("_empty", torch::CppFunction::makeFallthrough()); }

}  // namespace
}  // namespace pygen
