// Rational-quadratic splines, a lane to an element, one ISA tier. In PyTorch: reference/rational_quadratic_spline.py.
//
// An element's widths and heights are read once. They lie in blocks [parameter][lanes], where one walk over the bins
// keeps what belongs to the bin that the element is in. Of its slopes only those at the ends of that bin are read.
#pragma once
#include <limits>
#include <vector>

#include "lanes.h"
#include "rational_quadratic_spline_args.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

// --- numbers of a call, in the type of the arithmetic ----------------------------------------------------------------

template <class T>
constexpr T kLeastLogit = kLog2E<T> * (sizeof(T) == 4 ? T(-60) : T(-600));  // below the largest, in powers of 2
template <class T>
constexpr T kMostGradient = sizeof(T) == 4 ? T(1e36) : T(1e300);  // of a corner or a size: times 0 it is 0
template <class T>
constexpr T kMostSlope = sizeof(T) == 4 ? T(1e12) : T(1e100);
constexpr int64_t kGroup = 8;    // bins whose shares are added on their own
constexpr int64_t kVectors = 4;  // that are worked on side by side

template <class T>
struct SplineAxisNumbers {
  T first, last, lowest, highest;  // as in SplineAxis
  T least, rest;                   // size of a bin of no share; what the shares are of
  T empty[kMaxBins];               // where a knot would be below which there is no share

  SplineAxisNumbers(const SplineAxis& a, int64_t bins)
      : first(T(a.first)), last(T(a.last)), lowest(T(a.lowest)), highest(T(a.highest)) {
    const double whole = a.last - a.first;
    least = T(whole * a.least);
    rest = T(whole * (1 - double(bins) * a.least));
    for (int64_t j = 0; j < bins; ++j) empty[j] = std::fma(T(j), least, first);
  }
};

template <class T>
struct SplineNumbers {
  const SplineArgs& args;
  SplineAxisNumbers<T> x, y;
  T min_derivative, beta, by_beta, boundary_slope, clip;
  T index[kMaxBins + 1];

  explicit SplineNumbers(const SplineArgs& a)
      : args(a),
        x(a.x_axis, a.bins),
        y(a.y_axis, a.bins),
        min_derivative(T(a.min_derivative)),
        beta(T(a.beta)),
        by_beta(T(1 / a.beta)),
        boundary_slope(std::clamp(T(a.boundary_slope), 1 / kMostSlope<T>, kMostSlope<T>)),
        clip(T(a.clip)) {
    for (int64_t j = 0; j <= kMaxBins; ++j) index[j] = T(j);
  }
};

// A vector of elements' parameters, a row to a bin. Side by side in memory: at a distance of pages they would be
// mistaken for, and evict, each other.
template <class T>
struct SplineBlocks {
  T *widths, *heights;       // raw, later exponentials; of knots' style, the knots; later their gradients
  T *x_below, *y_below;      // sums of the exponentials of the bins below
  T* slopes;                 // raw, where no tensor has them; gradients, at the knots 0 to K
  T *x_shrinks, *y_shrinks;  // derivatives of the soft clip

  static constexpr int64_t kKinds = 7;
  SplineBlocks(T* memory, int64_t bins, int64_t number) {
    const int64_t each = (bins + 1) * Vec<T>::size();
    memory += number * kKinds * each;
    for (T** kind : {&widths, &heights, &x_below, &y_below, &slopes, &x_shrinks, &y_shrinks}) {
      *kind = memory, memory += each;
    }
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
PYGEN_INLINE Vec<T> slope_of(const SplineNumbers<T>& numbers, const Vec<T>& raw, Vec<T>* derivative = nullptr) {
  using V = Vec<T>;
  const V zero(0), one(1);
  const SplineStyle style = numbers.args.style;
  if (style == SplineStyle::kKnots) {
    if (derivative) *derivative = one;
    return bounded(raw);
  }
  if (style == SplineStyle::kZuko) {
    V shrink = zero;
    const V most(std::log(kMostSlope<T>)), clipped = clip(raw, numbers.clip, &shrink);
    const V slope = bounded(exp_normal(at::vec::clamp(clipped, most.neg(), most)));
    if (derivative) *derivative = slope * shrink;
    return slope;
  }
  const V u = raw * V(numbers.beta),
          e = exp2_normal(at::vec::clamp_min(u.abs() * V(-kLog2E<T>), V(kLeastExponent2<T>)));
  if (derivative) *derivative = select(less(u, zero), e, one) / (one + e);
  const V softplus = at::vec::clamp_min(u, zero) + log1p_unit(e);
  return bounded(at::vec::fmadd(softplus, V(numbers.by_beta), V(numbers.min_derivative)));
}

// Raw widths and heights clipped, with the derivatives of that.
template <class T>
PYGEN_INLINE void clip_shares(const SplineNumbers<T>& numbers, const SplineBlocks<T>& b) {
  const auto one = [&](T* u, T* shrinks) {
    for (int64_t j = 0; j < numbers.args.bins; ++j) {
      Vec<T> shrink;
      put(u, j, clip(lane(u, j), numbers.clip / 2, &shrink));
      put(shrinks, j, shrink);
    }
  };
  one(b.widths, b.x_shrinks);
  one(b.heights, b.y_shrinks);
}

// e^(u - the largest u) in the place of each, below each the sum of those before, and the sum of all
template <class T>
PYGEN_INLINE Vec<T> exponentials(T* u, T* below, int64_t bins) {
  using V = Vec<T>;
  V top = lane(u, 0), total(0);
  for (int64_t j = 1; j < bins; ++j) top = at::vec::clamp_min(lane(u, j), top);  // NaN may be lost: its power is not
  // Groups of bins are added on their own: long chains of sums would round more than twice as much.
  for (int64_t group = 0; group < bins; group += kGroup) {
    V sum(0);
    for (int64_t j = group; j < std::min(bins, group + kGroup); ++j) {
      const V log2 = at::vec::clamp_min((lane(u, j) - top) * V(kLog2E<T>), V(kLeastLogit<T>));
      const V power = exp2_normal(log2);
      put(u, j, power);
      put(below, j, group ? total + sum : sum);
      sum = sum + power;
    }
    total = total + sum;
  }
  return total;
}

// --- the bin of an element -------------------------------------------------------------------------------------------

// Along an axis: exponentials of the bins below, summed, of this bin, and of all; size of a bin by its exponential.
template <class T>
struct SplineShares {
  Vec<T> below, own, sum, unit;
};

template <class T>
struct SplineBin {
  Vec<T> k, x, width, y, height;
  Vec<T> first, last;                  // what is within, along the axis of what was given
  Vec<T> d[2];                         // slopes at the bin's ends; raw until end_slopes
  Vec<T> d_derivative[2];              // of them by the raw ones, backward
  SplineShares<T> x_shares, y_shares;  // unless the parameters are the knots
};

// kInverse: v is a y. The shares' exponentials are there.
template <bool kInverse, class T>
PYGEN_INLINE void find_by_shares(const SplineNumbers<T>& numbers, const SplineBlocks<T>& b, const Vec<T>& v,
                                 SplineBin<T>& bin) {
  using V = Vec<T>;
  using at::vec::fmadd;
  const T *const own = kInverse ? b.heights : b.widths, *const other = kInverse ? b.widths : b.heights;
  const T *const below = kInverse ? b.y_below : b.x_below, *const other_below = kInverse ? b.x_below : b.y_below;
  const SplineAxisNumbers<T>& axis = kInverse ? numbers.y : numbers.x;
  SplineShares<T>&x = bin.x_shares, &y = bin.y_shares;
  x.unit = divide_normal(V(numbers.x.rest), x.sum), y.unit = divide_normal(V(numbers.y.rest), y.sum);
  SplineShares<T>&along_out = kInverse ? y : x, &across_out = kInverse ? x : y;
  SplineShares<T> along = along_out, across = across_out;
  V k(0);
  along.below = across.below = V(0), along.own = lane(own, 0), across.own = lane(other, 0);
  for (int64_t j = 1; j < numbers.args.bins; ++j) {
    const V sum = lane(below, j);
    const auto above = less_equal(fmadd(sum, along.unit, V(axis.empty[j])), v);
    k = select(above, V(numbers.index[j]), k);
    along.below = select(above, sum, along.below), along.own = select(above, lane(own, j), along.own);
    across.below = select(above, lane(other_below, j), across.below);
    across.own = select(above, lane(other, j), across.own);
  }
  along_out = along, across_out = across, bin.k = k;
  bin.first = V(axis.lowest), bin.last = V(axis.highest);
  const auto corner = [&](const SplineAxisNumbers<T>& n, const SplineShares<T>& shares) {
    return fmadd(shares.below, shares.unit, fmadd(k, V(n.least), V(n.first)));
  };
  bin.x = corner(numbers.x, x), bin.y = corner(numbers.y, y);
  bin.width = fmadd(x.own, x.unit, V(numbers.x.least)), bin.height = fmadd(y.own, y.unit, V(numbers.y.least));
}

// The same where the parameters are the knots.
template <bool kInverse, class T>
PYGEN_INLINE void find_by_knots(const SplineNumbers<T>& numbers, const SplineBlocks<T>& b, const Vec<T>& v,
                                SplineBin<T>& bin) {
  using V = Vec<T>;
  const int64_t bins = numbers.args.bins;
  const T* const own = kInverse ? b.heights : b.widths;
  V k(0), x = lane(b.widths, 0), y = lane(b.heights, 0), right = lane(b.widths, 1), top = lane(b.heights, 1);
  for (int64_t j = 1; j < bins; ++j) {
    const auto above = less_equal(lane(own, j), v);
    k = select(above, V(numbers.index[j]), k);
    x = select(above, lane(b.widths, j), x), right = select(above, lane(b.widths, j + 1), right);
    y = select(above, lane(b.heights, j), y), top = select(above, lane(b.heights, j + 1), top);
  }
  const V least(1 / kMostSlope<T>);
  bin.k = k, bin.x = x, bin.y = y, bin.first = lane(own, 0), bin.last = lane(own, bins);
  bin.width = at::vec::clamp_min(right - x, least), bin.height = at::vec::clamp_min(top - y, least);
}

// --- slopes of knots -------------------------------------------------------------------------------------------------

// Reads the raw slopes of knots of a run of elements, of which one has slope c at c * step.
template <class T, class P>
class SplineSlopes {
  using V = Vec<T>;
  using Offset = at::vec::int_same_size_t<T>;
  static constexpr int64_t W = V::size();

 public:
  SplineSlopes(const SplineArgs& a, int64_t element, int64_t step)
      : ends_(a.ends), bins_(T(a.bins)), element_(element), step_(step) {
    constexpr int64_t most = int64_t(1) << (sizeof(T) == 4 ? 23 : 52);  // below it numbers are exact
    gathers_ = std::is_same_v<T, P> && kMaxBins * step < most && W * element < most;
    for (int64_t i = 0; i < W; ++i) lanes_[i] = gathers_ ? Offset(i * element) : 0;
  }

  // At the ends of the bins of n elements, from the first of them on; lanes beyond repeat the last.
  PYGEN_INLINE void load(const P* first, int64_t n, SplineBin<T>& bin) const {
    bin.d[0] = at_knots(first, n, bin.k), bin.d[1] = at_knots(first, n, bin.k + V(1));
  }

 private:
  // What has no parameter of its own, a fixed end, gets any.
  PYGEN_INLINE V at_knots(const P* first, int64_t n, const V& knot) const {
    V own = knot;
    if (ends_ == SplineEnds::kFixed) own = at::vec::clamp(knot - V(1), V(0), V(bins_ - 2));
    if (ends_ == SplineEnds::kShared) own = select(equal(knot, V(bins_)), V(0), knot);
    if constexpr (std::is_same_v<T, P>) {
      if (gathers_ && n == W) {
        const auto offsets = at::vec::convert_to_int_of_same_size(own * V(T(step_)));
        return at::vec::gather<sizeof(T)>(first, offsets + Vec<Offset>::loadu(lanes_));
      }
    }
    alignas(64) T numbers[W];
    own.store(numbers);
    for (int64_t i = 0; i < W; ++i) {
      numbers[i] = static_cast<T>(first[std::min(i, n - 1) * element_ + int64_t(numbers[i]) * step_]);
    }
    return V::loadu(numbers);
  }

  SplineEnds ends_;
  T bins_;
  int64_t element_, step_;
  bool gathers_;
  Offset lanes_[W];
};

// The first knot that has a parameter of a kind.
inline int64_t first_knot(const SplineArgs& a, int kind) { return kind == 2 && a.ends == SplineEnds::kFixed; }

// The gradient of the slope that two knots share.
template <class T>
PYGEN_INLINE void share_ends(const SplineArgs& a, const SplineBlocks<T>& b) {
  if (a.ends == SplineEnds::kShared) put(b.slopes, 0, lane(b.slopes, 0) + lane(b.slopes, a.bins));
}

// --- within a bin ----------------------------------------------------------------------------------------------------

template <bool kBackward, class T>
PYGEN_INLINE void end_slopes(const SplineNumbers<T>& numbers, SplineBin<T>* bins, int64_t count) {
  using V = Vec<T>;
  const SplineArgs& a = numbers.args;
  const V fixed(numbers.boundary_slope);
  for (int64_t i = 0; i < count; ++i) {
    SplineBin<T>& bin = bins[i];
    for (int end = 0; end < 2; ++end) {
      bin.d[end] = slope_of(numbers, bin.d[end], kBackward ? &bin.d_derivative[end] : nullptr);
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
    const V inverse = divide_normal(one, upper + lower);
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

// `yes` within the bounds
template <class T>
PYGEN_INLINE Vec<T> inside(const SplineBin<T>& bin, const Vec<T>& v, const Vec<T>& yes, const Vec<T>& no) {
  return select(less_equal(bin.first, v), select(less_equal(v, bin.last), yes, no), no);
}

// --- forward ---------------------------------------------------------------------------------------------------------

// Every step is for several vectors: one vector's operations are a longer chain than what a core looks ahead.
template <bool kKnots, bool kInverse, class T>
__attribute__((noinline)) void find_bins(const SplineNumbers<T>& numbers, int64_t count, const SplineMemory<T>& blocks,
                                         const T* value, SplineBin<T>* bins, SplineAhead ahead) {
  for (int64_t i = 0; i < count; ++i) {
    ahead.ask();
    const SplineBlocks<T>& b = blocks[i];
    if constexpr (kKnots) {
      find_by_knots<kInverse>(numbers, b, lane(value, i), bins[i]);
    } else {
      if (numbers.args.style == SplineStyle::kZuko) clip_shares(numbers, b);
      bins[i].x_shares.sum = exponentials(b.widths, b.x_below, numbers.args.bins);
      bins[i].y_shares.sum = exponentials(b.heights, b.y_below, numbers.args.bins);
    }
  }
  if constexpr (!kKnots) {
    for (int64_t i = 0; i < count; ++i) find_by_shares<kInverse>(numbers, blocks[i], lane(value, i), bins[i]);
  }
}

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
    steep = divide_normal(p.denominator, p.s * p.root);
  } else {
    const V inverse = divide_normal(one, p.denominator), mean = p.s * inverse;
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
__attribute__((noinline)) void evaluate_bins(const SplineNumbers<T>& numbers, int64_t count, SplineBin<T>* bins,
                                             T* value, T* slope) {
  constexpr int64_t W = Vec<T>::size();
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
  const V zero(0), mean = fmadd(corner, shares.below, size * shares.own) / shares.sum;
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
PYGEN_INLINE void differentiate(const SplineNumbers<T>& numbers, const SplineBin<T>& bin, const SplineBlocks<T>& b,
                                T* value, const T* grad_y, const T* grad_logabsdet) {
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
  const V most(kMostGradient<T>);
  const auto masked = [&](const V& t) __attribute__((always_inline)) {
    return inside(bin, v, at::vec::clamp(t, most.neg(), most), zero);
  };
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
    shares_backward(numbers, b.widths, x_shrinks, bin.x_shares, bin, v, corner_x, size_x);
    shares_backward(numbers, b.heights, y_shrinks, bin.y_shares, bin, v, corner_y, size_y);
  }
  put_two(numbers, b.slopes, bin.k, masked(g_d0 * bin.d_derivative[0]), masked(g_d1 * bin.d_derivative[1]));
}

// In blocks gradients take the place of the parameters, in `value` grad_x that of x.
template <bool kKnots, bool kInverse, class T>
__attribute__((noinline)) void differentiate_bins(const SplineNumbers<T>& numbers, int64_t count, SplineBin<T>* bins,
                                                  const SplineMemory<T>& blocks, T* value, const T* grad_y,
                                                  const T* grad_logabsdet) {
  constexpr int64_t W = Vec<T>::size();
  end_slopes<true>(numbers, bins, count);
  for (int64_t i = 0; i < count; ++i) {
    differentiate<kKnots, kInverse>(numbers, bins[i], blocks[i], value + i * W, grad_y + i * W, grad_logabsdet + i * W);
  }
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
