// The kernels of the Frechet distance on the CPU: what is admitted, allocation, threads.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "glue.h"
#include "table.h"

namespace pygen {
namespace {

using at::Tensor;
using std::tuple;

tuple<Tensor, Tensor> trace_sqrt_product(const Tensor& sigma1, const Tensor& sigma2) {
  const bool admitted = sigma1.is_cpu() && sigma2.is_cpu() && sigma1.scalar_type() == at::kDouble &&
                        sigma2.scalar_type() == at::kDouble && sigma1.dim() >= 2 &&
                        sigma1.size(-1) == sigma1.size(-2) && sigma1.sizes() == sigma2.sizes();
  if (!admitted) return refuse("pygen::trace_sqrt_product", &trace_sqrt_product, sigma1, sigma2);
  const int64_t d = sigma1.size(-1);
  const auto batch = sigma1.sizes().slice(0, size_t(sigma1.dim() - 2));
  const Tensor first = sigma1.contiguous(), second = sigma2.contiguous();
  Tensor trace = empty(batch, at::kDouble), bound = empty(batch, at::kDouble);
  const auto *p1 = first.const_data_ptr<double>(), *p2 = second.const_data_ptr<double>();
  auto *traces = trace.mutable_data_ptr<double>(), *bounds = bound.mutable_data_ptr<double>();
  const auto kernel = kernels<FrechetKernels>().trace_sqrt_product;
  const int64_t problems = trace.numel();
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      kernel(torch_threads, p1 + i * d * d, p2 + i * d * d, d, traces + i, bounds + i);
    }
  };
  // A core for each problem where there are as many, else all for one after the other: the same bits.
  if (problems < at::get_num_threads()) {
    run(0, problems);
  } else {
    at::parallel_for(0, problems, 1, run);  // within which workers are one thread
  }
  return {trace, bound};
}

TORCH_LIBRARY_IMPL(pygen, CPU, m) { m.impl("trace_sqrt_product", &trace_sqrt_product); }

}  // namespace
}  // namespace pygen
