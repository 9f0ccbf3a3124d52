// Draws from discretised logistic mixtures, one ISA tier: a lane to a pixel.
#pragma once
#include "common/logistic.h"
#include "logistic_mixture_block.h"
#include "stream.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

using Floats = Pack<F, int(Vec<float>::size()) / kVector>;  // as many lanes as a block has

PYGEN_INLINE Floats floats(const float* from) {
  Floats f;
  std::memcpy(&f, from, sizeof(f));
  return f;
}

// Where a is NaN, b is not at least as large.
template <class V, int N>
PYGEN_INLINE Pack<V, N> nan_like(Pack<V, N> a, Pack<V, N> b) {
  return b + (a - a);
}

// x of a block of pixels, [channels][lanes], from parameters [parameters][lanes] and uniforms [1 + channels][lanes].
// `one` holds the parameters of the component that was drawn.
inline void block_sample(const MixtureSampleArgs& args, const float* __restrict p, const float* __restrict u,
                         float* __restrict one, float* __restrict x) {
  constexpr int64_t kLanes = Vec<float>::size();
  const Floats zero{};
  const int64_t channels = args.channels, mixtures = args.mixtures;
  const int64_t pairs = args.autoregressive ? channels * (channels - 1) / 2 : 0;

  Floats top = floats(p);
  for (int64_t k = 1; k < mixtures; ++k) {
    const Floats logit = floats(p + k * kLanes);
    top = select(less(top, logit), logit, top);
  }
  const auto weight = [&](int64_t k) { return philox::weight((floats(p + k * kLanes) - top) * args.coldness, zero); };
  Floats total = weight(0);
  for (int64_t k = 1; k < mixtures; ++k) total = total + weight(k);
  const Floats threshold = floats(u) * total;

  // The last component whose predecessors' weights are no more than the threshold.
  const auto take = [&](int64_t k, const auto& choose) {
    float* to = one;
    const auto kind = [&](const MixturePlaces& places, int64_t count) {
      for (int64_t c = 0; c < count; ++c, to += kLanes) {
        const Floats chosen = choose(floats(p + (places.first + places.channel * c + places.mixture * k) * kLanes), to);
        std::memcpy(to, &chosen, sizeof(chosen));
      }
    };
    kind(args.means, channels);
    kind(args.log_scales, channels);
    kind(args.coefficients, pairs);
  };
  take(0, [](const Floats& mine, const float*) { return mine; });
  Floats below = weight(0);
  for (int64_t k = 1; k < mixtures; ++k) {
    const auto before = less(threshold, below);
    take(k, [&](const Floats& mine, const float* held) { return select(before, floats(held), mine); });
    below = below + weight(k);
  }

  const float *means = one, *log_scales = one + channels * kLanes, *coefficients = one + 2 * channels * kLanes;
  for (int64_t c = 0; c < channels; ++c) {
    Floats mean = nan_like(total, floats(means + c * kLanes));
    for (int64_t j = 0; args.autoregressive && j < c; ++j, coefficients += kLanes) {
      mean = mean + philox::tanh(floats(coefficients), zero) * floats(x + j * kLanes);
    }
    Floats drawn =
        philox::draw(mean, floats(log_scales + c * kLanes), floats(u + (1 + c) * kLanes), args.scale_temperature, zero);
    if (args.quantized) drawn = philox::quantize(drawn, float(args.last), zero);
    std::memcpy(x + c * kLanes, &drawn, sizeof(drawn));
  }
}

template <class N>
void given_noise(const MixtureSampleArgs& args, int64_t sample, int64_t pixel, int64_t pixels, float* u) {
  constexpr int64_t kLanes = Vec<float>::size();
  const MixturePixels& at = args.noise_at;
  const N* from = static_cast<const N*>(args.noise) + sample * at.sample + pixel * at.pixel;
  for (int64_t c = 0; c <= args.channels; ++c) {
    for (int64_t i = 0; i < kLanes; ++i) {
      u[c * kLanes + i] = float(from[c * at.channel + std::min(i, pixels - 1) * at.pixel]);
    }
  }
}

// Parameters in storage S, of which float32 is made.
template <class S>
void mixture_sample(const MixtureSampleArgs& args, int64_t begin, int64_t end) {
  using X = Arithmetic<S>;
  constexpr int64_t kLanes = Vec<float>::size();
  const int64_t each = 1 + args.channels;
  Scratch<float> scratch((2 * args.parameters + 3 * each) * kLanes);
  float *const p = scratch, *const one = p + args.parameters * kLanes, *const u = one + args.parameters * kLanes;
  float *const numbers = u + each * kLanes, *const x = numbers + each * kLanes;
  const Lanes<float, S> lanes(args.parameters, args.p_at.channel, args.p_at.pixel);
  for_lanes(args.area, kLanes, begin, end, [&](int64_t sample, int64_t pixel, int64_t pixels) {
    lanes.load(static_cast<const S*>(args.p) + sample * args.p_at.sample + pixel * args.p_at.pixel, pixels, p);
    if (!args.noise) {
      const int64_t first = (sample * args.area + pixel) * each;
      fill_values<Distribution::kUniform>(args.stream, first, first + pixels * each, numbers);
      for (int64_t c = 0; c < each; ++c) {
        for (int64_t i = 0; i < kLanes; ++i) u[c * kLanes + i] = numbers[std::min(i, pixels - 1) * each + c];
      }
    } else if (args.noise_type == FloatType::kF32) {
      given_noise<float>(args, sample, pixel, pixels, u);
    } else if (args.noise_type == FloatType::kF64) {
      given_noise<double>(args, sample, pixel, pixels, u);
    } else if (args.noise_type == FloatType::kBF16) {
      given_noise<c10::BFloat16>(args, sample, pixel, pixels, u);
    } else {
      given_noise<c10::Half>(args, sample, pixel, pixels, u);
    }
    block_sample(args, p, u, one, x);
    X* to = static_cast<X*>(args.x) + sample * args.x_at.sample + pixel * args.x_at.pixel;
    for (int64_t c = 0; c < args.channels; ++c) {
      for (int64_t i = 0; i < pixels; ++i) to[c * args.x_at.channel + i * args.x_at.pixel] = X(x[c * kLanes + i]);
    }
  });
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
