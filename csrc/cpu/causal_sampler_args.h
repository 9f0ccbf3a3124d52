// What the glue tells a tier's kernels of cached sampling. Plain data.
#pragma once
#include <atomic>
#include <cstdint>

#include "common/pixel_program.h"
#include "random_args.h"

namespace pygen {

struct SamplerArgs {
  const program::Program* program;
  const void* const* tensors;     // as the program has them: weights of the storage type, biases of the arithmetic's
  const void* const* conditions;  // [batch, outputs], or [batch, height, width, outputs] where is_map
  const bool* is_map;
  int64_t* x;           // [batch, channels, height, width]: given where known, else to be drawn
  const bool* known;    // as x
  const double* noise;  // [batch, draws, height, width] in [0, 1), or null: from the stream
  double* log_prob;     // [batch], or null: not wanted
  Stream stream;        // of the batch; offset is that of the first pixel
  float temperature;
  int64_t top_k;  // 0: all
  double top_p;
  bool (*tick)(void* context, int64_t rows);  // after every row of some images; false: stop
  void* context;
};

enum class SamplerEnd : int { kDone, kStopped, kBadLogits, kBadMixture };

// Where the two threads of some images meet.
struct SamplerPair {
  std::atomic<void*> sampler{nullptr};           // the first one's, once it has begun
  std::atomic<bool> over{false};                 // nothing is left to do
  std::atomic<bool> helped{false}, left{false};  // whether the second one has come, and gone
};

// By storage type: float, double, bfloat16. run: draws the images [first, first + count), side by side, alone or, where
// a second thread may come to call `help`, as its pair. Either may be called first; run waits for nobody to come.
struct SamplerKernels {
  SamplerEnd (*run[3])(const SamplerArgs&, int64_t first, int64_t count, SamplerPair*);
  void (*help[3])(SamplerPair&);
};

}  // namespace pygen
