// Rational-quadratic splines, a lane to an element, one ISA tier. In PyTorch: reference/rational_quadratic_spline.py.
//
// An element's parameters are read once. They lie in blocks [parameter][lanes], where one walk over the bins adds up
// the shares and keeps what belongs to the bin that the element is in.
#pragma once
#include <limits>
#include <vector>

#include "lanes.h"
#include "rational_quadratic_spline_args.h"
#include "stored_blocks.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

// --- numbers of a call, in the type of the arithmetic ----------------------------------------------------------------

template <class T>
constexpr T kLeastLogit = sizeof(T) == 4 ? T(-60) : T(-600);  // below the largest
template <class T>
constexpr T kMostSlope = sizeof(T) == 4 ? T(1e12) : T(1e100);
constexpr int64_t kGroup = 8;    // bins whose shares are added on their own
constexpr int64_t kVectors = 4;  // that are worked on side by side

template <class T>
struct SplineAxisNumbers {
  T first, last, lowest, highest;  // as in SplineAxis
  T least, rest;                   // size of a bin of no share; what the shares are of
  T empty[kMaxBins];               // position of a knot below which there is no share

  SplineAxisNumbers(const SplineAxis& a, int64_t bins)
      : first(T(a.first)), last(T(a.last)), lowest(T(a.lowest)), highest(T(a.highest)) {
    const double whole = a.last - a.first;
    least = T(whole * a.least);
    rest = T(whole * (1 - double(bins) * a.least));
    for (int64_t j = 0; j < bins; ++j) empty[j] = T(a.first + double(j) * whole * a.least);
  }
};

template <class T>
struct SplineNumbers {
  const SplineArgs& args;
  SplineAxisNumbers<T> x, y;
  T index[kMaxBins + 1];

  explicit SplineNumbers(const SplineArgs& a) : args(a), x(a.x_axis, a.bins), y(a.y_axis, a.bins) {
    for (int64_t j = 0; j <= kMaxBins; ++j) index[j] = T(j);
  }
};

// A vector of elements' parameters: raw ones, later exponentials; slopes at the knots 0 to K, of which the first and
// last may be missing. Side by side in memory: at a distance of pages they would be mistaken for, and evict, each
// other.
template <class T>
struct SplineBlocks {
  T *widths, *heights, *slopes;
  T *x_shrinks, *y_shrinks;  // derivatives of the soft clip

  static constexpr int64_t kKinds = 5;
  SplineBlocks(T* memory, int64_t bins, int64_t number) {
    const int64_t each = (bins + 1) * Vec<T>::size();
    memory += number * kKinds * each;
    for (T** kind : {&widths, &heights, &slopes, &x_shrinks, &y_shrinks}) *kind = memory, memory += each;
  }
  T* kind(int i) const { return i == 0 ? widths : i == 1 ? heights : slopes; }
};

// Of the vectors that are worked on side by side.
template <class T>
class SplineMemory {
 public:
  explicit SplineMemory(int64_t bins) : memory_(kVectors * SplineBlocks<T>::kKinds * (bins + 1) * Vec<T>::size()) {
    for (int64_t i = 0; i < kVectors; ++i) blocks_.emplace_back(memory_, bins, i);
  }
  const SplineBlocks<T>& operator[](size_t i) const { return blocks_[i]; }

 private:
  Scratch<T> memory_;
  std::vector<SplineBlocks<T>> blocks_;
};

template <class T>
PYGEN_INLINE Vec<T> lane(const T* block, int64_t j) {
  return Vec<T>::loadu(block + j * Vec<T>::size());
}
template <class T>
PYGEN_INLINE void put(T* block, int64_t j, const Vec<T>& v) {
  v.store(block + j * Vec<T>::size());
}

// Lines of the parameters of elements to come, asked for while others are worked on: these take longer than what a core
// looks ahead.
class SplineAhead {
 public:
  void add(const void* memory, int64_t bytes, int64_t turns) {
    const int64_t lines = tiles(bytes, kLine);
    parts_[count_++] = {static_cast<const char*>(memory), lines, tiles(lines, turns)};
  }

  PYGEN_INLINE void ask() {  // inlined: GCC drops calls that do nothing else
    for (int i = 0; i < count_; ++i) {
      Part& p = parts_[i];
      for (int64_t n = std::min(p.each, p.left); n > 0; --n, --p.left, p.at += kLine) __builtin_prefetch(p.at);
    }
  }

 private:
  struct Part {
    const char* at;
    int64_t left, each;
  };
  Part parts_[kSplineKinds];
  int count_ = 0;
};

// --- from parameters to slopes and shares ----------------------------------------------------------------------------

template <class T>
PYGEN_INLINE Vec<T> bounded(const Vec<T>& slope) {
  return at::vec::clamp(slope, Vec<T>(1 / kMostSlope<T>), Vec<T>(kMostSlope<T>));
}

// zuko's soft clip u / (1 + |u / limit|), and its derivative
template <class T>
PYGEN_INLINE Vec<T> clip(const Vec<T>& u, T limit, Vec<T>* derivative = nullptr) {
  const Vec<T> shrink = Vec<T>(1) / at::vec::fmadd(u.abs(), Vec<T>(1 / limit), Vec<T>(1));
  if (derivative) *derivative = shrink * shrink;
  return u * shrink;
}

// A slope of its raw parameter, and its derivative.
template <class T>
PYGEN_INLINE Vec<T> slope_of(const SplineArgs& a, const Vec<T>& raw, Vec<T>* derivative = nullptr) {
  using V = Vec<T>;
  using at::vec::fmadd;
  const V zero(0), one(1);
  if (a.style == SplineStyle::kKnots) {
    if (derivative) *derivative = one;
    return bounded(raw);
  }
  if (a.style == SplineStyle::kZuko) {
    V shrink = zero;
    const V most(std::log(kMostSlope<T>)), clipped = clip(raw, T(a.clip), &shrink);
    const V slope = bounded(exp_normal(at::vec::clamp(clipped, most.neg(), most)));
    if (derivative) *derivative = slope * shrink;
    return slope;
  }
  const V u = raw * V(T(a.beta)), e = exp_normal(u.abs().neg()), z = one + e;
  // log(1 + e) with what rounding 1 + e lost, which is so little that 1 / z may be a line
  const V log = fmadd(e - (z - one), fmadd(z, V(T(-0.5)), V(T(1.5))), log_normal(z));
  if (derivative) *derivative = select(less(u, zero), e, one) / z;
  return bounded(fmadd(at::vec::clamp_min(u, zero) + log, V(T(1 / a.beta)), V(T(a.min_derivative))));
}

// Raw widths and heights clipped, with the derivatives of that.
template <class T>
PYGEN_INLINE void clip_shares(const SplineArgs& a, const SplineBlocks<T>& b) {
  const auto one = [&](T* u, T* shrinks) {
    for (int64_t j = 0; j < a.bins; ++j) {
      Vec<T> shrink;
      put(u, j, clip(lane(u, j), T(a.clip / 2), &shrink));
      put(shrinks, j, shrink);
    }
  };
  one(b.widths, b.x_shrinks);
  one(b.heights, b.y_shrinks);
}

// e^(u - the largest u) in the place of each, and their sum
template <class T>
PYGEN_INLINE Vec<T> exponentials(T* u, int64_t bins) {
  using V = Vec<T>;
  V top = lane(u, 0), sum(0);
  for (int64_t j = 1; j < bins; ++j) top = at::vec::clamp_min(lane(u, j), top);  // NaN may be lost: its power is not
  for (int64_t group = 0; group < bins; group += kGroup) {
    V part(0);
    for (int64_t j = group; j < std::min(bins, group + kGroup); ++j) {
      const Expm1<T> e = expm1_rest(at::vec::clamp_min(lane(u, j) - top, V(kLeastLogit<T>)));
      const V power = scale2_normal(e.q + V(1), e.n);
      put(u, j, power);
      part = part + power;
    }
    sum = sum + part;
  }
  return sum;
}

// --- the bin of an element -------------------------------------------------------------------------------------------

template <class T>
struct SplineBin {
  Vec<T> k, x, width, y, height;
  Vec<T> first, last;      // what is within, along the axis of what was given
  Vec<T> d[2];             // slopes at the bin's ends; raw until end_slopes
  Vec<T> d_derivative[2];  // of them by the raw ones, backward
};

// Along an axis, what gradients of shares need: exponentials of the bins below, summed, and of this one; 1 / sum of
// all; size of a bin by its exponential.
template <class T>
struct SplineShares {
  Vec<T> below, own, inverse, unit;
};

// kInverse: v is a y. In `b` raw widths and heights become exponentials.
template <bool kInverse, class T>
PYGEN_INLINE SplineBin<T> bin_of_shares(const SplineNumbers<T>& numbers, const SplineBlocks<T>& b, const Vec<T>& v,
                                        SplineShares<T>& x, SplineShares<T>& y) {
  using V = Vec<T>;
  using at::vec::fmadd;
  const int64_t bins = numbers.args.bins;
  const V x_sum = exponentials(b.widths, bins), y_sum = exponentials(b.heights, bins);
  x.unit = V(numbers.x.rest) / x_sum, y.unit = V(numbers.y.rest) / y_sum;  // rounded once: knots depend on them
  x.inverse = V(1) / x_sum, y.inverse = V(1) / y_sum;
  const T *const own = kInverse ? b.heights : b.widths, *const other = kInverse ? b.widths : b.heights;
  const SplineAxisNumbers<T>&axis = kInverse ? numbers.y : numbers.x, &beside = kInverse ? numbers.x : numbers.y;
  SplineShares<T>&along = kInverse ? y : x, &across = kInverse ? x : y;
  SplineBin<T> bin;

  V at(axis.first), here = lane(own, 0), other_here = lane(other, 0), next = lane(b.slopes, 1);
  along.below = across.below = bin.k = V(0), along.own = here, across.own = other_here;
  bin.d[0] = lane(b.slopes, 0), bin.d[1] = next;
  V total(0), other_total(0);  // of whole groups of bins: long chains of sums would round more than twice as much
  for (int64_t group = 1; group < bins; group += kGroup) {
    V part(0), other_part(0);
    for (int64_t j = group; j < std::min(bins, group + kGroup); ++j) {
      part = part + here, other_part = other_part + other_here;
      here = lane(own, j), other_here = lane(other, j);
      const V below = total + part, other_below = other_total + other_part;
      const V knot = fmadd(below, along.unit, V(axis.empty[j])), slope = next;
      next = lane(b.slopes, j + 1);
      const auto above = less_equal(knot, v);
      at = select(above, knot, at);
      along.below = select(above, below, along.below), along.own = select(above, here, along.own);
      across.below = select(above, other_below, across.below), across.own = select(above, other_here, across.own);
      bin.d[0] = select(above, slope, bin.d[0]), bin.d[1] = select(above, next, bin.d[1]);
      bin.k = select(above, V(numbers.index[j]), bin.k);
    }
    total = total + part, other_total = other_total + other_part;
  }
  bin.first = V(axis.lowest), bin.last = V(axis.highest);
  (kInverse ? bin.y : bin.x) = at;
  (kInverse ? bin.x : bin.y) = fmadd(across.below, across.unit, fmadd(bin.k, V(beside.least), V(beside.first)));
  bin.width = fmadd(x.own, x.unit, V(numbers.x.least)), bin.height = fmadd(y.own, y.unit, V(numbers.y.least));
  return bin;
}

// The same where the parameters are the knots.
template <bool kInverse, class T>
PYGEN_INLINE SplineBin<T> bin_of_knots(const SplineNumbers<T>& numbers, const SplineBlocks<T>& b, const Vec<T>& v) {
  using V = Vec<T>;
  const int64_t bins = numbers.args.bins;
  const T* const own = kInverse ? b.heights : b.widths;
  SplineBin<T> bin;
  bin.k = V(0), bin.first = lane(own, 0), bin.last = lane(own, bins);
  bin.x = lane(b.widths, 0), bin.y = lane(b.heights, 0), bin.d[0] = lane(b.slopes, 0), bin.d[1] = lane(b.slopes, 1);
  V right = lane(b.widths, 1), top = lane(b.heights, 1);
  for (int64_t j = 1; j < bins; ++j) {
    const auto above = less_equal(lane(own, j), v);
    bin.x = select(above, lane(b.widths, j), bin.x), right = select(above, lane(b.widths, j + 1), right);
    bin.y = select(above, lane(b.heights, j), bin.y), top = select(above, lane(b.heights, j + 1), top);
    bin.d[0] = select(above, lane(b.slopes, j), bin.d[0]), bin.d[1] = select(above, lane(b.slopes, j + 1), bin.d[1]);
    bin.k = select(above, V(numbers.index[j]), bin.k);
  }
  const V least(1 / kMostSlope<T>);
  bin.width = at::vec::clamp_min(right - bin.x, least), bin.height = at::vec::clamp_min(top - bin.y, least);
  return bin;
}

// --- within a bin ----------------------------------------------------------------------------------------------------

// What follows is done step by step, each for several vectors: one vector's chain of operations is longer than what a
// core looks ahead, but a step's is short.

template <bool kBackward, class T>
PYGEN_INLINE void end_slopes(const SplineNumbers<T>& numbers, SplineBin<T>* bins, int64_t count) {
  using V = Vec<T>;
  const SplineArgs& a = numbers.args;
  const V fixed = bounded(V(T(a.boundary_slope)));
  for (int64_t i = 0; i < count; ++i) {
    SplineBin<T>& bin = bins[i];
    for (int end = 0; end < 2; ++end) {
      bin.d[end] = slope_of(a, bin.d[end], kBackward ? &bin.d_derivative[end] : nullptr);
    }
    if (a.ends == SplineEnds::kFixed) {
      bin.d[0] = select(less(bin.k, V(T(0.5))), fixed, bin.d[0]);
      bin.d[1] = select(less(V(T(a.bins) - T(1.5)), bin.k), fixed, bin.d[1]);
    }
  }
}

template <class T>
struct SplinePoint {
  Vec<T> xi, rest, q, s, d0, d1;
  Vec<T> denominator;    // beta
  Vec<T> inverse_width;  // backward, and forward from x
  Vec<T> root;           // from y
};

template <bool kInverse, bool kBackward, class T>
PYGEN_INLINE SplinePoint<T> point_in(const SplineBin<T>& bin, const Vec<T>& v) {
  using V = Vec<T>;
  using at::vec::fmadd;
  const V zero(0), one(1), two(2);
  SplinePoint<T> p;
  p.d0 = bin.d[0], p.d1 = bin.d[1];
  V at;
  if constexpr (kInverse) {
    at = (v - bin.y) / bin.height;
    p.s = bin.height / bin.width;
    if (kBackward) p.inverse_width = one / bin.width;
  } else {
    p.inverse_width = one / bin.width;
    at = (v - bin.x) * p.inverse_width;
    p.s = bin.height * p.inverse_width;
  }
  p.s = bounded(p.s);
  at = select(less_equal(bin.last, v), one, at::vec::clamp(at, zero, one));
  if constexpr (kInverse) {
    const V other = one - at, end = two * p.s * other, begin = two * p.s * at;
    const V slant = fmadd(other, p.d0, (at * p.d1).neg());
    p.root = fmadd(slant, slant, begin * end).sqrt();
    const auto falls = less(slant, zero);
    const V large = p.root + slant.abs(), upper = select(falls, large, begin), lower = select(falls, end, large);
    const V inverse = one / (upper + lower);
    p.xi = upper * inverse, p.rest = lower * inverse;
  } else {
    p.xi = at, p.rest = one - at;
  }
  p.q = p.xi * p.rest;
  p.denominator = fmadd(p.d0 + p.d1, p.q, p.s * fmadd(p.q, V(-2), one));
  return p;
}

template <class T>
PYGEN_INLINE Vec<T> numerator(const SplinePoint<T>& p) {
  using at::vec::fmadd;
  return fmadd(p.d1 * p.xi, p.xi, fmadd(p.d0 * p.rest, p.rest, Vec<T>(2) * p.s * p.q));
}

// The bin of shares or of knots; of shares, what their gradients need.
template <bool kKnots, bool kInverse, class T>
PYGEN_INLINE SplineBin<T> find_bin(const SplineNumbers<T>& numbers, const SplineBlocks<T>& b, const Vec<T>& v,
                                   SplineShares<T>& x, SplineShares<T>& y) {
  if constexpr (kKnots) {
    return bin_of_knots<kInverse>(numbers, b, v);
  } else {
    if (numbers.args.style == SplineStyle::kZuko) clip_shares(numbers.args, b);
    return bin_of_shares<kInverse>(numbers, b, v, x, y);
  }
}

// `yes` within the bounds
template <class T>
PYGEN_INLINE Vec<T> inside(const SplineBin<T>& bin, const Vec<T>& v, const Vec<T>& yes, const Vec<T>& no) {
  return select(less_equal(bin.first, v), select(less_equal(v, bin.last), yes, no), no);
}

// --- forward ---------------------------------------------------------------------------------------------------------

// The value in the place of what was given, and the slope.
template <bool kKnots, bool kInverse, class T>
PYGEN_INLINE void evaluate(const SplineNumbers<T>& numbers, const SplineBin<T>& bin, T* value, T* slope) {
  using V = Vec<T>;
  using at::vec::fmadd;
  const V v = V::loadu(value), one(1);
  const SplinePoint<T> p = point_in<kInverse, false>(bin, v);
  V y, steep;
  if constexpr (kInverse) {
    y = fmadd(bin.width, p.xi, bin.x);
    steep = p.denominator / (p.s * p.root);
  } else {
    const V inverse = one / p.denominator, mean = p.s * inverse;
    y = fmadd(fmadd(p.s * p.xi, p.xi, p.d0 * p.q) * inverse, bin.height, bin.y);
    steep = mean * numerator(p) * mean;
  }
  if constexpr (!kKnots) {
    const auto& axis = kInverse ? numbers.x : numbers.y;
    y = at::vec::clamp(y, V(axis.first), V(axis.last));
  }
  const V nan(std::numeric_limits<T>::quiet_NaN());
  const bool bounded = numbers.args.bounded;
  inside(bin, v, y, bounded ? nan : v).store(value);
  inside(bin, v, steep, select(equal(v, v), bounded ? nan : one, v)).store(slope);
}

// Of `count` vectors x the values, in their place, and the logarithms of the slopes.
template <bool kKnots, bool kInverse, class T>
__attribute__((noinline)) void spline_lanes(const SplineNumbers<T>& numbers, int64_t count,
                                            const SplineMemory<T>& blocks, T* value, T* slope, SplineAhead ahead = {}) {
  constexpr int64_t W = Vec<T>::size();
  SplineBin<T> bins[kVectors];
  for (int64_t i = 0; i < count; ++i) {
    SplineShares<T> x, y;
    ahead.ask();
    bins[i] = find_bin<kKnots, kInverse>(numbers, blocks[i], lane(value, i), x, y);
  }
  end_slopes<false>(numbers, bins, count);
  for (int64_t i = 0; i < count; ++i) evaluate<kKnots, kInverse>(numbers, bins[i], value + i * W, slope + i * W);
  for (int64_t i = 0; i < count; ++i) put(slope, i, log_normal(lane(slope, i)));
}

// --- backward --------------------------------------------------------------------------------------------------------

// Gradients of shares' parameters from those of a bin's corner and size, in the place of the exponentials. shrinks:
// derivatives of the soft clip, or null.
template <class T>
PYGEN_INLINE void shares_backward(const SplineNumbers<T>& numbers, T* e, const T* shrinks,
                                  const SplineShares<T>& shares, const SplineBin<T>& bin, const Vec<T>& v,
                                  const Vec<T>& corner, const Vec<T>& size) {
  using V = Vec<T>;
  using at::vec::fmadd;
  const V zero(0), mean = fmadd(corner, shares.below, size * shares.own) * shares.inverse;
  const auto within = less_equal(bin.first, v) & less_equal(v, bin.last);
  for (int64_t j = 0; j < numbers.args.bins; ++j) {
    const V index(numbers.index[j]);
    const V slope = select(less(index, bin.k), corner, select(equal(index, bin.k), size, zero));
    const V grad = lane(e, j) * shares.unit * (slope - mean);
    put(e, j, select(within, shrinks ? grad * lane(shrinks, j) : grad, zero));
  }
}

// Two numbers, at k and at k + 1, among zeros.
template <class T>
PYGEN_INLINE void put_two(const SplineNumbers<T>& numbers, T* block, const Vec<T>& k, const Vec<T>& first,
                          const Vec<T>& second) {
  using V = Vec<T>;
  const V zero(0);
  V carried = zero;  // the second, if the bin was the one before
  for (int64_t j = 0; j <= numbers.args.bins; ++j) {
    const auto here = equal(V(numbers.index[j]), k);
    put(block, j, select(here, first, carried));
    carried = select(here, second, zero);
  }
}

template <bool kKnots, bool kInverse, class T>
PYGEN_INLINE void differentiate(const SplineNumbers<T>& numbers, const SplineBin<T>& bin, const SplineShares<T>& x,
                                const SplineShares<T>& y, const SplineBlocks<T>& b, T* value, const T* grad_y,
                                const T* grad_logabsdet) {
  using V = Vec<T>;
  using at::vec::fmadd;
  const SplineArgs& a = numbers.args;
  const V v = V::loadu(value), zero(0), one(1), two(2);
  const SplinePoint<T> p = point_in<kInverse, true>(bin, v);
  const V n = numerator(p), by_n = one / n, by_beta = one / p.denominator, across = p.rest - p.xi;
  const V lower = fmadd(p.s * p.xi, p.xi, p.d0 * p.q), upper = fmadd(p.s * p.rest, p.rest, p.d1 * p.q);
  const V tilt = fmadd(p.d1, p.xi, fmadd(p.s, across, (p.d0 * p.rest).neg()));
  const V bend = fmadd(V(-2), p.s, p.d0 + p.d1) * across;
  const V log_xi = two * fmadd(tilt, by_n, (bend * by_beta).neg());
  const V eta_by_xi = p.s * by_beta * n;  // times beta: eta differentiated

  const V upstream = V::loadu(grad_y);
  V g_y = upstream, g_l = V::loadu(grad_logabsdet), g_xi, by_height;  // by_height: g_y height / beta
  if constexpr (kInverse) {
    g_l = g_l.neg(), g_xi = (upstream * bin.width).neg();
    by_height = fmadd(g_l.neg(), log_xi, g_xi) / eta_by_xi;
    g_y = by_height * p.denominator / bin.height;
  } else {
    by_height = g_y * bin.height * by_beta;
    g_xi = fmadd(by_height, eta_by_xi, g_l * log_xi);
  }
  const V q2 = two * p.q * by_beta;
  const V g_d0 = fmadd(by_height * p.q, upper * by_beta, g_l * fmadd(p.rest * p.rest, by_n, q2.neg()));
  const V g_d1 = fmadd((by_height * p.q).neg(), lower * by_beta, g_l * fmadd(p.xi * p.xi, by_n, q2.neg()));
  const V whole = fmadd(p.d0, g_d0, p.d1 * g_d1);
  const V grad_x = kInverse ? g_y.neg() : g_xi * p.inverse_width;
  const auto masked = [&](const V& t) __attribute__((always_inline)) { return inside(bin, v, t, zero); };
  const V corner_x = masked((g_xi * p.inverse_width).neg()), corner_y = masked(g_y);
  const V size_x = masked((whole - g_l - p.xi * g_xi) * p.inverse_width);
  const V size_y = masked(fmadd(by_height, lower, g_l - whole) / bin.height);

  const V nan(std::numeric_limits<T>::quiet_NaN());
  inside(bin, v, grad_x, select(equal(v, v), a.bounded ? nan : upstream, grad_x)).store(value);
  if constexpr (kKnots) {
    put_two(numbers, b.widths, bin.k, corner_x - size_x, size_x);
    put_two(numbers, b.heights, bin.k, corner_y - size_y, size_y);
  } else {
    const bool clips = a.style == SplineStyle::kZuko;
    const T *const x_shrinks = clips ? b.x_shrinks : nullptr, *const y_shrinks = clips ? b.y_shrinks : nullptr;
    shares_backward(numbers, b.widths, x_shrinks, x, bin, v, corner_x, size_x);
    shares_backward(numbers, b.heights, y_shrinks, y, bin, v, corner_y, size_y);
  }
  put_two(numbers, b.slopes, bin.k, masked(g_d0 * bin.d_derivative[0]), masked(g_d1 * bin.d_derivative[1]));
}

// In blocks gradients take the place of the parameters, in `value` grad_x that of x.
template <bool kKnots, bool kInverse, class T>
__attribute__((noinline)) void spline_lanes_backward(const SplineNumbers<T>& numbers, int64_t count,
                                                     const SplineMemory<T>& blocks, T* value, const T* grad_y,
                                                     const T* grad_logabsdet, SplineAhead ahead = {}) {
  constexpr int64_t W = Vec<T>::size();
  SplineBin<T> bins[kVectors];
  SplineShares<T> x[kVectors], y[kVectors];
  for (int64_t i = 0; i < count; ++i) {
    ahead.ask();
    bins[i] = find_bin<kKnots, kInverse>(numbers, blocks[i], lane(value, i), x[i], y[i]);
  }
  end_slopes<true>(numbers, bins, count);
  for (int64_t i = 0; i < count; ++i) {
    differentiate<kKnots, kInverse>(numbers, bins[i], x[i], y[i], blocks[i], value + i * W, grad_y + i * W,
                                    grad_logabsdet + i * W);
  }
}

// --- rows of elements ------------------------------------------------------------------------------------------------

// Raw slopes of the first and the last knot where no parameter is theirs, once the others are there.
template <class T>
PYGEN_INLINE void spline_ends(const SplineArgs& a, const SplineBlocks<T>& b) {
  const Vec<T> zero(0);
  if (a.ends == SplineEnds::kFixed) put(b.slopes, 0, zero), put(b.slopes, a.bins, zero);
  if (a.ends == SplineEnds::kShared) put(b.slopes, a.bins, lane(b.slopes, 0));
}

// The gradient of the slope that two knots share.
template <class T>
PYGEN_INLINE void share_ends(const SplineArgs& a, const SplineBlocks<T>& b) {
  if (a.ends == SplineEnds::kShared) put(b.slopes, 0, lane(b.slopes, 0) + lane(b.slopes, a.bins));
}

// The parameters of up to Vec<T>::size() elements of one run, to and from blocks.
template <class T, class P>
class SplineRows {
 public:
  SplineRows(const SplineArgs& a, const SplinePlaces* places)
      : args_(a), places_(places), lanes_{of(places[0]), of(places[1]), of(places[2])} {}

  // n elements from number `first` of run r
  PYGEN_INLINE void load(int64_t r, int64_t first, int64_t n, const SplineBlocks<T>& b) const {
    for (int i = 0; i < kSplineKinds; ++i) lanes_[i].load(at(i, r, first), n, own(i, b));
    spline_ends(args_, b);
  }

  // n elements from number `first` of run r, in so many turns, where an element's lie side by side
  SplineAhead ahead(int64_t r, int64_t first, int64_t n, int64_t turns) const {
    SplineAhead lines;
    const P* end = nullptr;
    for (int i = 0; i < kSplineKinds && n > 0; ++i) {
      const SplinePlaces& p = places_[i];
      const P* const begin = at(i, r, first);
      if (p.step != 1 || (begin < end && begin >= end - n * p.element)) continue;  // views of one tensor
      lines.add(begin, n * p.element * int64_t(sizeof(P)), turns);
      end = begin + n * p.element;
    }
    return lines;
  }

  PYGEN_INLINE void store(int64_t r, int64_t first, int64_t n, const SplineBlocks<T>& b) const {
    share_ends(args_, b);
    for (int i = 0; i < kSplineKinds; ++i) {
      if (places_[i].data) lanes_[i].store(at(i, r, first), n, own(i, b));
    }
  }

 private:
  static Lanes<T, P> of(const SplinePlaces& p) { return {p.count, p.step, p.element}; }

  PYGEN_INLINE P* at(int i, int64_t r, int64_t first) const {
    const SplinePlaces& p = places_[i];
    return static_cast<P*>(p.data) + r * p.outer + first * p.element;
  }
  PYGEN_INLINE T* own(int i, const SplineBlocks<T>& b) const {
    const bool inner = i == 2 && args_.ends == SplineEnds::kFixed;  // the first knot has no slope of its own
    return b.kind(i) + (inner ? Vec<T>::size() : 0);
  }

  const SplineArgs& args_;
  const SplinePlaces* places_;
  Lanes<T, P> lanes_[kSplineKinds];
};

// n values, the last of them repeated
template <class T, class X>
PYGEN_INLINE void load_values(T* to, const X* from, int64_t n, int64_t step = 1) {
  constexpr int64_t W = Vec<T>::size();
  if (n == W && step == 1) return load_run(to, from, W);
  for (int64_t i = 0; i < W; ++i) to[i] = static_cast<T>(from[std::min(i, n - 1) * step]);
}

template <class T, class X>
PYGEN_INLINE void store_values(X* to, const T* from, int64_t n) {
  constexpr int64_t W = Vec<T>::size();
  n == W ? store_run(to, from, W, false) : store_run(to, from, n, false);  // a constant size takes no call of memcpy
}

// Calls load(i, run, first element of it, how many), of up to kVectors vectors of one run, then work(how many vectors,
// run, first and how many elements that are next in it), then store as load; and so on through the elements.
template <int64_t W, class Load, class Work, class Store>
PYGEN_INLINE void for_vectors_of_runs(int64_t run, int64_t begin, int64_t end, const Load& load, const Work& work,
                                      const Store& store) {
  for_runs(run, begin, end - begin, [&](int64_t r, int64_t first, int64_t count) {
    first -= r * run;
    for (int64_t at = 0; at < count; at += kVectors * W) {
      const int64_t n = std::min(kVectors * W, count - at), vectors = tiles(n, W);
      const auto each = [&](const auto& f) {
        for (int64_t i = 0; i < vectors; ++i) f(i, r, first + at + i * W, std::min(W, n - i * W));
      };
      each(load);
      const int64_t next = at + n;
      work(vectors, r, first + next, std::min(kVectors * W, count - next));
      each(store);
    }
  });
}

// Whether all values are within the bounds, or NaN.
template <class T>
inline bool admitted(const SplineNumbers<T>& numbers, const SplineBlocks<T>& b, const T* value) {
  const SplineArgs& a = numbers.args;
  const auto& axis = a.inverse ? numbers.y : numbers.x;
  const T* const knots = a.inverse ? b.heights : b.widths;
  bool fine = true;
  for (int64_t i = 0; i < Vec<T>::size(); ++i) {
    const bool own = a.style == SplineStyle::kKnots;
    fine &= !(value[i] < (own ? knots[i] : axis.lowest)) &&
            !(value[i] > (own ? knots[a.bins * Vec<T>::size() + i] : axis.highest));
  }
  return fine;
}

template <class X, class P>
bool spline(const SplineArgs& a, int64_t begin, int64_t end) {
  using T = Arithmetic<X>;
  constexpr int64_t W = Vec<T>::size();
  const bool knots = a.style == SplineStyle::kKnots;
  const auto kernel = knots       ? a.inverse ? spline_lanes<true, true, T> : spline_lanes<true, false, T>
                      : a.inverse ? spline_lanes<false, true, T>
                                  : spline_lanes<false, false, T>;
  const SplineNumbers<T> numbers(a);
  const SplineMemory<T> blocks(a.bins);
  const SplineRows<T, P> parameters(a, a.parameters);
  alignas(64) T value[kVectors * W], slope[kVectors * W];
  bool fine = true;
  for_vectors_of_runs<W>(
      a.run, begin, end,
      [&](int64_t i, int64_t r, int64_t first, int64_t n) {
        parameters.load(r, first, n, blocks[i]);
        load_values(value + i * W, static_cast<const X*>(a.x) + r * a.run + first, n);
        if (a.bounded) fine &= admitted(numbers, blocks[i], value + i * W);
      },
      [&](int64_t vectors, int64_t r, int64_t next, int64_t n) {
        kernel(numbers, vectors, blocks, value, slope, parameters.ahead(r, next, n, vectors));
      },
      [&](int64_t i, int64_t r, int64_t first, int64_t n) {
        const int64_t e = r * a.run + first;
        store_values(static_cast<X*>(a.y) + e, value + i * W, n);
        store_values(static_cast<T*>(a.logabsdet) + e, slope + i * W, n);
      });
  return fine;
}

template <class X, class P>
void spline_backward(const SplineArgs& a, int64_t begin, int64_t end) {
  using T = Arithmetic<X>;
  constexpr int64_t W = Vec<T>::size();
  const bool knots = a.style == SplineStyle::kKnots;
  const auto kernel = knots ? a.inverse ? spline_lanes_backward<true, true, T> : spline_lanes_backward<true, false, T>
                      : a.inverse ? spline_lanes_backward<false, true, T>
                                  : spline_lanes_backward<false, false, T>;
  const SplineNumbers<T> numbers(a);
  const SplineMemory<T> blocks(a.bins);
  const SplineRows<T, P> parameters(a, a.parameters), gradients(a, a.gradients);
  alignas(64) T value[kVectors * W], grad_y[kVectors * W], grad_logabsdet[kVectors * W];
  for_vectors_of_runs<W>(
      a.run, begin, end,
      [&](int64_t i, int64_t r, int64_t first, int64_t n) {
        const int64_t e = r * a.run + first, y_step = a.grad_y_step, l_step = a.grad_logabsdet_step;
        parameters.load(r, first, n, blocks[i]);
        load_values(value + i * W, static_cast<const X*>(a.x) + e, n);
        load_values(grad_y + i * W, static_cast<const X*>(a.grad_y) + e * y_step, n, y_step);
        load_values(grad_logabsdet + i * W, static_cast<const T*>(a.grad_logabsdet) + e * l_step, n, l_step);
      },
      [&](int64_t vectors, int64_t r, int64_t next, int64_t n) {
        kernel(numbers, vectors, blocks, value, grad_y, grad_logabsdet, parameters.ahead(r, next, n, vectors));
      },
      [&](int64_t i, int64_t r, int64_t first, int64_t n) {
        if (a.grad_x) store_values(static_cast<X*>(a.grad_x) + r * a.run + first, value + i * W, n);
        gradients.store(r, first, n, blocks[i]);
      });
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
