// What the glue tells a tier's kernels of output heads. Plain data; strides count elements.
#pragma once
#include <cstdint>

namespace pygen {

// Sites lie in `samples` of `sites` each (one of all, where channels lie together); those of an image are `area`. In
// types of the arithmetic. A task is up to `block` sites of a sample.
struct HeadsArgs {
  const void *h, *weight, *bias;  // [inputs] a site, [outputs, inputs], [outputs] or null
  const int64_t* target;          // [images, channels, area], as nll and grad
  void* nll;
  const void* grad;
  void* grad_h;                               // as h, or null
  double *grad_weight, *grad_bias;            // added to, or null
  int64_t inputs, outputs, channels, levels;  // levels: outputs of a channel
  int64_t sites, area, h_sample, h_site, h_input;
  int64_t block, blocks;  // blocks of a sample
};

struct HeadKernels {  // of one head, in float and double; each runs tasks [begin, end)
  void (*nll[2])(const HeadsArgs&, int64_t begin, int64_t end);
  void (*nll_backward[2])(const HeadsArgs&, int64_t begin, int64_t end);
};

struct HeadsKernels {
  HeadKernels categorical, bernoulli;
};

}  // namespace pygen
