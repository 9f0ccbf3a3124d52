// Cached sampling on a GPU: what the glue tells the kernel, plain data, and the launch. No torch headers.
#pragma once
#include <algorithm>
#include <cstdint>

#include "cpu/logistic_mixture_args.h"

namespace pygen {
namespace cuda_sampler {

constexpr int kImages = 8;  // that a block draws side by side

// The program as the kernel reads it: `pygen/program.py` says what its numbers mean. Indices of planes are -1 for none.
struct Plane {
  int64_t offset;    // bytes from the planes of the block, in global or in shared memory
  int64_t row_size;  // numbers in a row of the ring
  int32_t channels, scale;
  int32_t ring;  // rows that are kept, less 1; a power of two are
  int32_t left;  // columns of zeros before the first
  bool transient, shared;
};

struct Read {
  int32_t plane, dy, dx, first, count;
};

struct Stage {
  const void *weight, *bias, *condition;
  int32_t out, first, outputs, written, depth, start, start_first, activation, residual, residual_first;
  int32_t row_every, row_at, column_every, column_at, first_read, reads;
  bool condition_map;  // [batch, height, width, outputs] on the grid of `out`, not [batch, outputs]
};

enum class Storage : int { kFloat, kDouble, kBFloat16 };  // of weights; arithmetic is double for double, else float

struct Launch {
  // the program, in device memory
  const Plane* planes;
  const Stage* stages;  // those of the phase ROW, then for each group those of PIXEL and those of HEAD
  const Read* reads;
  const int32_t* ends;  // of each of these lists of stages
  int32_t plane_count, height, width, channels, levels, groups, head, output, draws, mixtures;
  int32_t widest;  // columns of pre-activations, whole panels
  MixturePlaces means, log_scales, coefficients;
  // the images
  int64_t batch;
  int64_t* x;           // [batch, channels, height, width]: given where known, else to be drawn
  const bool* known;    // as x
  const double* noise;  // [batch, draws, height, width] in [0, 1), or null: from the stream
  double* log_prob;     // [batch], or null: not wanted
  const int64_t* ids;   // [batch], or null: first_sample, first_sample + 1, ...
  uint64_t seed, first_sample;
  int64_t offset;  // in the stream, of the first pixel
  uint32_t step;
  float temperature, coldness;
  int64_t top_k;
  double top_p;
  // memory of a block: planes, pre-activations of a tile, channels that a mixture has drawn
  char* scratch;
  int64_t scratch_size, pre_offset, drawn_offset;  // bytes
  int32_t shared_planes, shared_size;              // bytes; shared memory begins with the kernel's own
  bool pre_shared;                                 // pre-activations of a pixel lie at `shared_pre`
  int32_t shared_pre;

  void set_temperature(double t) {
    temperature = float(t);
    coldness = float(std::min(1 / t, 3e38));
  }
};

}  // namespace cuda_sampler
}  // namespace pygen
