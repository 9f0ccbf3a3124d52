// What the glue tells a tier's kernels of sums and quantiles. Plain data; tensors are dense and lie alike.
#pragma once
#include <cstdint>

#include "types.h"
#include "workers.h"

namespace pygen {

constexpr int kStats = 5;              // sums of a, b, a a, a b, b b; of one tensor a and a a are used
constexpr int64_t kStatsTask = 16384;  // elements

struct StatsArgs {
  Stored a, b;           // b: there may be none
  int64_t size, chunks;  // elements of a sample, and the tasks that they make
  double* sums;          // kStats of each task
};

constexpr int kPredicted = 5;  // x and up to four outputs

// |sum_i c_i t_i| of tensors t. Elements that share coefficients are a run: all of a call, a sample or a token.
struct QuantileArgs {
  int count;
  Stored tensor[kPredicted];
  const double* coefficients;  // `count` of each run
  int64_t size, run, runs;     // elements of a sample, of a run; runs of a sample: coefficients are those of run
                               // `sample` * `runs` + r; 0: all samples have the same one
  int64_t rank;                // of the magnitude looked for: how many come before it
  double weight;               // of the next one
};

struct StatsKernels {                                             // by the type of the arithmetic, float or double
  void (*sums[2])(const StatsArgs&, int64_t begin, int64_t end);  // tasks
  void (*quantile[2])(const Workers&, const QuantileArgs&, int64_t sample, void* out);
};

}  // namespace pygen
