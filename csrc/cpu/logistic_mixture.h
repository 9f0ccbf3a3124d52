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
  const double last = double(a.last), inverse = 1.0 / last;
  int wrong = 0;
  for (int64_t c = 0; c < a.channels; ++c, x += a.x_at.channel) {
    X values[kLanes];
    if (a.x_at.pixel == 1 && pixels == kLanes) {
      std::memcpy(values, x, sizeof(values));
    } else {
      for (int64_t i = 0; i < kLanes; ++i) values[i] = x[std::min(i, pixels - 1) * a.x_at.pixel];
    }
    double level[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      const double value = double(values[i]);
      level[i] = std::is_integral_v<X> ? value : std::nearbyint((value + 1.0) * (0.5 * last));
    }
    T *const levels = out.level + c * kLanes, *const high = out.high + c * kLanes, *const low = out.low + c * kLanes;
    int outer = 0;
    for (int64_t i = 0; i < kLanes; ++i) {  // apart from the conversions: as vectors
      const double l = level[i], exact = (2.0 * l - last) * inverse;
      wrong |= int(l < 0.0) | int(l > last);
      outer |= int(!(l > 0.0)) | int(!(l < last));
      levels[i] = T(l);
      high[i] = T(exact);
      low[i] = T(exact - double(T(exact)));
    }
    out.outer[c] = outer != 0;
  }
  return wrong == 0;
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

enum class Method { kFine, kCoarse, kOpenai };

// A term is computed in steps (1 / scale, its Ends, itself), each for all components before the next: a core does not
// look far enough ahead to begin the next component's beside a chain of operations as long as all.

// What the exponentials are of, and they, in memory from one step to the next.
template <class T>
struct Ends {
  Vec<T> q, a, b, ea, eb;  // 1 / scale; a, b; e^-|a|, e^-|b|
  Vec<T> narrow, width;    // e^-delta, 1 - e^-delta; the fine method's of delta / 2
  Vec<T> middle, em;       // m = q (x - mean), e^-|m|
};

// P(x) = factor e^offset, and the derivatives of log P(x). Three factors do not underflow.
template <class T>
struct Term {
  Vec<T> factor, offset, mean, log_scale;
};

// What selects a lane in an outer bin, if some may be. NaN is in none.
template <bool kOuter, class T>
struct Bins {
  using V = Vec<T>;
  using Mask = decltype(less(V(0), V(0)));
  Mask first, last;

  PYGEN_INLINE Bins(const T* level, const V& last_level) {
    if constexpr (kOuter) {
      const V l = V::loadu(level), half(T(0.5));
      first = less(l, half), last = less(last_level - half, l);
    }
  }
  PYGEN_INLINE V pick(const V& in_first, const V& in_last, const V& inside) const {
    if constexpr (kOuter) return select(first, in_first, select(last, in_last, inside));
    return inside;
  }
};

// Of a scale so wide that 1 - e^-delta is delta (1 - delta / 2) the logarithm of the scale is taken apart.
template <class T>
constexpr T kWide = sizeof(T) == 4 ? T(12) : T(60);

template <class T>
PYGEN_INLINE Vec<T> at_most_zero(const Vec<T>& x) {
  return at::vec::clamp_max(x, Vec<T>(0));
}

template <class T>
PYGEN_INLINE Vec<T> inverse_scale(const Vec<T>& log_scale) {
  return exp_normal(at::vec::clamp_min(log_scale.neg(), Vec<T>(T(-60))));
}

template <class T>
PYGEN_INLINE void coarse_ends(const Vec<T>& centred, const Vec<T>& half, Ends<T>& e) {
  const Vec<T> q = e.q, a = q * (centred + half), b = q * (centred - half);
  e.a = a, e.b = b, e.middle = q * centred;
  e.ea = exp_normal(a.abs().neg()), e.eb = exp_normal(b.abs().neg());
  exp_complement(q * (half + half), e.narrow, e.width);
}

// With q = 1 / scale, a = q (x - mean + half) and b = a - delta at the ends of the bin of x:
//   P = sigmoid(a) sigmoid(-b) (1 - e^-delta), without the factors that an outer bin lacks,
// and sigmoid(v) = e^min(v, 0) / (1 + e^-|v|).
template <bool kOpenai, bool kSlope, bool kOuter, class T>
PYGEN_INLINE Term<T> coarse_term(const Ends<T>& e, const Vec<T>& log_scale, const Bins<kOuter, T>& bins,
                                 const Vec<T>& half) {
  using V = Vec<T>;
  const V zero(0), one(1), &q = e.q, &a = e.a, &b = e.b, &ea = e.ea, &eb = e.eb, delta = q * (half + half);
  const V top = one + ea, bottom = one + eb, r = one / (top * bottom), ra = r * bottom, rb = r * top;
  const V above = at_most_zero(a), below = at_most_zero(b.neg());
  const V left = select(less(zero, a), ea * ra, ra), right = select(less(zero, b), rb, eb * rb);  // sigmoid(-a), (b)
  const V shift = bins.pick(left.neg(), right, right - left);
  const V tilt = bins.pick((a * left).neg(), b * right, b * right - a * left);
  const V rest = delta * e.narrow / e.width;
  Term<T> out;
  if constexpr (!kOpenai) {
    const auto wide = less(V(kWide<T>), log_scale);
    out.factor = bins.pick(ra, rb, r * select(wide, (half + half) - half * delta, e.width));
    out.offset = bins.pick(above, below, above + below - select(wide, log_scale, zero));
    if constexpr (kSlope) {
      out.mean = q * shift;
      out.log_scale = tilt - bins.pick(zero, zero, rest);
    }
  } else {
    const V mass = select(less(zero, a), ra, ea * ra) - right, &middle = e.middle;
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

template <class T>
PYGEN_INLINE void fine_ends(const Vec<T>& centred, const Vec<T>& half, Ends<T>& e) {
  const Vec<T> q = e.q, m = q * centred;
  e.middle = m;
  e.em = exp_normal(m.abs().neg());
  exp_complement(q * half, e.narrow, e.width);
}

// The same from m = q (x - mean) and h = q half, with an exponential less. With t = e^-|m| and s = e^-h
//   sigmoid(|m| + h) = 1 / (1 + t s), sigmoid(h - |m|) = t / (t + s), 1 - e^-delta = 1 - s^2.
// For bins so fine that h, of the narrowest scale too, is below 5: the difference of m and h is what counts.
template <bool kSlope, bool kOuter, class T>
PYGEN_INLINE Term<T> fine_term(const Ends<T>& e, const Vec<T>& log_scale, const Bins<kOuter, T>& bins,
                               const Vec<T>& half) {
  using V = Vec<T>;
  const V zero(0), one(1), &q = e.q, &m = e.middle, &t = e.em, &s = e.narrow, h = q * half, depth = m.abs();
  const V width = e.width * (one + s), ts = t * s, near = one + ts, far = t + s, both = near * far;
  const V z = one / (both * width), r = z * width;
  const auto wide = less(V(kWide<T>), log_scale), negative = less(m, zero);
  Term<T> out;
  out.factor = r * bins.pick(select(negative, near, far), select(negative, far, near),
                             select(wide, (half + half) * (one - h), width));
  out.offset = bins.pick(at_most_zero(m), at_most_zero(m.neg()), select(wide, (depth + log_scale).neg(), depth.neg()));
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

// What a block needs for each of its components beside the parameters.
template <class T>
struct Components {
  T *weights, *products;  // [mixtures][lanes]
  Ends<T>* ends;          // [mixtures]
};

// nll of a block of pixels, and in `slope` its derivative by all parameters; both [parameters][lanes]. Without a
// derivative `slope` is scratch. `ahead` takes two turns a component and channel.
template <Method kMethod, bool kSlope, class T>
inline Vec<T> block_nll(const MixtureNllArgs& args, const Levels<T>& x, const T* __restrict p, T* __restrict slope,
                        const Components<T>& of, Ahead ahead) {
  using V = Vec<T>;
  using at::vec::fmadd;
  constexpr int64_t kLanes = V::size();
  const auto at = [&](const MixturePlaces& places, int64_t c, int64_t k) {
    return (places.first + places.channel * c + places.mixture * k) * kLanes;
  };
  const auto get = [](const T* from) { return V::loadu(from); };
  const int64_t channels = args.channels, mixtures = args.mixtures, pairs = channels * (channels - 1) / 2;
  const V last(T(args.last)), half(T(1) / T(args.last)), zero(0), infinity(std::numeric_limits<T>::infinity());
  const auto log_scale_of = [&](int64_t c, int64_t k) {
    return at::vec::clamp_min(get(p + at(args.log_scales, c, k)), V(T(kLowestLogScale)));
  };

  V top = get(p);
  for (int64_t k = 1; k < mixtures; ++k) top = at::vec::maximum(top, get(p + k * kLanes));
  V total(0);
  T* const log_p = slope;  // of the components, in the logits' place
  for (int64_t k = 0; k < mixtures; ++k) {
    const V logit = get(p + k * kLanes) - top, weight = exp_normal(logit);
    logit.store(log_p + k * kLanes);
    weight.store(of.weights + k * kLanes);
    total = total + weight;
  }
  for (int64_t n = 0; args.autoregressive && n < pairs; ++n) {
    for (int64_t k = 0; k < mixtures; ++k) {
      const int64_t place = at(args.coefficients, n, k);
      tanh(get(p + place)).store(slope + place);
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    const V high = get(x.high + c * kLanes), low = get(x.low + c * kLanes);
    for (int64_t k = 0; k < mixtures; ++k) of.ends[k].q = inverse_scale(log_scale_of(c, k));
    for (int64_t k = 0; k < mixtures; ++k) {
      ahead.ask();
      V centred = (high - get(p + at(args.means, c, k))) + low;
      for (int64_t j = 0; args.autoregressive && j < c; ++j) {
        const V t = get(slope + at(args.coefficients, c * (c - 1) / 2 + j, k));
        centred = fmadd(t.neg(), get(x.high + j * kLanes), centred);
      }
      if constexpr (kMethod == Method::kFine) {
        fine_ends(centred, half, of.ends[k]);
      } else {
        coarse_ends(centred, half, of.ends[k]);
      }
    }
    const auto add = [&](const auto& bins) {
      for (int64_t k = 0; k < mixtures; ++k) {
        ahead.ask();
        T *const product = of.products + k * kLanes, *const sum = log_p + k * kLanes;
        Term<T> term;
        if constexpr (kMethod == Method::kFine) {
          term = fine_term<kSlope>(of.ends[k], log_scale_of(c, k), bins, half);
        } else {
          term = coarse_term<kMethod == Method::kOpenai, kSlope>(of.ends[k], log_scale_of(c, k), bins, half);
        }
        (c % 3 ? get(product) * term.factor : term.factor).store(product);
        (get(sum) + term.offset).store(sum);
        if constexpr (kSlope) {
          term.mean.store(slope + at(args.means, c, k));
          term.log_scale.store(slope + at(args.log_scales, c, k));
        }
      }
    };
    if (x.outer[c]) {
      add(Bins<true, T>(x.level + c * kLanes, last));
    } else {
      add(Bins<false, T>(x.level, last));
    }
    if (c % 3 == 2 || c == channels - 1) {
      for (int64_t k = 0; k < mixtures; ++k) {
        T* const sum = log_p + k * kLanes;
        (get(sum) + log_normal(get(of.products + k * kLanes))).store(sum);
      }
    }
  }
  V best = infinity.neg();
  for (int64_t k = 0; k < mixtures; ++k) best = at::vec::maximum(best, get(log_p + k * kLanes));
  const V base = at::vec::maximum(best, V(std::numeric_limits<T>::lowest()));  // of components none of which can be
  V sum(0);
  for (int64_t k = 0; k < mixtures; ++k) {
    const V e = exp_normal(get(log_p + k * kLanes) - base);
    e.store(slope + k * kLanes);
    sum = sum + e;
  }
  if constexpr (kSlope) {
    const V share_of = V(1) / sum, part_of = V(1) / total, least(std::nextafter(T(kLowestLogScale), T(-8)));
    for (int64_t k = 0; k < mixtures; ++k) {
      const V minus = get(slope + k * kLanes).neg() * share_of;
      fmadd(get(of.weights + k * kLanes), part_of, minus).store(slope + k * kLanes);
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
  Scratch<T> scratch((3 * channels + 2 * parameters + 2 * args.mixtures) * kLanes);
  Scratch<Ends<T>> ends(args.mixtures);
  Scratch<bool> outer(channels);
  T* const x = scratch;
  const Levels<T> levels{x, x + channels * kLanes, x + 2 * channels * kLanes, outer};
  T *const p = x + 3 * channels * kLanes, *const slope = p + parameters * kLanes;
  T* const weights = slope + parameters * kLanes;
  const Components<T> components{weights, weights + args.mixtures * kLanes, ends};
  const Lanes<T, S> lanes(parameters, args.p_at.channel, args.p_at.pixel);
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
    const S* const from = static_cast<const S*>(args.p) + at;
    S* const to = args.slope ? static_cast<S*>(args.slope) + at : nullptr;
    lanes.load(from, pixels, p);
    block(args, levels, p, slope, components, lanes.ahead(from, to ? to : from, 2 * channels * args.mixtures))
        .store(static_cast<T*>(args.nll) + sample * args.area + pixel, int(pixels));
    if (to) lanes.store(to, pixels, slope);
  });
  return fine;
}

// --- the backward ----------------------------------------------------------------------------------------------------

// out[i] = in[i] factor[i factor_step]
template <class T>
inline void multiply(const T* __restrict in, const T* __restrict factor, int64_t factor_step, T* __restrict out,
                     int64_t n) {
  const auto by = [&](const auto& factors) {
    for_vectors<T>(n, [&](int64_t i, auto count) {
      (Vec<T>::loadu(in + i, count) * factors(i, count)).store(out + i, int(count));
    });
  };
  if (factor_step) {
    by([&](int64_t i, auto count) { return Vec<T>::loadu(factor + i, count); });
  } else {
    by([all = Vec<T>(*factor)](int64_t, auto) { return all; });
  }
}

template <class T, class S>
inline void multiply_run(const S* in, const T* factor, int64_t factor_step, S* out, int64_t n) {
  if constexpr (std::is_same_v<T, S>) return multiply(in, factor, factor_step, out, n);
  T values[kBlock], products[kBlock];
  for (; n > 0; n -= kBlock, in += kBlock, out += kBlock, factor += kBlock * factor_step) {
    const int64_t m = std::min(n, kBlock);
    load_run(values, in, m);
    multiply(values, factor, factor_step, products, m);
    store_run(out, products, m, false);
  }
}

// A task is a channel of a sample where its pixels lie together, or all have one factor, else kMixtureTask pixels.
template <class S>
void mixture_scale(const MixtureScaleArgs& args, int64_t begin, int64_t end) {
  using T = Arithmetic<S>;
  const S* in = static_cast<const S*>(args.slope);
  S* out = static_cast<S*>(args.out);
  const T* grad = static_cast<const T*>(args.grad);
  if (args.in_planes()) {
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
