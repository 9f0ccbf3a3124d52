// Cached sampling on a GPU: the functions of causal_sampler.cu. No torch headers.
#pragma once
#include <cuda_runtime_api.h>

#include "causal_sampler.h"

namespace pygen {
namespace cuda_sampler {

// Writes to device memory in the order of the stream. The bytes travel as parameters of kernels: the host waits for
// nothing, `from` may go when this returns, and a CUDA graph that captures it holds a copy.
cudaError_t sampler_store(const char* from, int64_t size, char* to, cudaStream_t stream);

// How many blocks the device runs at once, or, for fewer images, needs. Each takes `scratch_size` bytes of scratch.
cudaError_t sampler_blocks(const Launch& launch, Storage storage, int device, int* blocks);

// After `sampler_blocks`; at least one block.
cudaError_t sampler_launch(const Launch& launch, Storage storage, int blocks, cudaStream_t stream);

}  // namespace cuda_sampler
}  // namespace pygen
