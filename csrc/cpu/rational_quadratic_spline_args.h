// What the glue tells a tier's kernels of rational-quadratic splines. Plain data; strides count elements.
#pragma once
#include <cstdint>

#include "types.h"

namespace pygen {

enum class SplineStyle : int { kNflows, kZuko, kKnots };  // the order of pygen/ops/rational_quadratic_spline.py
enum class SplineEnds : int { kFixed, kShared, kGiven };  // slopes there: a number, one parameter for both, two

constexpr int64_t kMinBins = 2, kMaxBins = 64;
constexpr int kSplineKinds = 3;  // widths, heights, derivatives

// How packed parameters are cut into three kinds; 0 bins where they cannot be.
struct SplineParts {
  int64_t each, bins, slopes;  // each: widths, and heights
  SplineParts(int64_t count, bool knots) : each(knots ? (count - 1) / 3 + 1 : (count + 1) / 3) {
    bins = 2 * each > count ? 0 : each - knots, slopes = count - 2 * each;
  }
};

// Element e has parameter c of a kind at data + e / run * outer + e % run * element + c * step. One of `element` and
// `step` is 1.
struct SplinePlaces {
  void* data;  // of gradients: null if they are not wanted
  int64_t count, outer, element, step;
};

// One axis of a spline whose bins are shares of the whole.
struct SplineAxis {
  double first, last, least;  // least: the share that every bin has at least
};

struct SplineArgs {
  SplineStyle style;
  SplineEnds ends;
  bool inverse, bounded;  // bounded: nothing is admitted beyond the bounds
  int64_t bins, run;
  SplineAxis x_axis, y_axis;
  double min_derivative, beta, boundary_slope, clip;  // clip: of raw slopes, kZuko
  const void* x;                                      // or y, if inverse
  SplinePlaces parameters[kSplineKinds];
  void *y, *logabsdet;                  // forward; logabsdet in the type of the arithmetic
  const void *grad_y, *grad_logabsdet;  // backward; from one element to the next so many further on, 0 or 1:
  int64_t grad_y_step, grad_logabsdet_step;
  void* grad_x;  // or null
  SplinePlaces gradients[kSplineKinds];
};

// By storage types of x and of the parameters: the elements [begin, end).
struct SplineKernels {
  bool (*forward[kPairedTypes])(const SplineArgs&, int64_t begin, int64_t end);  // false: one is not admitted
  void (*backward[kPairedTypes])(const SplineArgs&, int64_t begin, int64_t end);
};

}  // namespace pygen
