// Cached sampling on a GPU: where the kernel has what in shared memory. No torch headers, no CUDA.
#pragma once
#include <cstdint>

#include "causal_sampler.h"

namespace pygen {
namespace cuda_sampler {

constexpr int kThreads = 256, kWarps = kThreads / 32;
static_assert(kWarps == kImages);  // where an image's numbers are walked, a warp walks them

constexpr int kSlots = 4, kSlotBytes = 1024;  // of a warp's weights that are on their way
constexpr int kRing = kWarps * kSlots * kSlotBytes;
constexpr int kInputDepthBytes = 2048, kInputRowBytes = kInputDepthBytes + 32;  // of what a stage of a pixel reads
constexpr int kInputs = kImages * kInputRowBytes;
constexpr int kLimit = 96 * 1024;  // of all GPUs since sm_80, sm_86 has least: 99 KB
constexpr int kTile = 8;           // places of a row, for all images
constexpr int kSites = kTile * kImages;
constexpr int kRowColumns = 128, kPanel = 32;

// Partial sums, behind the weights and inputs: [warp][image][32].
constexpr int partial_bytes(int arithmetic) { return kWarps * kImages * 32 * arithmetic; }
constexpr int own_bytes(int arithmetic) { return kRing + kInputs + partial_bytes(arithmetic); }

}  // namespace cuda_sampler
}  // namespace pygen
