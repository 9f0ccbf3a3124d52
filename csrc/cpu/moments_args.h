// What the glue tells a tier's kernel of running moments. Plain data; strides count elements.
#pragma once
#include "types.h"
#include "workers.h"

namespace pygen {

struct MomentsArgs {
  const void* x;  // [rows, d]
  int64_t rows, d, row_stride, column_stride;
  const double* shift;      // [d]
  double *total, *scatter;  // [d], [d, d]
};

struct MomentsKernels {
  void (*accumulate_moments[4])(const Workers&, const MomentsArgs&);  // by FloatType of x
};

}  // namespace pygen
