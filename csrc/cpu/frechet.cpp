// The kernels of the Frechet distance on the CPU: what is admitted, allocation, threads.
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/linalg_qr.h>
#include <torch/library.h>

#include <algorithm>

#include "frechet_args.h"
#include "glue.h"
#include "table.h"

namespace pygen {
namespace {

using at::Tensor;
using std::tuple;

// Columns (or rows) up to which the iteration beats singular values: it takes twice the steps in double, at half the
// speed.
constexpr int64_t kMostPolarFloat = 128, kMostPolarDouble = 32;

// A core for each problem where there are as many, else all for one after the other: the same bits.
template <class F>
void for_problems(int64_t problems, const F& f) {
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  };
  if (problems < at::get_num_threads()) {
    run(0, problems);
  } else {
    at::parallel_for(0, problems, 1, run);  // within which workers are one thread
  }
}

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
  for_problems(trace.numel(),
               [&](int64_t i) { kernel(torch_threads, p1 + i * d * d, p2 + i * d * d, d, traces + i, bounds + i); });
  return {trace, bound};
}

// A triangle for a matrix that is not square: b = q r, or the transpose of b is.
tuple<Tensor, Tensor> polar(const Tensor& b) {
  const bool single = b.scalar_type() == at::kFloat;
  const int64_t m = b.dim() < 2 ? 0 : b.size(-2), n = b.dim() < 2 ? 0 : b.size(-1), side = std::min(m, n);
  if (!b.is_cpu() || b.dim() < 2 || (!single && b.scalar_type() != at::kDouble) ||
      side > (single ? kMostPolarFloat : kMostPolarDouble)) {
    return refuse("pygen::polar", &polar, b);
  }
  const c10::impl::ExcludeDispatchKeyGuard plain(c10::autocast_dispatch_keyset);
  const at::AutoDispatchBelowAutograd below;
  Tensor q, square;
  if (m == n || b.numel() == 0) {
    square = b.contiguous();
  } else {
    std::tie(q, square) = at::linalg_qr(m < n ? b.mT() : b, "reduced");
    q = q.contiguous();
    square = square.contiguous();
  }
  Tensor factor = empty(b.sizes(), b.scalar_type());
  Tensor norm = empty(b.sizes().slice(0, size_t(b.dim() - 2)), b.scalar_type());
  if (b.numel() == 0) return {factor, norm.zero_()};
  const int64_t bytes = b.element_size();
  const auto* from = static_cast<const char*>(square.const_data_ptr());
  const auto* bases = q.defined() ? static_cast<const char*>(q.const_data_ptr()) : nullptr;
  auto* factors = static_cast<char*>(factor.mutable_data_ptr());
  auto* norms = static_cast<char*>(norm.mutable_data_ptr());
  const auto kernel = kernels<FrechetKernels>().polar[single ? 0 : 1];
  for_problems(norm.numel(), [&](int64_t i) {
    const int64_t matrix = i * m * n * bytes;
    kernel(torch_threads, {from + i * side * side * bytes, side, bases ? bases + matrix : nullptr, std::max(m, n),
                           m < n, factors + matrix, norms + i * bytes});
  });
  return {factor, norm};
}

TORCH_LIBRARY_IMPL(pygen, CPU, m) {
  m.impl("trace_sqrt_product", &trace_sqrt_product);
  m.impl("polar", &polar);
}

}  // namespace
}  // namespace pygen
