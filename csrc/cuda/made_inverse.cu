// Inverses of autoregressive transforms: launches. No torch headers.
#include <cuda_runtime_api.h>

#include <algorithm>

#include "made_inverse_kernel.h"
#include "made_inverse_launch.h"

namespace pygen {
namespace cuda_made {
namespace {

template <class T>
using Kernel = void (*)(Launch<T>);

template <class T>
Kernel<T> kernel_of(Kind kind) {
  if (kind.is_spline) return kind.backward ? sweep<T, Spline, true> : sweep<T, Spline, false>;
  return kind.backward ? sweep<T, Affine, true> : sweep<T, Affine, false>;
}

}  // namespace

template <class T>
cudaError_t made_blocks(const Launch<T>& a, Kind kind, int device, int* blocks) {
  int processors = 0, each = 0, cache = 0;
  auto error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, device);
  if (error == cudaSuccess) {
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel_of<T>(kind), kThreads, shared_size(sizeof(T)));
  }
  const int64_t scratch = a.scratch_rows * kLanes * int64_t(sizeof(T));
  const int64_t cached = std::max<int64_t>(processors, cache / scratch);
  const int64_t wanted = (a.batch + kLanes - 1) / kLanes;
  *blocks = int(std::min({wanted, cached, int64_t(processors) * std::max(each, 1)}));
  return error;
}

template <class T>
cudaError_t made_launch(const Launch<T>& a, Kind kind, int64_t largest, int blocks, cudaStream_t stream) {
  constexpr int64_t kPacked = 16384;  // weights that are worth a block
  const int shares = int(std::clamp<int64_t>(largest / kPacked, 1, kMostShares));
  pack<T><<<unsigned((a.hidden + 1) * a.steps * shares), kThreads, 0, stream>>>(a, shares);
  const auto error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  kernel_of<T>(kind)<<<unsigned(blocks), kThreads, shared_size(sizeof(T)), stream>>>(a);
  return cudaGetLastError();
}

template cudaError_t made_blocks(const Launch<float>&, Kind, int, int*);
template cudaError_t made_blocks(const Launch<double>&, Kind, int, int*);
template cudaError_t made_launch(const Launch<float>&, Kind, int64_t, int, cudaStream_t);
template cudaError_t made_launch(const Launch<double>&, Kind, int64_t, int, cudaStream_t);

}  // namespace cuda_made
}  // namespace pygen
