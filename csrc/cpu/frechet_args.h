// What the glue tells a tier's kernels of the Frechet distance. Plain data.
#pragma once
#include "workers.h"

namespace pygen {

struct PolarArgs {
  const void* b;  // [n, n]
  int64_t n;
  void *polar, *norm;
};

struct FrechetKernels {
  // One problem: sigma1, sigma2 [d, d] in rows, of which the lower triangles are read.
  void (*trace_sqrt_product)(const Workers&, const double* sigma1, const double* sigma2, int64_t d, double* trace,
                             double* bound);
  void (*polar[2])(const Workers&, const PolarArgs&);  // one problem in float, in double
};

}  // namespace pygen
