// What the glue tells a tier's kernels of a diffusion step. Plain data.
#pragma once
#include <cstdint>

#include "random_args.h"
#include "types.h"

namespace pygen {

constexpr int kStepOutputs = 4, kStepHistory = 4, kStepResults = 3;

// Tensors are dense and lie alike. Elements that share a row of the table, a rescaling and a threshold are a run:
// all of them, a sample or a token.
struct StepArgs {
  int outputs, history, results, copies;
  Stored x, output[kStepOutputs], past[kStepHistory], noise, log_std, known, mask, known_noise;
  Written result[kStepResults], next;  // next: `copies` of all elements, one after the other
  int64_t elements, run, sample_runs;  // of a run; runs of a sample

  const void* table;  // double if `wide`, else float; rows of the columns of pygen/reference/diffusion_step.py
  bool wide;
  int64_t columns, row;
  const int64_t* index;               // each run's row of the table; null: `row`
  const double *rescale, *threshold;  // of each sample; null: there are none

  bool draws;  // noise from the stream
  Stream place;
  bool stream;  // results do not fit the caches
};

struct StepKernels {  // by the type of the arithmetic, float or double; each does the elements [begin, end)
  void (*step[2])(const StepArgs&, int64_t begin, int64_t end);
};

}  // namespace pygen
