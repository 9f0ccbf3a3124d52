// For tests alone: csrc/common/philox.h as CUDA kernels will use it. Build with --fmad=false.
#include "common/philox.h"

namespace pygen {
namespace {

constexpr int kThreads = 256;

// The first elements of consecutive blocks: normals, then the other distributions of the same words.
__global__ void __launch_bounds__(kThreads)
    fill(uint64_t seed, uint64_t sample, uint32_t step, float* __restrict__ out, int64_t n) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  const philox::Words w = philox::encrypt({uint32_t(i), step, uint32_t(sample), uint32_t(sample >> 32)}, seed);
  float z[4];
  philox::normal(w.x, w.y, z[0], z[1]);
  philox::normal(w.z, w.w, z[2], z[3]);
  for (int k = 0; k < 4; ++k) out[k * n + i] = z[k];
  out[4 * n + i] = philox::uniform(w.x);
  out[5 * n + i] = philox::logistic(w.y);
  out[6 * n + i] = philox::gumbel(w.z);
  out[7 * n + i] = float(philox::exp_units(-philox::uniform(w.w)));
}

}  // namespace

void philox_fill(uint64_t seed, uint64_t sample, uint32_t step, float* out, int64_t n, cudaStream_t stream) {
  fill<<<unsigned((n + kThreads - 1) / kThreads), kThreads, 0, stream>>>(seed, sample, step, out, n);
}

}  // namespace pygen
