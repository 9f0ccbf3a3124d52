// made_inverse: what the glue of the CPU and that of CUDA share.
#pragma once
#include <ATen/core/Tensor.h>

#include <string_view>
#include <vector>

#include "common/made_inverse_plan.h"
#include "glue.h"
#include "made_inverse_options.h"

namespace pygen {

inline at::ScalarType wide(const at::Tensor& y) { return y.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

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

// --- arguments of a call ---------------------------------------------------------------------------------------------

// What kernels are told of a net and of y, with what it points to; weights are packed in tiles of so many rows.
struct MadeCall {
  MadePlan plan;
  MadeArgs args{};
  at::ScalarType type;  // of the arithmetic
  at::Tensor y;
  std::vector<at::Tensor> dense;
  std::vector<MadeUnits> units;
  std::vector<MadeLayer> layers;

  MadeCall(const at::Tensor& y_, at::TensorList weights, at::TensorList biases, at::TensorList degrees,
           const MadeOptions& o, std::string_view own, int64_t tile)
      : plan(values(degrees), weights.back().size(0) / degrees[0].size(0), o.residual, tile),
        type(wide(y_)),
        y(y_.to(type).contiguous()) {
    for (const auto& u : plan.units) units.push_back({int64_t(u.order.size()), u.order.data(), u.ends.data()});
    for (size_t l = 0; l < weights.size(); ++l) {
      dense.push_back(weights[l].to(type).contiguous());
      dense.push_back(biases[l].to(type).contiguous());
      layers.push_back({dense[2 * l].const_data_ptr(), dense[2 * l + 1].const_data_ptr(),
                        biases[l].dim() == 2 ? biases[l].size(1) : 0, plan.layers[l].skip.data(),
                        plan.layers[l].packed.data()});
    }
    args.batch = y.size(0), args.hidden = plan.hidden, args.steps = plan.steps, args.parameters = plan.parameters;
    args.units = units.data(), args.layers = layers.data();
    args.residual = o.residual, args.nonlinearity = o.nonlinearity;
    args.y = y.const_data_ptr();
    describe_transform(args, o, own, stored_as(y_.scalar_type()));
  }

 private:
  static std::vector<std::vector<int64_t>> values(at::TensorList degrees) {
    std::vector<std::vector<int64_t>> all;
    for (const at::Tensor& t : degrees) {
      const at::Tensor one = t.contiguous();
      const auto* p = one.const_data_ptr<int64_t>();
      all.emplace_back(p, p + one.numel());
    }
    return all;
  }
};

}  // namespace pygen
