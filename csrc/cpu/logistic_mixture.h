// Likelihood of discretised logistic mixtures and its derivative in one pass, one ISA tier: a lane to a pixel.
#pragma once
#include <limits>

#include "logistic_mixture_block.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

constexpr double kLowestLogScale = -7;

// --- levels ----------------------------------------------------------------------------------------------------------

// What a channel's level is to the arithmetic: x = high + low, as the difference from a mean near it must not round.
template <class T>
struct Levels {
  T *level, *high, *low;  // [channels][lanes]
};

template <class T, class X>
bool read_levels_of(const MixtureNllArgs& a, const X* x, int64_t pixels, const Levels<T>& out) {
  constexpr int64_t kLanes = Vec<T>::size();
  const double last = double(a.last);
  bool fine = true;
  for (int64_t c = 0; c < a.channels; ++c) {
    T *level = out.level + c * kLanes, *high = out.high + c * kLanes, *low = out.low + c * kLanes;
    for (int64_t i = 0; i < kLanes; ++i) {
      const X value = x[c * a.x_at.channel + std::min(i, pixels - 1) * a.x_at.pixel];
      double l;
      if constexpr (std::is_integral_v<X>) {
        l = double(value);
      } else {
        l = std::nearbyint((double(value) + 1.0) * (0.5 * last));
      }
      fine &= !(l < 0.0) && !(l > last);
      const double exact = (2.0 * l - last) / last;
      level[i] = T(l);
      high[i] = T(exact);
      low[i] = T(exact - double(high[i]));
    }
  }
  return fine;
}

// False: one is out of range. NaN is none.
template <class T>
bool read_levels(const MixtureNllArgs& a, int64_t at, int64_t pixels, const Levels<T>& out) {
  const auto read = [&](auto type) {
    using X = decltype(type);
    return read_levels_of<T, X>(a, static_cast<const X*>(a.x) + at, pixels, out);
  };
  if (a.integers) {
    switch (IntType(a.x_type)) {
      case IntType::kU8:
        return read(uint8_t{});
      case IntType::kI8:
        return read(int8_t{});
      case IntType::kI16:
        return read(int16_t{});
      case IntType::kI32:
        return read(int32_t{});
      case IntType::kI64:
        return read(int64_t{});
    }
  }
  switch (FloatType(a.x_type)) {
    case FloatType::kF32:
      return read(float{});
    case FloatType::kF64:
      return read(double{});
    case FloatType::kBF16:
      return read(c10::BFloat16{});
    case FloatType::kF16:
      return read(c10::Half{});
  }
  return false;
}

// --- one channel under one component ---------------------------------------------------------------------------------

// tanh to two units in the last place, for less than vmath's
template <class T>
PYGEN_INLINE Vec<T> tanh_of(const Vec<T>& x) {
  const Vec<T> a = x.abs();
  Vec<T> power, complement;
  exp_complement(a + a, power, complement);
  const Vec<T> t = complement / (power + Vec<T>(1));
  return select(less(x, Vec<T>(0)), t.neg(), t);
}

template <class T>
struct Term {
  Vec<T> log_p, mean, log_scale;  // log P(x); its derivatives
};

// With q = 1 / scale, a = q (x - mean + half) and b = a - delta at the ends of the bin of x:
//   P = sigmoid(a) sigmoid(-b) (1 - e^-delta), without the factors that an outer bin lacks.
// One logarithm for all: sigmoid(v) = e^min(v, 0) / (1 + e^-|v|).
template <bool kOpenai, bool kSlope, class T>
PYGEN_INLINE Term<T> term(const Vec<T>& centred, const Vec<T>& given_log_scale, const Vec<T>& level, const Vec<T>& last,
                          const Vec<T>& half) {
  using V = Vec<T>;
  const V zero(0), one(1);
  // NaN is neither
  const auto first_bin = less(level, V(T(0.5))), last_bin = less(last - V(T(0.5)), level);
  const auto outer = [&](const V& yes, const V& no) { return select(first_bin, yes, select(last_bin, yes, no)); };

  const V log_scale = at::vec::clamp_min(given_log_scale, V(T(kLowestLogScale)));
  const V q = exp_normal(log_scale.neg());
  const V a = q * (centred + half), b = q * (centred - half), delta = q * (half + half);
  const V ea = exp_normal(a.abs().neg()), eb = exp_normal(b.abs().neg());
  V narrow, width;  // e^-delta, 1 - e^-delta
  exp_complement(delta, narrow, width);

  // 1 + e^-|v| at both ends, 1 where the bin has none
  const V top = select(last_bin, one, one + ea), bottom = select(first_bin, one, one + eb);
  const V r = one / (top * bottom), ra = r * bottom, rb = r * top;
  const V edges = select(last_bin, zero, at::vec::clamp_max(a, zero)) +
                  select(first_bin, zero, at::vec::clamp_max(b.neg(), zero));
  Term<T> out;
  // sigmoid(-a), sigmoid(b)
  const V left = select(last_bin, zero, select(less(zero, a), ea * ra, ra));
  const V right = select(first_bin, zero, select(less(zero, b), rb, eb * rb));
  if constexpr (!kOpenai) {
    // Of a scale so wide that 1 - e^-delta may underflow only its logarithm is taken: log delta.
    const auto wide = less(V(60), log_scale);
    const V factor = outer(one, select(wide, half + half, width));
    out.log_p = log_normal(factor * r) + edges - outer(zero, select(wide, log_scale, zero));
    if constexpr (kSlope) {
      out.mean = q * (right - left);
      const V rest = outer(zero, select(wide, one, delta * narrow / width));
      out.log_scale = b * right - a * left - rest;
    }
  } else {
    const V mass = select(less(zero, a), ra, ea * ra) - right, middle = q * centred;
    const V em = exp_normal(middle.abs().neg()), rm = one / (one + em);
    const V shift = log_normal(half + half) - log_scale - middle.abs();
    const auto likely = less(V(T(1e-5)), mass);
    out.log_p = log_normal(outer(r, select(likely, mass, rm * rm))) + outer(edges, select(likely, zero, shift));
    if constexpr (kSlope) {
      const V tilt = select(less(middle, zero), one - em, em - one) * rm;  // 1 - 2 sigmoid(middle)
      const V scaled = b * right - a * left - delta * narrow / width;
      out.mean = outer(right - left, select(likely, right - left, tilt.neg())) * q;
      out.log_scale = outer(b * right - a * left, select(likely, scaled, (middle * tilt).neg() - one));
    }
  }
  return out;
}

// --- pixels ----------------------------------------------------------------------------------------------------------

// nll of a block of pixels, and in `slope` its derivative by all parameters; both [parameters][lanes]. Without a
// derivative `slope` holds log P of the components.
template <bool kOpenai, bool kSlope, class T>
inline Vec<T> block_nll(const MixtureNllArgs& args, const Levels<T>& x, const T* __restrict p, T* __restrict slope) {
  using V = Vec<T>;
  using at::vec::fmadd;
  constexpr int64_t kLanes = V::size();
  const auto at = [&](const MixturePlaces& places, int64_t c, int64_t k) {
    return (places.first + places.channel * c + places.mixture * k) * kLanes;
  };
  const auto get = [](const T* from) { return V::loadu(from); };
  const int64_t channels = args.channels, mixtures = args.mixtures;
  const V last(T(args.last)), half(T(1) / T(args.last)), zero(0), lowest(std::numeric_limits<T>::lowest());

  V top = get(p);
  for (int64_t k = 1; k < mixtures; ++k) top = at::vec::maximum(top, get(p + k * kLanes));
  V total(0), best(-std::numeric_limits<T>::infinity());
  for (int64_t k = 0; k < mixtures; ++k) {
    const V logit = get(p + k * kLanes) - top;
    V log_p = logit;
    for (int64_t c = 0, n = 0; c < channels; ++c) {
      V centred = (get(x.high + c * kLanes) - get(p + at(args.means, c, k))) + get(x.low + c * kLanes);
      for (int64_t j = 0; args.autoregressive && j < c; ++j, ++n) {
        const V t = tanh_of(get(p + at(args.coefficients, n, k)));
        if constexpr (kSlope) t.store(slope + at(args.coefficients, n, k));
        centred = fmadd(t.neg(), get(x.high + j * kLanes), centred);
      }
      const auto one = term<kOpenai, kSlope>(centred, get(p + at(args.log_scales, c, k)), get(x.level + c * kLanes),
                                             last, half);
      log_p = log_p + one.log_p;
      if constexpr (kSlope) {
        one.mean.store(slope + at(args.means, c, k));
        one.log_scale.store(slope + at(args.log_scales, c, k));
      }
    }
    total = total + exp_normal(logit);
    log_p.store(slope + k * kLanes);
    best = at::vec::maximum(best, log_p);
  }
  const V base = at::vec::maximum(best, lowest);  // of components none of which can be
  V sum(0);
  for (int64_t k = 0; k < mixtures; ++k) {
    const V e = exp_normal(get(slope + k * kLanes) - base);
    e.store(slope + k * kLanes);
    sum = sum + e;
  }
  if constexpr (kSlope) {
    const V share_of = V(1) / sum, part_of = V(1) / total, least(std::nextafter(T(kLowestLogScale), T(-8)));
    for (int64_t k = 0; k < mixtures; ++k) {
      const V minus = get(slope + k * kLanes).neg() * share_of;
      fmadd(exp_normal(get(p + k * kLanes) - top), part_of, minus).store(slope + k * kLanes);
      for (int64_t c = 0, n = 0; c < channels; ++c) {
        const V mean = get(slope + at(args.means, c, k)) * minus;
        mean.store(slope + at(args.means, c, k));
        const V log_scale = get(slope + at(args.log_scales, c, k)) * minus;
        select(less(least, get(p + at(args.log_scales, c, k))), log_scale, zero)
            .store(slope + at(args.log_scales, c, k));
        for (int64_t j = 0; args.autoregressive && j < c; ++j, ++n) {
          T* place = slope + at(args.coefficients, n, k);
          const V t = get(place);
          (mean * get(x.high + j * kLanes) * fmadd(t.neg(), t, V(1))).store(place);
        }
      }
    }
  }
  return log_normal(total) - (best + log_normal(sum));
}

template <class S>
bool mixture_nll(const MixtureNllArgs& args, int64_t begin, int64_t end) {
  using T = Arithmetic<S>;
  constexpr int64_t kLanes = Vec<T>::size();
  const int64_t channels = args.channels, parameters = args.parameters;
  Scratch<T> scratch((3 * channels + 2 * parameters) * kLanes);
  T* const x = scratch;
  const Levels<T> levels{x, x + channels * kLanes, x + 2 * channels * kLanes};
  T *const p = x + 3 * channels * kLanes, *const slope = p + parameters * kLanes;
  const Lanes<T, S> lanes(parameters, args.p_at);
  const auto block = args.openai ? (args.slope ? block_nll<true, true, T> : block_nll<true, false, T>)
                                 : (args.slope ? block_nll<false, true, T> : block_nll<false, false, T>);
  bool fine = true;
  for_lanes(args.area, kLanes, begin, end, [&](int64_t sample, int64_t pixel, int64_t pixels) {
    fine &= read_levels(args, sample * args.x_at.sample + pixel * args.x_at.pixel, pixels, levels);
    const int64_t at = sample * args.p_at.sample + pixel * args.p_at.pixel;
    lanes.load(static_cast<const S*>(args.p) + at, pixels, p);
    block(args, levels, p, slope).store(static_cast<T*>(args.nll) + sample * args.area + pixel, int(pixels));
    if (args.slope) lanes.store(static_cast<S*>(args.slope) + at, pixels, slope);
  });
  return fine;
}

// --- the backward ----------------------------------------------------------------------------------------------------

// out[i] = in[i] factor[i factor_step]
template <class T, class S>
inline void multiply_run(const S* __restrict in, const T* __restrict factor, int64_t factor_step, S* __restrict out,
                         int64_t n) {
  T values[kBlock];
  for (; n > 0; n -= kBlock, in += kBlock, out += kBlock, factor += kBlock * factor_step) {
    const int64_t m = std::min(n, kBlock);
    load_run(values, in, m);
    if (factor_step) {
      for (int64_t i = 0; i < m; ++i) values[i] *= factor[i];
    } else {
      const T all = *factor;
      for (int64_t i = 0; i < m; ++i) values[i] *= all;
    }
    store_run(out, values, m, false);
  }
}

template <class S>
void mixture_scale(const MixtureScaleArgs& args, int64_t begin, int64_t end) {
  using T = Arithmetic<S>;
  for_lanes(args.area, kMixtureTask, begin, end, [&](int64_t sample, int64_t pixel, int64_t pixels) {
    const int64_t at = sample * args.at.sample + pixel * args.at.pixel;
    const S* in = static_cast<const S*>(args.slope) + at;
    S* out = static_cast<S*>(args.out) + at;
    const T* grad = static_cast<const T*>(args.grad) + (sample * args.area + pixel) * args.grad_step;
    if (args.at.channel == 1) {
      for (int64_t i = 0; i < pixels; ++i) {
        const int64_t row = i * args.at.pixel;
        multiply_run(in + row, grad + i * args.grad_step, 0, out + row, args.parameters);
      }
    } else {
      for (int64_t c = 0; c < args.parameters; ++c) {
        multiply_run(in + c * args.at.channel, grad, args.grad_step, out + c * args.at.channel, pixels);
      }
    }
  });
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
