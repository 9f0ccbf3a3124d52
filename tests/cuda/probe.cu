// For tests alone: the smallest kernel that goes through the whole CUDA build. No torch headers.
#include "probe.h"

namespace pygen {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    scale(const float* __restrict__ x, float factor, float* __restrict__ y, int64_t n) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n; i += stride) y[i] = factor * x[i];
}

}  // namespace

cudaError_t probe_scale(const float* x, float factor, float* y, int64_t n, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  const int64_t blocks = (n + kThreads - 1) / kThreads;
  scale<<<unsigned(blocks < 65536 ? blocks : 65536), kThreads, 0, stream>>>(x, factor, y, n);
  return cudaGetLastError();
}

}  // namespace pygen
