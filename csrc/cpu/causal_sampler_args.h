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

// Of two threads that draw the same images: how far each is. Pixels and columns are counted through the rows.
struct SamplerPair {
  void* sampler = nullptr;         // the first thread's; there for the second one once `from` is
  std::atomic<int64_t> from{0};    // the first row whose ROW stages are the second thread's; 0: none yet
  std::atomic<int64_t> drawn{0};   // pixels that are known or drawn
  std::atomic<int64_t> ready{0};   // columns for which the second thread has computed its stages
  std::atomic<bool> helped{false}, left{false};  // whether the second thread has come, and gone
  std::atomic<bool> over{false};                 // nothing is left for it
};

// By storage type: float, double, bfloat16. run: draws the images [first, first + count), side by side, alone or, where
// a second thread may come to call `help`, as its pair. Either may be called first; run waits for nobody to come.
struct SamplerKernels {
  SamplerEnd (*run[3])(const SamplerArgs&, int64_t first, int64_t count, SamplerPair*);
  void (*help[3])(SamplerPair&);
};

}  // namespace pygen
