// What the glue tells a tier's kernels of discretised logistic mixtures. Plain data; strides count elements.
#pragma once
#include <cstdint>

#include "random_args.h"
#include "types.h"

namespace pygen {

// The channels of one kind of parameter: first + channel c + mixture k.
struct MixturePlaces {
  int64_t first, channel, mixture;
};

// A tensor [samples, channels, area]: pixels lie together (pixel is 1), or a pixel's channels do (channel is 1).
struct MixturePixels {
  int64_t sample, channel, pixel;
};

struct MixtureArgs {
  int64_t samples, area, channels, mixtures, parameters;
  MixturePlaces means, log_scales, coefficients;  // the logits are the first
  bool autoregressive;
  int64_t last;  // level
  const void* p;
  MixturePixels p_at;
};

// Where a layout ("openai", "flax", "tfp") has its kinds of parameters, for the numbers that `a` says already.
inline void set_places(MixtureArgs& a, int64_t layout) {
  const int64_t k = a.mixtures, channels = a.channels, pairs = a.autoregressive ? channels * (channels - 1) / 2 : 0;
  const int64_t kinds = pairs ? 3 : 2, kind = layout == 0 ? k : 1, mixture = layout == 0 ? 1 : kinds;
  a.means = {k, kinds * k, mixture};
  a.log_scales = {k + kind, kinds * k, mixture};
  a.coefficients = {k + 2 * kind, kinds * k, mixture};
  if (layout == 2) {
    a.means = {k, 1, channels};
    a.log_scales = {k + k * channels, 1, channels};
    a.coefficients = {k + 2 * k * channels, 1, pairs};
  }
}

struct MixtureNllArgs : MixtureArgs {
  const void* x;
  bool integers;
  int x_type;  // IntType if integers, else FloatType
  MixturePixels x_at;
  bool openai;
  void *nll, *slope;  // slope as p, or null: not wanted
};

struct MixtureScaleArgs {
  int64_t samples, area, parameters;
  const void *slope, *grad;
  MixturePixels at;
  int64_t grad_step;  // 0: one number for all
  void* out;

  bool in_planes() const { return at.channel != 1 || grad_step == 0; }  // else pixel by pixel
};

struct MixtureSampleArgs : MixtureArgs {
  Stream stream;
  const void* noise;  // [samples, 1 + channels, area], or null: from the stream
  FloatType noise_type;
  MixturePixels noise_at;
  float coldness, scale_temperature;
  bool quantized;
  void* x;  // [samples, channels, area]
  MixturePixels x_at;
};

constexpr int64_t kMixtureTask = 64;  // pixels of one sample that the glue counts as one

// By FloatType of parameters: the tasks [begin, end), out of samples * ceil(area / kMixtureTask) unless said otherwise.
struct MixtureKernels {
  bool (*nll[4])(const MixtureNllArgs&, int64_t begin, int64_t end);  // false: a level out of range was met
  void (*scale[4])(const MixtureScaleArgs&, int64_t begin, int64_t end);
  void (*sample[4])(const MixtureSampleArgs&, int64_t begin, int64_t end);
};

}  // namespace pygen
