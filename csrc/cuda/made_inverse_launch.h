// Inverses of autoregressive transforms on a GPU: the functions of made_inverse.cu, for T = float and double. No torch
// headers.
#pragma once
#include <cuda_runtime_api.h>

#include "made_inverse.h"

namespace pygen {
namespace cuda_made {

struct Kind {
  bool is_spline, backward;
};

// How many blocks are to run: as many as the device runs at once, or samples need, and whose scratch its cache holds.
template <class T>
cudaError_t made_blocks(const Launch<T>& launch, Kind kind, int device, int* blocks);

// Packs the weights, of which a step takes `largest` of a layer at most, then sweeps by at least one block.
template <class T>
cudaError_t made_launch(const Launch<T>& launch, Kind kind, int64_t largest, int blocks, cudaStream_t stream);

}  // namespace cuda_made
}  // namespace pygen
