// SplineOptions of pygen/ops/rational_quadratic_spline.py.
#pragma once
#include <algorithm>
#include <cmath>
#include <string_view>

#include "options.h"
#include "rational_quadratic_spline_args.h"

namespace pygen {

enum class Tails : int64_t { kLinear, kCircular, kNone };

struct SplineOptions {
  bool ok = true;
  bool inverse = false;
  SplineStyle style = SplineStyle::kNflows;
  Tails tails = Tails::kLinear;
  double left = -1, right = 1, bottom = -1, top = 1, min_width = 1e-3, min_height = 1e-3, min_derivative = 1e-3;
  double beta = 1, boundary_slope = 1, slope = 1e-3;

  bool set(std::string_view name, OptionValue value) {
    if (name == "inverse") return inverse = value, true;
    if (name == "style") return style = SplineStyle(value.among({"nflows", "zuko", "knots"})), true;
    if (name == "tails") return tails = Tails(value.among({"linear", "circular", "none"})), true;
    if (name == "left") return left = value, true;
    if (name == "right") return right = value, true;
    if (name == "bottom") return bottom = value, true;
    if (name == "top") return top = value, true;
    if (name == "min_width") return min_width = value, true;
    if (name == "min_height") return min_height = value, true;
    if (name == "min_derivative") return min_derivative = value, true;
    if (name == "beta") return beta = value, true;
    if (name == "boundary_slope") return boundary_slope = value, true;
    if (name == "slope") return slope = value, true;
    return false;
  }
  bool knots() const { return style == SplineStyle::kKnots; }
  bool bounded() const { return tails == Tails::kNone; }

  // Whether splines of so many bins may have so many slopes, and shares large enough.
  bool admits(int64_t bins, int64_t slopes) const {
    const bool counted = tails == Tails::kCircular ? slopes == bins
                         : bounded()               ? slopes == bins + 1
                                                   : slopes == bins - 1 || slopes == bins + 1;
    const bool fit = style != SplineStyle::kNflows || (min_width * double(bins) <= 1 && min_height * double(bins) <= 1);
    return bins >= kMinBins && bins <= kMaxBins && counted && fit;
  }

  // what kernels take of them; stored: what a number becomes in the storage type of x
  template <class Stored>
  void describe(SplineArgs& a, int64_t bins, int64_t slopes, const Stored& stored) const {
    a.style = style, a.bins = bins;
    a.ends = slopes == bins - 1 ? SplineEnds::kFixed : slopes == bins ? SplineEnds::kShared : SplineEnds::kGiven;
    a.inverse = inverse, a.bounded = bounded();
    a.x_axis = axis(left, right, min_width, stored), a.y_axis = axis(bottom, top, min_height, stored);
    a.min_derivative = min_derivative, a.beta = beta, a.boundary_slope = boundary_slope;
    a.clip = -std::log(slope);
  }

 private:
  template <class Stored>
  SplineAxis axis(double first, double last, double least, const Stored& stored) const {
    const double lowest = std::min(first, stored(first)), highest = std::max(last, stored(last));
    return {first, last, style == SplineStyle::kNflows ? least : 0, lowest, highest};
  }
};

}  // namespace pygen
