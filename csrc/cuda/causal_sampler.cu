// Cached sampling: launches. No torch headers.
#include <cuda_runtime_api.h>

#include "causal_sampler_kernel.h"
#include "causal_sampler_launch.h"

namespace pygen {
namespace cuda_sampler {
namespace {

void (*kernel_of(Storage storage))(Launch) {
  switch (storage) {
    case Storage::kFloat:
      return sample<float, float>;
    case Storage::kDouble:
      return sample<double, double>;
    default:
      return sample<float, BFloat16>;
  }
}

}  // namespace

cudaError_t sampler_blocks(const Launch& a, Storage storage, int device, int* blocks) {
  const auto kernel = kernel_of(storage);
  int processors = 0, each = 0;
  auto error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, a.shared_size);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) {
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, kThreads, size_t(a.shared_size));
  }
  const int64_t most = int64_t(processors) * (each > 0 ? each : 1), wanted = (a.batch + kImages - 1) / kImages;
  *blocks = int(wanted < most ? wanted : most);
  return error;
}

cudaError_t sampler_launch(const Launch& a, Storage storage, int blocks, cudaStream_t stream) {
  kernel_of(storage)<<<unsigned(blocks), kThreads, size_t(a.shared_size), stream>>>(a);
  return cudaGetLastError();
}

}  // namespace cuda_sampler
}  // namespace pygen
