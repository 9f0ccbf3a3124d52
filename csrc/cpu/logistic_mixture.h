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
  bool* outer;            // [channels]: whether some of its levels are the first or the last, or none
};

template <class T, class X>
bool read_levels_of(const MixtureNllArgs& a, const X* x, int64_t pixels, const Levels<T>& out) {
  constexpr int64_t kLanes = Vec<T>::size();
  const double last = double(a.last);
  bool fine = true;
  for (int64_t c = 0; c < a.channels; ++c) {
    T *level = out.level + c * kLanes, *high = out.high + c * kLanes, *low = out.low + c * kLanes;
    bool outer = false;
    for (int64_t i = 0; i < kLanes; ++i) {
      const X value = x[c * a.x_at.channel + std::min(i, pixels - 1) * a.x_at.pixel];
      double l;
      if constexpr (std::is_integral_v<X>) {
        l = double(value);
      } else {
        l = std::nearbyint((double(value) + 1.0) * (0.5 * last));
      }
      fine &= !(l < 0.0) && !(l > last);
      outer |= !(l > 0.0) || !(l < last);
      const double exact = (2.0 * l - last) / last;
      level[i] = T(l);
      high[i] = T(exact);
      low[i] = T(exact - double(high[i]));
    }
    out.outer[c] = outer;
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

// P(x) = factor e^offset, and the derivatives of log P(x). Three factors do not underflow.
template <class T>
struct Term {
  Vec<T> factor, offset, mean, log_scale;
};

// What selects a lane in an outer bin, if some may be. NaN is in none.
template <bool kOuter, class T>
struct Bins {
  using Mask = decltype(less(Vec<T>(0), Vec<T>(0)));
  Mask first, last;

  PYGEN_INLINE Bins(const T* level, const Vec<T>& last_level) {
    if constexpr (kOuter) {
      const Vec<T> l = Vec<T>::loadu(level), half(T(0.5));
      first = less(l, half), last = less(last_level - half, l);
    }
  }
  PYGEN_INLINE Vec<T> pick(const Vec<T>& in_first, const Vec<T>& in_last, const Vec<T>& inside) const {
    if constexpr (kOuter) return select(first, in_first, select(last, in_last, inside));
    return inside;
  }
};

// Of a scale so wide that 1 - e^-delta is delta (1 - delta / 2) the logarithm of the scale is taken apart.
template <class T>
constexpr T kWide = sizeof(T) == 4 ? T(12) : T(60);

template <class T>
PYGEN_INLINE Vec<T> inverse_scale(const Vec<T>& log_scale) {
  return exp_normal(at::vec::clamp_min(log_scale.neg(), Vec<T>(-60)));
}

// With q = 1 / scale, a = q (x - mean + half) and b = a - delta at the ends of the bin of x:
//   P = sigmoid(a) sigmoid(-b) (1 - e^-delta), without the factors that an outer bin lacks,
// and sigmoid(v) = e^min(v, 0) / (1 + e^-|v|).
template <bool kOpenai, bool kSlope, bool kOuter, class T>
PYGEN_INLINE Term<T> coarse_term(const Vec<T>& centred, const Vec<T>& log_scale, const Bins<kOuter, T>& bins,
                                 const Vec<T>& half) {
  using V = Vec<T>;
  const V zero(0), one(1), q = inverse_scale(log_scale);
  const V a = q * (centred + half), b = q * (centred - half), delta = q * (half + half);
  const V ea = exp_normal(a.abs().neg()), eb = exp_normal(b.abs().neg());
  V narrow, width;  // e^-delta, 1 - e^-delta
  exp_complement(delta, narrow, width);
  const V top = one + ea, bottom = one + eb, r = one / (top * bottom), ra = r * bottom, rb = r * top;
  const V above = at::vec::clamp_max(a, zero), below = at::vec::clamp_max(b.neg(), zero);
  const V left = select(less(zero, a), ea * ra, ra), right = select(less(zero, b), rb, eb * rb);  // sigmoid(-a), (b)
  const V shift = bins.pick(left.neg(), right, right - left);
  const V tilt = bins.pick((a * left).neg(), b * right, b * right - a * left);
  const V rest = delta * narrow / width;
  Term<T> out;
  if constexpr (!kOpenai) {
    const auto wide = less(V(kWide<T>), log_scale);
    out.factor = bins.pick(ra, rb, r * select(wide, (half + half) - half * delta, width));
    out.offset = bins.pick(above, below, above + below - select(wide, log_scale, zero));
    if constexpr (kSlope) {
      out.mean = q * shift;
      out.log_scale = tilt - bins.pick(zero, zero, rest);
    }
  } else {
    const V mass = select(less(zero, a), ra, ea * ra) - right, middle = q * centred;
    const V em = exp_normal(middle.abs().neg()), rm = one / (one + em);
    const auto likely = less(V(T(1e-5)), mass);
    out.factor = bins.pick(ra, rb, select(likely, mass, (half + half) * rm * rm));
    out.offset = bins.pick(above, below, select(likely, zero, (log_scale + middle.abs()).neg()));
    if constexpr (kSlope) {
      const V steep = select(less(middle, zero), one - em, em - one) * rm;  // 1 - 2 sigmoid(middle)
      out.mean = q * bins.pick(shift, shift, select(likely, shift, steep.neg()));
      out.log_scale = bins.pick(tilt, tilt, select(likely, tilt - rest, (middle * steep).neg() - one));
    }
  }
  return out;
}

// The same from m = q (x - mean) and h = q half, with an exponential less. With t = e^-|m| and s = e^-h
//   sigmoid(|m| + h) = 1 / (1 + t s), sigmoid(h - |m|) = t / (t + s), 1 - e^-delta = 1 - s^2.
// For bins so fine that h, of the narrowest scale too, is below 5: the difference of m and h is what counts.
template <bool kSlope, bool kOuter, class T>
PYGEN_INLINE Term<T> fine_term(const Vec<T>& centred, const Vec<T>& log_scale, const Bins<kOuter, T>& bins,
                               const Vec<T>& half) {
  using V = Vec<T>;
  const V zero(0), one(1), q = inverse_scale(log_scale), m = q * centred, h = q * half, depth = m.abs();
  const V t = exp_normal(depth.neg());
  V s, complement;
  exp_complement(h, s, complement);
  const V width = complement * (one + s), ts = t * s, near = one + ts, far = t + s, both = near * far;
  const V z = one / (both * width), r = z * width;
  const auto wide = less(V(kWide<T>), log_scale), negative = less(m, zero);
  Term<T> out;
  out.factor = r * bins.pick(select(negative, near, far), select(negative, far, near),
                             select(wide, (half + half) * (one - h), width));
  out.offset = bins.pick(at::vec::clamp_max(m, zero), at::vec::clamp_max(m.neg(), zero),
                         select(wide, (depth + log_scale).neg(), depth.neg()));
  if constexpr (kSlope) {
    const V shallow = ts * (far * r), deep = s * (near * r);
    const V left = select(negative, deep, shallow), right = select(negative, shallow, deep);  // sigmoid(-a), (b)
    const V rest = (h + h) * (s * s) * (z * both), a = m + h, b = m - h;
    out.mean = q * bins.pick(left.neg(), right, right - left);
    out.log_scale = bins.pick((a * left).neg(), b * right, b * right - a * left - rest);
  }
  return out;
}

// --- pixels ----------------------------------------------------------------------------------------------------------

enum class Method { kFine, kCoarse, kOpenai };

// nll of a block of pixels, and in `slope` its derivative by all parameters; both [parameters][lanes]. Without a
// derivative `slope` holds log P of the components. weights: [mixtures][lanes].
template <Method kMethod, bool kSlope, class T>
inline Vec<T> block_nll(const MixtureNllArgs& args, const Levels<T>& x, const T* __restrict p, T* __restrict slope,
                        T* __restrict weights) {
  using V = Vec<T>;
  using at::vec::fmadd;
  constexpr int64_t kLanes = V::size();
  const auto at = [&](const MixturePlaces& places, int64_t c, int64_t k) {
    return (places.first + places.channel * c + places.mixture * k) * kLanes;
  };
  const auto get = [](const T* from) { return V::loadu(from); };
  const int64_t channels = args.channels, mixtures = args.mixtures;
  const V last(T(args.last)), half(T(1) / T(args.last)), zero(0), infinity(std::numeric_limits<T>::infinity());

  V top = get(p);
  for (int64_t k = 1; k < mixtures; ++k) top = at::vec::maximum(top, get(p + k * kLanes));
  V total(0), best = infinity.neg();
  for (int64_t k = 0; k < mixtures; ++k) {
    const V logit = get(p + k * kLanes) - top, weight = exp_normal(logit);
    weight.store(weights + k * kLanes);
    total = total + weight;
    V log_p = logit, product(1);
    for (int64_t c = 0, n = 0; c < channels; ++c) {
      V centred = (get(x.high + c * kLanes) - get(p + at(args.means, c, k))) + get(x.low + c * kLanes);
      for (int64_t j = 0; args.autoregressive && j < c; ++j, ++n) {
        const V t = tanh_of(get(p + at(args.coefficients, n, k)));
        if constexpr (kSlope) t.store(slope + at(args.coefficients, n, k));
        centred = fmadd(t.neg(), get(x.high + j * kLanes), centred);
      }
      const V log_scale = at::vec::clamp_min(get(p + at(args.log_scales, c, k)), V(T(kLowestLogScale)));
      const auto add = [&](const auto& bins) {
        Term<T> one;
        if constexpr (kMethod == Method::kFine) {
          one = fine_term<kSlope>(centred, log_scale, bins, half);
        } else {
          one = coarse_term<kMethod == Method::kOpenai, kSlope>(centred, log_scale, bins, half);
        }
        product = product * one.factor;
        log_p = log_p + one.offset;
        if constexpr (kSlope) {
          one.mean.store(slope + at(args.means, c, k));
          one.log_scale.store(slope + at(args.log_scales, c, k));
        }
      };
      if (x.outer[c]) {
        add(Bins<true, T>(x.level + c * kLanes, last));
      } else {
        add(Bins<false, T>(x.level, last));
      }
      if (c % 3 == 2 || c == channels - 1) {
        log_p = log_p + log_normal(product);
        product = V(1);
      }
    }
    log_p.store(slope + k * kLanes);
    best = at::vec::maximum(best, log_p);
  }
  const V base = at::vec::maximum(best, V(std::numeric_limits<T>::lowest()));  // of components none of which can be
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
      fmadd(get(weights + k * kLanes), part_of, minus).store(slope + k * kLanes);
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
  Scratch<T> scratch((3 * channels + 2 * parameters + args.mixtures) * kLanes);
  Scratch<bool> outer(channels);
  T* const x = scratch;
  const Levels<T> levels{x, x + channels * kLanes, x + 2 * channels * kLanes, outer};
  T *const p = x + 3 * channels * kLanes, *const slope = p + parameters * kLanes;
  T* const weights = slope + parameters * kLanes;
  const Lanes<T, S> lanes(parameters, args.p_at);
  const auto block = [&] {
    const auto either = [&](auto with, auto without) { return args.slope ? with : without; };
    if (args.openai) return either(block_nll<Method::kOpenai, true, T>, block_nll<Method::kOpenai, false, T>);
    if (args.last < 255) return either(block_nll<Method::kCoarse, true, T>, block_nll<Method::kCoarse, false, T>);
    return either(block_nll<Method::kFine, true, T>, block_nll<Method::kFine, false, T>);
  }();
  bool fine = true;
  for_lanes(args.area, kLanes, begin, end, [&](int64_t sample, int64_t pixel, int64_t pixels) {
    fine &= read_levels(args, sample * args.x_at.sample + pixel * args.x_at.pixel, pixels, levels);
    const int64_t at = sample * args.p_at.sample + pixel * args.p_at.pixel;
    lanes.load(static_cast<const S*>(args.p) + at, pixels, p);
    block(args, levels, p, slope, weights).store(static_cast<T*>(args.nll) + sample * args.area + pixel, int(pixels));
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

// A task is a channel of a sample where pixels lie together, else kMixtureTask pixels.
template <class S>
void mixture_scale(const MixtureScaleArgs& args, int64_t begin, int64_t end) {
  using T = Arithmetic<S>;
  const S* in = static_cast<const S*>(args.slope);
  S* out = static_cast<S*>(args.out);
  const T* grad = static_cast<const T*>(args.grad);
  if (args.at.channel != 1) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t at = task * args.area;
      multiply_run(in + at, grad + task / args.parameters * args.area * args.grad_step, args.grad_step, out + at,
                   args.area);
    }
    return;
  }
  for_lanes(args.area, kMixtureTask, begin, end, [&](int64_t sample, int64_t pixel, int64_t pixels) {
    for (int64_t i = pixel; i < pixel + pixels; ++i) {
      const int64_t at = sample * args.at.sample + i * args.at.pixel;
      multiply_run(in + at, grad + (sample * args.area + i) * args.grad_step, 0, out + at, args.parameters);
    }
  });
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
