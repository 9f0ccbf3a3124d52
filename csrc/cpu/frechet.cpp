// The kernels of the Frechet distance on the CPU: what is admitted, allocation, threads.
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/linalg_eigh.h>
#include <ATen/ops/matmul.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>

#include "frechet_args.h"
#include "glue.h"
#include "table.h"

namespace pygen {
namespace {

using at::Tensor;
using std::tuple;

// Sides of a square matrix up to which the iteration beats singular values: in double it takes twice the steps, at half
// the speed.
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

// P = B (B^T B)^(-1/2) of float matrices [..., m, n], m >= n. Squares in double tell singular values to 1e-8 of the
// largest, closer than singular values in float do. What rounding may have taken off a square is added to it: lengths
// in P do not exceed 1.
tuple<Tensor, Tensor> polar_by_squares(const Tensor& b) {
  const Tensor x = b.to(at::kDouble);
  const Tensor one = x.abs().amax({-2, -1}).mul(0).add(1);  // NaN where b is not finite
  const auto matrices = [](const Tensor& t) { return t.unsqueeze(-1).unsqueeze(-1); };
  const Tensor finite = x.masked_fill(matrices(one.isnan()), 0);
  const auto [squares, v] = at::linalg_eigh(at::matmul(finite.mT(), finite));
  const Tensor s = squares.clamp_min(0).sqrt();
  const double eps = double(b.size(-1)) * std::numeric_limits<double>::epsilon();
  const Tensor above = s.square().add(squares.amax(-1, true).mul(eps)).clamp_min(1e-100).sqrt();
  const Tensor factor = at::matmul(finite, at::matmul(v / above.unsqueeze(-2), v.mT())).mul(matrices(one));
  return {factor.to(at::kFloat), s.sum(-1).mul(one).to(at::kFloat)};
}

tuple<Tensor, Tensor> polar(const Tensor& b) {
  const bool single = b.scalar_type() == at::kFloat;
  const int64_t m = b.dim() < 2 ? 0 : b.size(-2), n = b.dim() < 2 ? 0 : b.size(-1);
  const bool square = m == n && n <= (single ? kMostPolarFloat : kMostPolarDouble);
  if (!b.is_cpu() || b.dim() < 2 || (!single && (!square || b.scalar_type() != at::kDouble)) || b.numel() == 0) {
    return refuse("pygen::polar", &polar, b);
  }
  if (!square) {
    const c10::impl::ExcludeDispatchKeyGuard plain(c10::autocast_dispatch_keyset);
    const at::AutoDispatchBelowAutograd below;
    const auto [factor, norm] = polar_by_squares(m < n ? b.mT() : b);
    return {(m < n ? factor.mT() : factor).contiguous(), norm};
  }
  const Tensor dense = b.contiguous();
  Tensor factor = empty(b.sizes(), b.scalar_type());
  Tensor norm = empty(b.sizes().slice(0, size_t(b.dim() - 2)), b.scalar_type());
  const int64_t bytes = b.element_size();
  const auto* from = static_cast<const char*>(dense.const_data_ptr());
  auto* factors = static_cast<char*>(factor.mutable_data_ptr());
  auto* norms = static_cast<char*>(norm.mutable_data_ptr());
  const auto kernel = kernels<FrechetKernels>().polar[single ? 0 : 1];
  for_problems(norm.numel(), [&](int64_t i) {
    const int64_t matrix = i * n * n * bytes;
    kernel(torch_threads, {from + matrix, n, factors + matrix, norms + i * bytes});
  });
  return {factor, norm};
}

TORCH_LIBRARY_IMPL(pygen, CPU, m) {
  m.impl("trace_sqrt_product", &trace_sqrt_product);
  m.impl("polar", &polar);
}

}  // namespace
}  // namespace pygen
