// Glue of probe.cu: the op `pygen_probe::scale`. Of CUDA headers, c10/cuda only.
#include "probe.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

namespace pygen {
namespace {

at::Tensor scale(const at::Tensor& x, double factor) {
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat, "scale: expected float32, got ", x.scalar_type());
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor dense = x.contiguous();
  at::Tensor y = at::empty_like(dense);
  C10_CUDA_CHECK(probe_scale(dense.const_data_ptr<float>(), float(factor), y.mutable_data_ptr<float>(), dense.numel(),
                             c10::cuda::getCurrentCUDAStream()));
  return y;
}

TORCH_LIBRARY(pygen_probe, m) { m.def("scale(Tensor x, float factor) -> Tensor"); }
TORCH_LIBRARY_IMPL(pygen_probe, CUDA, m) { m.impl("scale", &scale); }

}  // namespace
}  // namespace pygen
