// Cached sampling on a GPU: the functions of causal_sampler.cu. No torch headers.
#pragma once
#include <cuda_runtime_api.h>

#include "causal_sampler.h"

namespace pygen {
namespace cuda_sampler {

// How many blocks the device runs at once, or, for fewer images, needs. Each takes `scratch_size` bytes of scratch.
cudaError_t sampler_blocks(const Launch& launch, Storage storage, int device, int* blocks);

// After `sampler_blocks`; at least one block.
cudaError_t sampler_launch(const Launch& launch, Storage storage, int blocks, cudaStream_t stream);

}  // namespace cuda_sampler
}  // namespace pygen
