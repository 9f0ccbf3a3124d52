// What the glue tells a tier's kernels of the random stream. Plain data.
#pragma once
#include <cstdint>

#include "types.h"

namespace pygen {

enum class Distribution : int { kBits, kUniform, kNormal, kLogistic, kGumbel };  // the order of pygen/ops/random.py

// Where draws [batch, row] lie in the stream.
struct Stream {
  uint64_t seed;
  const int64_t* ids;  // [batch], or null: first_sample, first_sample + 1, ...
  uint64_t first_sample;
  uint32_t step;
  int64_t offset, row;  // a row holds the elements offset, ..., offset + row - 1 of its sample
};

// One tier's kernels: do the elements [begin, end) of batch * row; pointers are to element 0. False: a value that is
// not admitted was met, and outputs hold anything.
struct RandomKernels {
  void (*fill)(const Stream&, Distribution, FloatType, void* out, int64_t begin, int64_t end);
  // p of element (b, i) is p[b * p_sample + i * p_step]
  bool (*bernoulli[4])(const Stream&, const void* p, int64_t p_sample, int64_t p_step, void* out, int64_t begin,
                       int64_t end);
  bool (*categorical[4])(const Stream&, const void* logits, int64_t categories, int64_t* out, int64_t begin,
                         int64_t end);
  // noise of element i is noise[i * noise_step]; null: from the stream
  bool (*dequantize[5])(const Stream&, const void* x, const void* noise, int64_t noise_step, int64_t levels,
                        double scale, double shift, FloatType, void* out, int64_t begin, int64_t end);
};

}  // namespace pygen
