// Inverses of autoregressive transforms on a GPU: of one feature of one sample, by a thread. In PyTorch:
// reference/coupling.py and reference/rational_quadratic_spline.py; the names and the order of operations are those of
// csrc/cpu/coupling_blocks.h and csrc/cpu/spline_lanes.h.
//
// A feature's parameter c lies at p[c * kLanes]. Comparisons are written so that NaN is kept.
#pragma once
#include "device.h"
#include "made_inverse.h"

namespace pygen {
namespace cuda_made {
namespace {

template <class T>
PYGEN_DEVICE T at_least(T x, T low) {
  return x < low ? low : x;
}
template <class T>
PYGEN_DEVICE T at_most(T x, T high) {
  return high < x ? high : x;
}
template <class T>
PYGEN_DEVICE T clamped(T x, T low, T high) {
  return at_most(at_least(x, low), high);
}

// --- affine ----------------------------------------------------------------------------------------------------------

// S = m 2^n: products are scaled by 2^n last, so that they are right wherever the result is representable.
template <class T>
struct Scale {
  T m;
  int n;
  T log, slope;  // log S, and d log S / du

  PYGEN_DEVICE T value() const { return ldexp(m, n); }
};

// e^u = m 2^n, where u is large or small only so far that the result is infinite or 0 whatever it multiplies
template <class T>
PYGEN_DEVICE Scale<T> power(T u) {
  constexpr bool kWide = sizeof(T) == 8;
  constexpr T kMost = kWide ? T(3000) : T(400);
  constexpr T kHigh = kWide ? T(6.93147180369123816490e-01) : T(6.93145752e-01);  // ln 2, in two parts
  constexpr T kLow = kWide ? T(1.90821492927058770002e-10) : T(1.42860677e-06);
  const T within = clamped(u, -kMost, kMost), n = rint(within * T(1.4426950408889634));
  const T rest = multiply_add(-n, kLow, multiply_add(-n, kHigh, within));
  return {exp(rest), n == n ? int(n) : 0, u, T(1)};
}

template <class T>
PYGEN_DEVICE Scale<T> scale_of(T u, const AffineNumbers<T>& a) {
  Scale<T> s = power(u);
  if (a.activation != Activation::kExp) {
    const Scale<T> parts = power(-fabs(u));
    const T e = parts.value(), q = T(1) + e;  // e = exp(-|u|) in [0, 1]
    const bool negative = u < T(0);
    if (a.activation == Activation::kSigmoid) {
      s = {(negative ? parts.m : T(1)) / q, negative ? parts.n : 0, at_most(u, T(0)) - log1p(e),
           (negative ? T(1) : e) / q};
    } else if (u < T(-15)) {  // softplus(u) = e^u - e^2u / 2 + ...
      const T series = multiply_add(e, T(-0.5), T(1));
      s = {parts.m * series, parts.n, multiply_add(e, T(-0.5), u), series};
    } else {
      const T soft = at_least(u, T(0)) + log1p(e);
      s = {soft, 0, log(soft), (negative ? e : T(1)) / (q * soft)};
    }
  }
  if (a.eps > T(0)) {
    if (a.activation == Activation::kExp && u > T(1)) {  // e^u may overflow: S = e^u (1 + eps e^-u)
      const T q = multiply_add(a.eps, ldexp(T(1) / s.m, -s.n), T(1));
      s = {s.m * q, s.n, u + log(q), T(1) / q};
    } else {
      const T plain = s.value(), sum = plain + a.eps;
      s = {sum, 0, log(sum), s.slope * plain / sum};
    }
  }
  if (a.max_scale < s.value()) s = {a.max_scale, 0, a.log_max, T(0)};
  return s;
}

template <class T>
class Affine {
 public:
  PYGEN_DEVICE explicit Affine(const Launch<T>& a) : a_(a.affine) {}

  // x of y; log_slope = log |dx / dy|
  PYGEN_DEVICE T invert(T y, const T* p, T& log_slope) const {
    const T t = p[a_.shift * kLanes];
    log_slope = T(0);
    if (additive()) return multiply_add(a_.tau, t, y);
    const Scale<T> s = scale_of(squash(p[a_.scale * kLanes]).u, a_);
    log_slope = -s.log;
    if (a_.multiply_last) return over(multiply_add(a_.tau, t, y), s);
    return multiply_add(a_.tau, t, over(y, s));
  }

  // The gradient of y, and in the place of the parameters theirs.
  PYGEN_DEVICE T differentiate(T y, T x, T grad_x, T grad_log_slope, T* p) const {
    if (additive()) {
      p[0] = a_.tau * grad_x;
      return grad_x;
    }
    const Squashed q = squash(p[a_.scale * kLanes]);
    const Scale<T> s = scale_of(q.u, a_);
    const T grad_y = over(grad_x, s), z = a_.multiply_last ? x : over(y, s);
    const T grad_u = -s.slope * multiply_add(grad_x, z, grad_log_slope);
    p[a_.scale * kLanes] = grad_u * q.slope;
    p[a_.shift * kLanes] = a_.tau * (a_.multiply_last ? grad_y : grad_x);
    return grad_y;
  }

 private:
  struct Squashed {
    T u, slope;  // u = gain h(s / width) + offset; du / ds
  };

  PYGEN_DEVICE bool additive() const { return a_.activation == Activation::kAdditive; }
  PYGEN_DEVICE static T over(T x, const Scale<T>& s) { return ldexp(x / s.m, -s.n); }

  PYGEN_DEVICE Squashed squash(T s) const {
    T h = s * a_.inverse_width, slope = T(1);
    if (a_.squash == Squash::kTanh) {
      h = tanh(h);
      slope = multiply_add(-h, h, T(1));
    } else if (a_.squash == Squash::kAtan) {
      slope = T(1) / multiply_add(h, h, T(1));
      h = atan(h);
    } else if (a_.squash == Squash::kSoftsign) {
      const T r = T(1) / (T(1) + fabs(h));
      h *= r;
      slope = r * r;
    }
    return {multiply_add(a_.gain, h, a_.offset), a_.gain * slope * a_.inverse_width};
  }

  const AffineNumbers<T>& a_;
};

// --- rational-quadratic splines --------------------------------------------------------------------------------------

template <class T>
constexpr T kLeastLogit = sizeof(T) == 4 ? T(-60) : T(-600);  // below the largest
template <class T>
constexpr T kMostSlope = sizeof(T) == 4 ? T(1e12) : T(1e100);
constexpr int kGroup = 8;  // bins whose shares are added on their own: a long chain of sums would round more

template <class T>
class Spline {
 public:
  PYGEN_DEVICE explicit Spline(const Launch<T>& a) : a_(a.spline) {}

  PYGEN_DEVICE T invert(T y, const T* p, T& log_slope) const {
    const Bin b = find(y, p);
    const Point at = point(b, y);
    const T x = clamped(multiply_add(b.width, at.xi, b.x), a_.x.first, a_.x.last);
    log_slope = log(at.denominator / (at.s * at.root));
    if (inside(y)) return x;
    const T beyond = a_.bounded ? kNan<T> : T(0);
    log_slope = y == y ? beyond : y;
    return y + beyond;
  }

  PYGEN_DEVICE T differentiate(T y, T, T grad_x, T grad_log_slope, T* p) const {
    const Bin b = find(y, p);
    const Point at = point(b, y);
    const T xi = at.xi, rest = at.rest, q = at.q, s = at.s, d0 = b.d[0], d1 = b.d[1], beta = at.denominator;
    const T n = multiply_add(d1 * xi, xi, multiply_add(d0 * rest, rest, T(2) * s * q)), across = rest - xi;
    const T lower = multiply_add(s * xi, xi, d0 * q), upper = multiply_add(s * rest, rest, d1 * q);
    const T tilt = multiply_add(d1, xi, multiply_add(s, across, -(d0 * rest)));
    const T bend = multiply_add(T(-2), s, d0 + d1) * across;
    const T log_xi = T(2) * (tilt / n - bend / beta), q2 = T(2) * q / beta;

    const T g_l = -grad_log_slope, g_xi = -(grad_x * b.width);
    const T by_height = multiply_add(-g_l, log_xi, g_xi) / (s / beta * n);  // g_y height / beta
    const T g_y = by_height * beta / b.height;
    const T g_d0 = multiply_add(by_height * q, upper / beta, g_l * (rest * rest / n - q2));
    const T g_d1 = multiply_add(-(by_height * q), lower / beta, g_l * (xi * xi / n - q2));
    const T whole = multiply_add(d0, g_d0, d1 * g_d1);

    const bool within = inside(y);
    const auto masked = [&](T grad) { return within ? grad : T(0); };
    shares_backward(p, b.along_x, b.k, masked(-g_xi / b.width), masked((whole - g_l - xi * g_xi) / b.width));
    shares_backward(p + a_.bins * kLanes, b.along_y, b.k, masked(g_y),
                    masked(multiply_add(by_height, lower, g_l - whole) / b.height));
    T* const slopes = p + 2 * a_.bins * kLanes;
    const int count = a_.bins + (a_.ends == SplineEnds::kGiven) - (a_.ends == SplineEnds::kFixed);
    const int first = slope_place(b.k), second = slope_place(b.k + 1);
    for (int j = 0; j < count; ++j) {
      const T by_slope = j == first ? g_d0 * b.derivative[0] : j == second ? g_d1 * b.derivative[1] : T(0);
      slopes[j * kLanes] = masked(by_slope);
    }
    return within || y != y ? -g_y : a_.bounded ? kNan<T> : grad_x;
  }

 private:
  // Of the shares of an axis, which are e^(u - top) by their sum: those of the bins below the one that y is in, and of
  // that one, not yet divided; 1 / sum, and the size of a bin by its exponential.
  struct Shares {
    T top, inverse, unit, below, own;
  };
  struct Bin {
    int k;
    T x, width, y, height;  // its lower corner and size
    T d[2], derivative[2];  // slopes at its ends, and their derivatives by the raw ones
    Shares along_x, along_y;
  };
  struct Point {
    T xi, rest, q, s, denominator, root;
  };

  PYGEN_DEVICE static T bounded(T slope) { return clamped(slope, T(1) / kMostSlope<T>, kMostSlope<T>); }
  PYGEN_DEVICE bool inside(T y) const { return a_.y.lowest <= y && y <= a_.y.highest; }

  // zuko's soft clip u / (1 + |u / limit|), of which `shrink` is the root of the derivative
  PYGEN_DEVICE static T shrink(T u, T limit) { return T(1) / (T(1) + fabs(u) / limit); }
  PYGEN_DEVICE static T clip(T u, T limit) { return u * shrink(u, limit); }

  PYGEN_DEVICE T logit(const T* raw, int j) const {
    const T u = raw[j * kLanes];
    return a_.style == SplineStyle::kZuko ? clip(u, a_.clip / 2) : u;
  }
  PYGEN_DEVICE T exponential(const T* raw, int j, T top) const {
    return exp(at_least(logit(raw, j) - top, kLeastLogit<T>));
  }
  PYGEN_DEVICE Shares shares(const AxisNumbers<T>& axis, const T* raw) const {
    Shares s;
    s.top = logit(raw, 0);
    for (int j = 1; j < a_.bins; ++j) s.top = at_least(logit(raw, j), s.top);  // NaN may be lost: its power is not
    T sum = T(0);
    for (int group = 0; group < a_.bins; group += kGroup) {
      T part = T(0);
      for (int j = group; j < a_.bins && j < group + kGroup; ++j) part += exponential(raw, j, s.top);
      sum += part;
    }
    s.inverse = T(1) / sum, s.unit = axis.rest / sum;
    s.below = T(0), s.own = exponential(raw, 0, s.top);
    return s;
  }

  // Where the raw slope of a knot is among the parameters, -1 where it has none.
  PYGEN_DEVICE int slope_place(int knot) const {
    if (a_.ends == SplineEnds::kFixed) return knot < a_.bins ? knot - 1 : -1;
    return a_.ends == SplineEnds::kShared && knot == a_.bins ? 0 : knot;
  }
  PYGEN_DEVICE T slope_of(const T* slopes, int knot, T& derivative) const {
    derivative = T(0);
    const int place = slope_place(knot);
    if (place < 0) return bounded(a_.boundary_slope);
    const T raw = slopes[place * kLanes];
    if (a_.style == SplineStyle::kZuko) {
      constexpr T kMost = sizeof(T) == 4 ? T(27.6310211159) : T(230.258509299404568);  // log kMostSlope
      const T shrunk = shrink(raw, a_.clip), slope = bounded(exp(clamped(raw * shrunk, -kMost, kMost)));
      derivative = slope * shrunk * shrunk;
      return slope;
    }
    const T u = raw * a_.beta, e = exp(-fabs(u));
    derivative = (u < T(0) ? e : T(1)) / (T(1) + e);
    return bounded((at_least(u, T(0)) + log1p(e)) / a_.beta + a_.min_derivative);
  }

  PYGEN_DEVICE Bin find(T v, const T* p) const {
    const T *const widths = p, *const heights = p + a_.bins * kLanes;
    Bin b;
    Shares &x = b.along_x, &y = b.along_y;
    x = shares(a_.x, widths), y = shares(a_.y, heights);
    b.k = 0, b.y = a_.y.first;
    T here_x = x.own, here_y = y.own, total_x = T(0), total_y = T(0), part_x = T(0), part_y = T(0);
    for (int j = 1; j < a_.bins; ++j) {
      part_x += here_x, part_y += here_y;
      here_x = exponential(widths, j, x.top), here_y = exponential(heights, j, y.top);
      const T below = total_y + part_y, knot = multiply_add(below, y.unit, multiply_add(T(j), a_.y.least, a_.y.first));
      if (knot <= v) {
        b.k = j, b.y = knot;
        y.below = below, y.own = here_y, x.below = total_x + part_x, x.own = here_x;
      }
      if (j % kGroup == 0) total_x += part_x, total_y += part_y, part_x = part_y = T(0);
    }
    b.x = multiply_add(x.below, x.unit, multiply_add(T(b.k), a_.x.least, a_.x.first));
    b.width = multiply_add(x.own, x.unit, a_.x.least), b.height = multiply_add(y.own, y.unit, a_.y.least);
    const T* const slopes = p + 2 * a_.bins * kLanes;
    for (int end = 0; end < 2; ++end) b.d[end] = slope_of(slopes, b.k + end, b.derivative[end]);
    return b;
  }

  PYGEN_DEVICE Point point(const Bin& b, T v) const {
    Point at;
    at.s = bounded(b.height / b.width);
    const T eta = a_.y.last <= v ? T(1) : clamped((v - b.y) / b.height, T(0), T(1)), other = T(1) - eta;
    const T end = T(2) * at.s * other, begin = T(2) * at.s * eta;
    const T slant = multiply_add(other, b.d[0], -(eta * b.d[1]));
    at.root = sqrt(multiply_add(slant, slant, begin * end));
    const T large = at.root + fabs(slant), upper = slant < T(0) ? large : begin, lower = slant < T(0) ? end : large;
    at.xi = upper / (upper + lower), at.rest = lower / (upper + lower);
    at.q = at.xi * at.rest;
    at.denominator = multiply_add(b.d[0] + b.d[1], at.q, at.s * multiply_add(at.q, T(-2), T(1)));
    return at;
  }

  // In the place of an axis' raw shares their gradients, from those of a bin's corner and size.
  PYGEN_DEVICE void shares_backward(T* raw, const Shares& s, int k, T corner, T size) const {
    const T mean = multiply_add(corner, s.below, size * s.own) * s.inverse;
    const bool none = corner == T(0) && size == T(0);
    for (int j = 0; j < a_.bins; ++j) {
      T grad = exponential(raw, j, s.top) * s.unit * ((j < k ? corner : j == k ? size : T(0)) - mean);
      if (a_.style == SplineStyle::kZuko) {
        const T shrunk = shrink(raw[j * kLanes], a_.clip / 2);
        grad *= shrunk * shrunk;
      }
      raw[j * kLanes] = none ? T(0) : grad;
    }
  }

  const SplineNumbers<T>& a_;
};

}  // namespace
}  // namespace cuda_made
}  // namespace pygen
