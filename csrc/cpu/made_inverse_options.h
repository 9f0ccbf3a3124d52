// The options of made_inverse. No torch headers.
#pragma once
#include <string_view>

#include "coupling_options.h"
#include "made_inverse_args.h"
#include "options.h"
#include "rational_quadratic_spline_options.h"

namespace pygen {

// MadeOptions of pygen/ops/made_inverse.py.
struct MadeOptions {
  bool ok = true;
  Nonlinearity nonlinearity = Nonlinearity::kRelu;
  bool residual = true, is_spline = false;

  bool set(std::string_view name, OptionValue value) {
    if (name == "nonlinearity") {
      return nonlinearity = Nonlinearity(value.among({"relu", "leaky_relu", "elu", "tanh", "sigmoid", "silu"})), true;
    }
    if (name == "residual") return residual = value, true;
    if (name == "transform") return is_spline = value.among({"affine", "spline"}) != 0, true;
    return false;
  }
};

// The transform's options; the inverse is what is asked for. stored: what a number becomes in the storage type of y.
template <class Stored>
void describe_transform(MadeArgs& a, const MadeOptions& o, std::string_view own, const Stored& stored) {
  a.is_spline = o.is_spline;
  if (o.is_spline) {
    const SplineParts parts(a.parameters, false);
    parse_options<SplineOptions>(own).describe(a.spline, parts.bins, parts.slopes, stored);
  } else {
    const auto& options = parse_options<CouplingOptions>(own);
    options.describe(a.affine);
    a.shift_leads = options.shift_leads;
  }
}

}  // namespace pygen
