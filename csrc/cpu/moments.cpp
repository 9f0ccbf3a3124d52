// Running moments on the CPU: what is admitted, threads.
#include <torch/library.h>

#include "glue.h"
#include "table.h"

namespace pygen {
namespace {

using at::Tensor;

void accumulate_moments(const Tensor& x, const Tensor& shift, Tensor& total, Tensor& scatter) {
  const auto type = float_type(x.scalar_type());
  const auto fits = [&](const Tensor& t, at::IntArrayRef size) {
    return t.is_cpu() && t.scalar_type() == at::kDouble && t.sizes() == size;
  };
  const int64_t d = x.dim() == 2 ? x.size(1) : 0;
  if (!type || !x.is_cpu() || x.dim() != 2 || !fits(shift, {d}) || !fits(total, {d}) || !fits(scatter, {d, d}) ||
      !total.is_contiguous() || !scatter.is_contiguous()) {
    return refuse("pygen::accumulate_moments", &accumulate_moments, x, shift, total, scatter);
  }
  const Tensor dense = shift.contiguous();
  const MomentsArgs args{x.const_data_ptr(),
                         x.size(0),
                         d,
                         x.stride(0),
                         x.stride(1),
                         dense.const_data_ptr<double>(),
                         total.mutable_data_ptr<double>(),
                         scatter.mutable_data_ptr<double>()};
  kernels<MomentsKernels>().accumulate_moments[int(*type)](torch_threads, args);
}

TORCH_LIBRARY_IMPL(pygen, CPU, m) { m.impl("accumulate_moments", &accumulate_moments); }

}  // namespace
}  // namespace pygen
