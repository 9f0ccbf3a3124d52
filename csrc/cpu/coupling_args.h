// What the glue tells a tier's coupling kernels. Plain data; offsets and strides count elements.
#pragma once
#include <cstdint>

#include "types.h"

namespace pygen {

enum class Activation : int { kExp, kSigmoid, kSoftplus, kAdditive };  // the order of pygen/ops/coupling.py
enum class Squash : int { kNone, kTanh, kAtan, kSoftsign };

// How a sample, a block of [rows, row] elements, is cut into elements that change and elements that pass.
enum class Pattern : int {
  kRange,          // every row: elements start, start + step, ... (count of them)
  kGather,         // every row: the elements cols[0], ..., cols[count - 1]
  kChannels,       // rows are channels: whole rows, those with channel[r] >= 0
  kChecker,        // rows are channels: of every two neighbours the second where `odd` is 1, else the first
  kCheckerPixels,  // rows are pixels: whole rows, every second pixel
};

struct CouplingArgs {
  // geometry
  Pattern pattern;
  int64_t rows, row;              // x, y and their gradients: [batch, rows, row]
  int64_t params_sample;          // elements of params in one sample
  int64_t params_row;             // kRange, kGather, kCheckerPixels: elements of params in one row
  int64_t start, step, count;     // see Pattern
  int64_t s_start, t_start;       // of s and t: in a row of params (kRange, kGather, kCheckerPixels), or a channel
  int64_t params_step;            // from one s (or t) to the next, in elements, or in channels
  const int64_t* cols;            // [count]
  const int64_t* channel;         // [rows]: the place of a channel among those that change, or -1
  const float* odd;               // kChecker: [(row + 1) / 2]
  const uint8_t* parity;          // kCheckerPixels: 1 where an image row begins with a pixel that passes
  int64_t image_row;              // kCheckerPixels: pixels in an image row
  int64_t gain_start, gain_step;  // kRange: of the first changing element, and between two
  int64_t gain_count;             // 0: no gain tensor; 1: one for all; else one for a channel
  // tasks: a sample is cut into `chunks`, of rows_per_chunk rows, or each row into `pieces`
  int64_t chunks, rows_per_chunk, pieces;
  // options
  Activation activation;
  Squash squash;
  bool multiply_last;  // out = (in + tau) M, else out = in M + tau
  bool reciprocal;     // M = 1 / S, else S
  bool recover;        // multiply first: z holds out, not in
  bool stream;         // outputs exceed the last-level cache
  double offset, eps, max_scale, gain, width;
  double tau;  // tau = this times t
  // tensors
  const void *x, *params, *gain_values;  // forward: in; gain_values in the arithmetic type
  void* y;                               // forward: out
  double* log_scale;                     // forward: [batch * chunks] sums of log M
  const void *grad_y, *z;                // backward: z is in or out
  const double* grad_logdet;             // backward: [batch], of sum log M
  void *grad_x, *grad_params;            // backward; either may be null
  double* grad_gain;                     // backward: [gain_count], of the tasks at hand; or null
};

// One tier's kernels, by storage types of x and of params: do the tasks [begin, end) of batch * chunks.
struct CouplingKernels {
  void (*forward[kPairedTypes])(const CouplingArgs&, int64_t begin, int64_t end);
  void (*backward[kPairedTypes])(const CouplingArgs&, int64_t begin, int64_t end);
};

}  // namespace pygen
