// From host to device memory, by kernels. No torch headers.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace pygen {

// Writes to device memory in the order of the stream. The bytes travel as parameters of kernels: the host waits for
// nothing, `from` may go when this returns, and a CUDA graph that captures it holds a copy.
cudaError_t store_bytes(const char* from, int64_t size, char* to, cudaStream_t stream);

}  // namespace pygen
