// What the glue tells a tier's kernels of the loss of diffusion models. Plain data; tensors are dense and lie alike.
#pragma once
#include <cstdint>

#include "random_args.h"
#include "types.h"

namespace pygen {

constexpr int64_t kLossTask = 16384;  // elements

// How elements are cut. Those that share a row of the table are a run: a sample or a token.
struct LossPlan {
  int64_t size, chunks;  // elements of a sample, and the tasks that they make
  int64_t run, runs;     // elements of a run; runs of a sample
  bool stream;           // what is written does not fit the caches
};

struct LossArgs {
  LossPlan plan;
  Stored output, x0, noise;
  bool draws;  // noise from the stream
  Stream place;
  const double* coefficients;  // of x0 and of noise, for each run
  Written difference;
  double* sums;  // of squares: of a sample's task c and run r, its number c + r of `chunks` + `runs`, set to 0 before
};

constexpr int kLossGradients = 3;  // of output, x0 and noise

struct LossBackwardArgs {
  LossPlan plan;
  Stored difference;
  Written gradient[kLossGradients];
  const double* factors;  // kLossGradients of each run
};

struct LossKernels {  // by the type of the arithmetic, float or double; each runs tasks [begin, end)
  void (*loss[2])(const LossArgs&, int64_t begin, int64_t end);
  void (*backward[2])(const LossBackwardArgs&, int64_t begin, int64_t end);
};

}  // namespace pygen
