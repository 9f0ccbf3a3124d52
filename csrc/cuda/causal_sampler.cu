// Cached sampling: launches. No torch headers.
#include <cuda_runtime_api.h>

#include "causal_sampler_kernel.h"
#include "causal_sampler_launch.h"

namespace pygen {
namespace cuda_sampler {
namespace {

constexpr int kPiece = 4000;  // bytes; parameters of a kernel are 4 KB at most on every driver

struct Piece {
  alignas(16) char bytes[kPiece];
};

__global__ void __launch_bounds__(256) store(const __grid_constant__ Piece piece, char* to, int size) {
  for (int i = int(threadIdx.x); i < size; i += 256) to[i] = piece.bytes[i];
}

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

cudaError_t sampler_store(const char* from, int64_t size, char* to, cudaStream_t stream) {
  for (int64_t at = 0; at < size; at += kPiece) {
    Piece piece;
    const int some = int(size - at < kPiece ? size - at : kPiece);
    std::memcpy(piece.bytes, from + at, size_t(some));
    store<<<1, 256, 0, stream>>>(piece, to + at, some);
  }
  return cudaGetLastError();
}

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
