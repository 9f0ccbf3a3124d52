// made_inverse, whatever the device: options, what is admitted, the order in which units are computed.
#pragma once
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <string_view>
#include <vector>

#include "coupling_options.h"
#include "glue.h"
#include "made_inverse_args.h"
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

inline at::ScalarType wide(const at::Tensor& y) { return y.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// The transform's options; the inverse is what is asked for.
inline void describe_transform(MadeArgs& a, const MadeOptions& o, std::string_view own) {
  a.is_spline = o.is_spline;
  if (o.is_spline) {
    const SplineParts parts(a.parameters, false);
    parse_options<SplineOptions>(own).describe(a.spline, parts.bins, parts.slopes);
  } else {
    const auto& options = parse_options<CouplingOptions>(own);
    options.describe(a.affine);
    a.shift_leads = options.shift_leads;
  }
}

// --- what is admitted: the conditions of `_check` in pygen/ops/made_inverse.py, without the messages -----------------

inline bool admits_parameters(int64_t parameters, const MadeOptions& o, std::string_view own) {
  if (o.is_spline) {
    const auto& options = parse_options<SplineOptions>(own);
    const SplineParts parts(parameters, false);
    return options.ok && options.inverse && !options.knots() && parts.bins >= kMinBins &&
           options.admits(parts.bins, parts.slopes);
  }
  const auto& options = parse_options<CouplingOptions>(own);
  return options.ok && options.inverse && options.interleaved && options.part == kAll &&
         parameters == (options.additive() ? 1 : 2);
}

inline bool admits(const at::Tensor& y, at::TensorList weights, at::TensorList biases, at::TensorList degrees,
                   const MadeOptions& o, std::string_view own) {
  const size_t layers = weights.size();
  if (!o.ok || y.dim() != 2 || y.size(1) == 0 || layers < 2 || biases.size() != layers || degrees.size() != layers) {
    return false;
  }
  if (o.residual && layers % 2) return false;
  const auto type = weights[0].scalar_type();
  if (!paired_types(y.scalar_type(), type)) return false;
  for (const at::Tensor& d : degrees) {
    if (d.scalar_type() != at::kLong || !d.is_cpu() || d.dim() != 1) return false;
  }
  if (degrees[0].size(0) != y.size(1) || weights[layers - 1].dim() != 2) return false;
  const int64_t features = y.size(1), parameters = weights[layers - 1].size(0) / features;
  for (size_t l = 0; l < layers; ++l) {
    const int64_t rows = l + 1 < layers ? degrees[l + 1].size(0) : parameters * features;
    const at::Tensor &w = weights[l], &b = biases[l];
    const bool of_samples = b.dim() == 2 && b.size(0) == y.size(0);
    if (w.dim() != 2 || w.size(0) != rows || w.size(1) != degrees[l].size(0) || !(b.dim() == 1 || of_samples) ||
        b.size(-1) != rows || w.scalar_type() != type || b.scalar_type() != type || w.device() != y.device() ||
        b.device() != y.device()) {
      return false;
    }
  }
  for (size_t l = 3; o.residual && l < layers; l += 2) {
    if (degrees[l].size(0) != degrees[l - 2].size(0)) return false;
    const at::Tensor own_degrees = degrees[l].contiguous(), added = degrees[l - 2].contiguous();
    const auto *own_at = own_degrees.const_data_ptr<int64_t>(), *added_at = added.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < own_degrees.numel(); ++i) {
      if (own_at[i] < added_at[i]) return false;
    }
  }
  return admits_parameters(parameters, o, own);
}

inline bool admits_backward(const at::Tensor& grad_x, const at::Tensor& grad_logabsdet, const at::Tensor& x,
                            const at::Tensor& y) {
  const auto like_y = [&](const at::Tensor& t) {
    return t.sizes() == y.sizes() && t.scalar_type() == y.scalar_type() && t.device() == y.device();
  };
  return like_y(grad_x) && like_y(x) && grad_logabsdet.sizes() == y.sizes().slice(0, 1) &&
         grad_logabsdet.scalar_type() == wide(y) && grad_logabsdet.device() == y.device();
}

// Whether a spline without tails is given what it maps to.
inline bool within_bounds(const at::Tensor& y, const MadeOptions& o, std::string_view own) {
  if (!o.is_spline || y.numel() == 0) return true;
  const auto& options = parse_options<SplineOptions>(own);
  return !options.bounded() || !(y.lt(options.bottom).any().item<bool>() || y.gt(options.top).any().item<bool>());
}

// --- the order -------------------------------------------------------------------------------------------------------

// What MadeUnits and MadeLayer point to.
struct MadePlan {
  struct Units {
    std::vector<int64_t> order, ends;
  };
  struct Layer {
    std::vector<int64_t> skip, packed;
  };
  std::vector<Units> units;
  std::vector<Layer> layers;
  int64_t hidden, steps, parameters, packed_size = 0;

  MadePlan(at::TensorList weights, at::TensorList degrees, const MadeOptions& o)
      : hidden(int64_t(degrees.size()) - 1), parameters(weights.back().size(0) / degrees[0].size(0)) {
    std::vector<std::vector<int64_t>> given;
    std::vector<int64_t> values;
    for (const at::Tensor& t : degrees) {
      const at::Tensor dense = t.contiguous();
      const auto* p = dense.const_data_ptr<int64_t>();
      given.emplace_back(p, p + dense.numel());
      values.insert(values.end(), p, p + dense.numel());
    }
    std::sort(values.begin(), values.end());
    values.erase(std::unique(values.begin(), values.end()), values.end());
    steps = int64_t(values.size());
    for (const auto& of_units : given) units.push_back(sorted(of_units, values));
    for (int64_t l = 0; l <= hidden; ++l) {
      Layer& layer = layers.emplace_back();
      if (o.residual && l >= 2 && l < hidden && l % 2 == 0)
        layer.skip = places(units[size_t(l + 1)], units[size_t(l - 1)]);
      for (int64_t step = 0; step < steps; ++step) {
        layer.packed.push_back(packed_size);
        packed_size += rows(l, step) * inputs(l, step);
      }
    }
  }

  // rows of a layer's weights that a step computes, and how many inputs they read
  int64_t rows(int64_t l, int64_t step) const {
    const Units& own = units[size_t(l < hidden ? l + 1 : 0)];
    return (own.ends[size_t(step)] - before(own, step)) * (l < hidden ? 1 : parameters);
  }
  int64_t inputs(int64_t l, int64_t step) const {
    const Units& below = units[size_t(l)];
    return l < hidden ? below.ends[size_t(step)] : before(below, step);
  }

 private:
  static int64_t before(const Units& u, int64_t step) { return step ? u.ends[size_t(step - 1)] : 0; }

  // Units of one degree stay in their order.
  static Units sorted(const std::vector<int64_t>& degrees, const std::vector<int64_t>& values) {
    Units u{std::vector<int64_t>(degrees.size()), std::vector<int64_t>(values.size())};
    std::vector<size_t> rank;
    for (const int64_t d : degrees) {
      rank.push_back(size_t(std::lower_bound(values.begin(), values.end(), d) - values.begin()));
      ++u.ends[rank.back()];
    }
    std::vector<int64_t> next;
    int64_t sum = 0;
    for (int64_t& end : u.ends) {
      next.push_back(sum);
      end = sum += end;
    }
    for (size_t i = 0; i < degrees.size(); ++i) u.order[size_t(next[rank[i]]++)] = int64_t(i);
    return u;
  }

  // of the units of one layer, in their order, the places of the units of the same numbers in another
  static std::vector<int64_t> places(const Units& own, const Units& other) {
    std::vector<int64_t> place(other.order.size()), result;
    for (size_t i = 0; i < place.size(); ++i) place[size_t(other.order[i])] = int64_t(i);
    for (const int64_t unit : own.order) result.push_back(place[size_t(unit)]);
    return result;
  }
};

}  // namespace pygen
