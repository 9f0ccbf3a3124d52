// What the glue tells a tier's kernels of gates and of the concatenated ELU. Plain data; strides count elements.
#pragma once
#include <cstdint>

#include "types.h"

namespace pygen {

enum class Gate : int { kTanh, kLinear };  // tanh(a) sigmoid(b), a sigmoid(b)

// Wide tensors have 2 C channels, narrow ones C. A sample is `run` elements of each half, in rows of `row` elements
// (the last may be short): sites of one channel, channels of one site, or whatever follows where no row differs.
struct GatesArgs {
  Gate gate;
  const void *x, *condition, *residual, *grad_y;  // condition, residual: null if there is none
  const void* bias;  // in the type of the arithmetic, a sample's 2 C `bias_sample` apart; null if there is none
  void* out;         // null: only `sums` are wanted
  double* sums;      // gradient of bias, or null: 2 C of each sample, or of each task if `pixels`
  int64_t rows, row, run;
  int64_t wide_sample, wide_row, half, narrow_sample, narrow_row, bias_sample;
  int64_t chunks, rows_per_chunk;  // a sample's tasks
  bool pixels;                     // a row holds channels, so that a bias is a row too; else one number
  bool stream;                     // outputs do not fit the caches
};

struct GatesKernels {  // by FloatType; each runs tasks [begin, end)
  void (*gate[4])(const GatesArgs&, int64_t begin, int64_t end);
  void (*gate_backward[4])(const GatesArgs&, int64_t begin, int64_t end);
  void (*concat_elu[4])(const GatesArgs&, int64_t begin, int64_t end);
  void (*concat_elu_backward[4])(const GatesArgs&, int64_t begin, int64_t end);
};

}  // namespace pygen
