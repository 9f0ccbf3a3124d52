// What the glue tells a tier's kernels of masked convolutions. Plain data; strides count elements.
#pragma once
#include <cstdint>

#include "types.h"
#include "workers.h"

namespace pygen {

enum class ConvActivation : int { kNone, kRelu, kElu, kGate, kGlu };

// A tensor [batch, channels, height, width]; data is null where there is none.
struct ConvImages {
  const void* data = nullptr;
  int64_t channels = 0, height = 0, width = 0;
  int64_t sample = 0, channel = 0, row = 0, pixel = 0;  // strides
};

struct ConvArgs {
  int64_t batch = 0;
  ConvImages x;             // codes: int64, one channel
  int64_t channels_in = 0;  // rows of each tap's weight: of x, or codes
  bool codes = false;
  int64_t taps = 0;
  const int64_t* offsets = nullptr;  // [taps, 2]: dilation (dy, dx)
  int64_t stride = 1;
  bool transposed = false;
  int64_t masked = -1;  // the tap with the channel mask
  bool strict = false;  // group i reaches o iff i < o, else i <= o
  int64_t groups = 1;
  bool interleaved = false;
  ConvActivation activation = ConvActivation::kNone;
  const void* weight = nullptr;  // [taps, channels_in, channels of pre]
  const void* bias = nullptr;    // [channels of pre], for each sample if bias_of_samples; backward: its gradient
  bool bias_of_samples = false;
  ConvImages pre, y;               // forward: written (pre has sizes anyway); backward: read (y: its gradient)
  ConvImages condition, residual;  // forward
  ConvImages grad_x, grad_pre;     // backward, written if there
  void *grad_weight = nullptr, *grad_bias = nullptr;

  bool gated() const { return activation == ConvActivation::kGate || activation == ConvActivation::kGlu; }
};

struct ConvKernels {
  void (*forward[4])(const Workers&, const ConvArgs&);  // by FloatType of weight
  void (*backward[4])(const Workers&, const ConvArgs&);
};

}  // namespace pygen
