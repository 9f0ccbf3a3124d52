// Cached sampling on a GPU: draws from what a program has computed for a pixel, and their probability. A warp has an
// image; all lanes get the result. The steps of reference/causal_sampler.py.
#pragma once
#include "causal_sampler.h"
#include "causal_sampler_device.h"
#include "common/logistic.h"

namespace pygen {
namespace cuda_sampler {
namespace {

// --- the random stream -----------------------------------------------------------------------------------------------

// Word `element` of an image's stream.
PYGEN_DEVICE uint32_t word_of(const Launch& a, int64_t image, int64_t element) {
  const uint64_t sample = a.ids ? uint64_t(a.ids[image]) : a.first_sample + uint64_t(image);
  const uint32_t counter = uint32_t(element / 64 * 16 + element % 16);
  const philox::Words w = philox::encrypt({counter, a.step, uint32_t(sample), uint32_t(sample >> 32)}, a.seed);
  const int64_t k = element % 64 / 16;
  return k == 0 ? w.x : k == 1 ? w.y : k == 2 ? w.z : w.w;
}
PYGEN_DEVICE int64_t noise_at(const Launch& a, int64_t image, int64_t number, int64_t pixel) {
  return (image * a.draws + number) * a.height * a.width + pixel;
}
PYGEN_DEVICE uint32_t word(const Launch& a, int64_t image, int64_t number, int64_t pixel) {
  if (a.noise) return uint32_t(a.noise[noise_at(a, image, number, pixel)] * 4294967296.0);
  return word_of(a, image, a.offset + pixel * a.draws + number);
}
PYGEN_DEVICE float uniform(const Launch& a, int64_t image, int64_t number, int64_t pixel) {
  if (a.noise) return float(a.noise[noise_at(a, image, number, pixel)]);
  return philox::uniform(word_of(a, image, a.offset + pixel * a.draws + number));
}

// --- log of a sum of exponentials ------------------------------------------------------------------------------------

struct LogSum {
  double top = -kInfinity<double>, sum = 0;

  PYGEN_DEVICE void add(double x) {
    if (x > top) {
      sum = sum * exp(top - x) + 1;
      top = x;
    } else if (!(x == -kInfinity<double>)) {
      sum += exp(x - top);
    }
  }
  // of all lanes
  PYGEN_DEVICE double value() const {
    const double most = largest(top);
    const double whole = sum_of(top == most ? sum : sum * exp(top - most));
    return most + log(whole);
  }
};

// --- categorical -----------------------------------------------------------------------------------------------------

template <class T>
class Categorical {
 public:
  PYGEN_DEVICE Categorical(const Launch& a, const T* z, int lane) : a_(a), z_(z), lane_(lane), levels_(a.levels) {}

  // 0 where the logits are no distribution: nobody looks at what a GPU computes
  PYGEN_DEVICE int draw(uint32_t word) {
    T most = -kInfinity<T>;
    int bad = 0;
    for (int k = lane_; k < levels_; k += 32) {
      bad |= z_[k] != z_[k];
      most = z_[k] > most ? z_[k] : most;
    }
    top_ = largest(most);
    bad |= !(top_ - top_ == 0);
    if (largest(bad)) return 0;
    if (a_.temperature == 0) {
      int first = levels_;
      for (int k = levels_ - 32 + lane_; k >= 0; k -= 32) first = z_[k] == top_ ? k : first;
      for (int k = lane_; k < levels_ % 32; k += 32) first = z_[k] == top_ ? k : first;
      return -largest(-first);
    }
    if (a_.top_k > 0 && a_.top_k < levels_) keep_likeliest();
    if (a_.top_p < 1) keep_mass();
    return invert(word);
  }

  PYGEN_DEVICE double log_prob(int64_t level) const {
    LogSum sum;
    for (int k = lane_; k < levels_; k += 32) sum.add(double(z_[k]));
    return double(z_[level]) - sum.value();
  }

 private:
  PYGEN_DEVICE float logit(int k) const { return float(z_[k] - top_) / a_.temperature; }
  // In units of 2^-30 of the likeliest level's weight: sums of integers have no order.
  PYGEN_DEVICE uint32_t weight(int k) const {
    const float x = logit(k);
    if (x < least_) return 0;
    const uint32_t units = philox::exp_units(x);
    return units < cut_ ? 0 : units;
  }

  // Ascends as x does.
  PYGEN_DEVICE static uint32_t key(float x) {
    const uint32_t bits = philox::as_bits(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  }
  PYGEN_DEVICE void keep_likeliest() {
    uint32_t found = 0;  // the largest that so many keys reach, bit by bit
    for (uint32_t bit = 0x80000000u; bit; bit >>= 1) {
      int count = 0;
      for (int k = lane_; k < levels_; k += 32) count += key(logit(k)) >= (found | bit);
      if (sum_of(count) >= a_.top_k) found |= bit;
    }
    least_ = philox::as_float(found & 0x80000000u ? found & 0x7fffffffu : ~found);
  }
  PYGEN_DEVICE void keep_mass() {
    unsigned long long own = 0;
    for (int k = lane_; k < levels_; k += 32) own += weight(k);
    const double mass = a_.top_p * double(sum_of(own));
    uint32_t low = 0, high = 1u << 30;  // the least weight such that all larger ones sum to less
    while (low < high) {
      const uint32_t middle = (low + high) / 2;
      unsigned long long likelier = 0;
      for (int k = lane_; k < levels_; k += 32) {
        const uint32_t w = weight(k);
        likelier += w > middle ? w : 0;
      }
      if (double(sum_of(likelier)) < mass) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    cut_ = low;
  }

  // The first level up to which the weights sum to more than word / 2^32 of all.
  PYGEN_DEVICE int invert(uint32_t word) const {
    unsigned long long own = 0;
    for (int k = lane_; k < levels_; k += 32) own += weight(k);
    const unsigned long long total = sum_of(own);
    unsigned long long threshold = word * (total >> 32) + (word * (total & 0xffffffffu) >> 32);
    for (int k = 0; k < levels_; k += 32) {
      unsigned long long below = k + lane_ < levels_ ? weight(k + lane_) : 0;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const unsigned long long left = __shfl_up_sync(kAll, below, step);
        if (lane_ >= step) below += left;
      }
      const int first = -largest(below > threshold ? -lane_ : -32);
      if (first < 32) return k + first;
      threshold -= __shfl_sync(kAll, below, 31);
    }
    return 0;
  }

  const Launch& a_;
  const T* z_;
  const int lane_, levels_;
  T top_ = 0;
  float least_ = -kInfinity<float>;  // logits below, and weights below, are left out
  uint32_t cut_ = 0;
};

// --- mixtures --------------------------------------------------------------------------------------------------------

// All channels of a pixel, by one thread; x [channels] gets points of the grid in [-1, 1].
template <class T>
PYGEN_DEVICE void draw_mixture(const Launch& a, const T* p, int64_t image, int64_t pixel, float* x) {
  const float zero = 0;
  float top = float(p[0]);
  for (int k = 1; k < a.mixtures; ++k) top = top < float(p[k]) ? float(p[k]) : top;
  const auto weight = [&](int k) { return philox::weight((float(p[k]) - top) * a.coldness, zero); };
  float total = weight(0);
  for (int k = 1; k < a.mixtures; ++k) total = total + weight(k);
  const float threshold = uniform(a, image, 0, pixel) * total;
  int chosen = 0;  // the last component whose predecessors' weights are no more than the threshold
  float below = weight(0);
  for (int k = 1; k < a.mixtures; ++k) {
    chosen = threshold < below ? chosen : k;
    below = below + weight(k);
  }
  const auto of = [&](const MixturePlaces& at, int64_t n) {
    return float(p[at.first + at.channel * n + at.mixture * chosen]);
  };
  int64_t pair = 0;
  for (int c = 0; c < a.channels; ++c) {
    float mean = of(a.means, c) + (total - total);  // NaN as the weights
    for (int j = 0; j < c; ++j, ++pair) mean = mean + philox::tanh(of(a.coefficients, pair), zero) * x[j];
    const float u = uniform(a, image, 1 + c, pixel);
    const float drawn = philox::draw(mean, of(a.log_scales, c), u, a.temperature, zero);
    x[c] = philox::quantize(drawn, float(a.levels - 1), zero);
  }
}

PYGEN_DEVICE double log_sigmoid(double x) { return x < 0 ? x - log1p(exp(x)) : -log1p(exp(-x)); }

// log P of the levels of a pixel, which are `step` numbers apart: as logistic_mixture_nll of
// reference/logistic_mixture.py, a lane to a component.
template <class T>
PYGEN_DEVICE double mixture_log_prob(const Launch& a, const T* p, const int64_t* levels, int64_t step, int lane) {
  const double last = double(a.levels - 1), half = 1 / last;
  const auto on_grid = [&](int c) { return (2 * double(levels[c * step]) - last) / last; };
  LogSum joint, prior;
  for (int k = lane; k < a.mixtures; k += 32) {
    const auto of = [&](const MixturePlaces& at, int64_t n) {
      return double(p[at.first + at.channel * n + at.mixture * k]);
    };
    double sum = double(p[k]);
    int64_t pair = 0;
#pragma unroll 1
    for (int c = 0; c < a.channels; ++c) {
      double centred = on_grid(c) - of(a.means, c);
      for (int j = 0; j < c; ++j, ++pair) centred -= tanh(of(a.coefficients, pair)) * on_grid(j);
      const double log_scale = of(a.log_scales, c), q = exp(-(log_scale < -7.0 ? -7.0 : log_scale));
      const bool below = double(levels[c * step]) != last, above = levels[c * step] != 0;
      if (below) sum += log_sigmoid(q * (centred + half));
      if (above) sum += log_sigmoid(-(q * (centred - half)));
      if (below && above) sum += log(-expm1(-2 * half * q));
    }
    joint.add(sum);
    prior.add(double(p[k]));
  }
  return joint.value() - prior.value();
}

}  // namespace
}  // namespace cuda_sampler
}  // namespace pygen
