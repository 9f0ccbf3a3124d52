#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace pygen {

// y[i] = factor * x[i] for i < n.
cudaError_t probe_scale(const float* x, float factor, float* y, int64_t n, cudaStream_t stream);

}  // namespace pygen
