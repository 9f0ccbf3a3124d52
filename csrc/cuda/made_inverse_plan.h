// Inverses of autoregressive transforms on a GPU: a net, flattened for the kernels. Runs on the host. No torch headers,
// no CUDA.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

#include "common/made_inverse_plan.h"
#include "made_inverse.h"

namespace pygen {
namespace cuda_made {

template <class T>
struct Plan {
  Launch<T> launch{};        // of the net and of the memory of a block; pointers to memory are yet to be set
  std::vector<char> memory;  // what `launch` points to
  int64_t layers = 0, places = 0, numbers = 0;  // where in it; units come first
  int64_t largest = 0;                          // numbers in the largest stretch of packed weights

  // The pointers, where `memory` lies at `base`.
  void place_at(const char* base) {
    launch.units = reinterpret_cast<const Units*>(base);
    launch.layers = reinterpret_cast<const Layer<T>*>(base + layers);
    launch.places = reinterpret_cast<const int64_t*>(base + places);
    launch.numbers = reinterpret_cast<const int32_t*>(base + numbers);
  }
};

template <class T>
AffineNumbers<T> affine_numbers(const CouplingArgs& a, bool shift_leads) {
  const bool one = a.activation == Activation::kAdditive;
  return {a.activation,   a.squash, a.multiply_last, shift_leads ? 1 : 0,      shift_leads || one ? 0 : 1,
          T(a.offset),    T(a.eps), T(a.max_scale),  T(std::log(a.max_scale)), T(a.gain),
          T(1 / a.width), T(a.tau)};
}

template <class T>
SplineNumbers<T> spline_numbers(const SplineArgs& a) {
  const auto axis = [&](const SplineAxis& from) {
    const double whole = from.last - from.first;
    return AxisNumbers<T>{T(from.first),         T(from.last),
                          T(whole * from.least), T(whole * (1 - double(a.bins) * from.least)),
                          T(from.lowest),        T(from.highest)};
  };
  return {a.style,
          a.ends,
          a.bounded,
          int32_t(a.bins),
          axis(a.x_axis),
          axis(a.y_axis),
          T(a.min_derivative),
          T(a.beta),
          T(a.boundary_slope),
          T(a.clip)};
}

// Nothing for a net with too large numbers for the kernels. Of `a` the batch, the transform, the nonlinearity and the
// layers' weights and biases, which lie in device memory; `plan` is of tiles of kTileRows.
template <class T>
std::optional<Plan<T>> flatten(const MadePlan& plan, const MadeArgs& a, bool backward) {
  bool fits = true;
  const auto narrow = [&](int64_t n) {
    fits &= n >= std::numeric_limits<int32_t>::min() && n <= std::numeric_limits<int32_t>::max();
    return int32_t(n);
  };
  Plan<T> flat;
  Launch<T>& to = flat.launch;

  std::vector<int32_t> numbers;
  const auto append = [&](const std::vector<int64_t>& values) {
    const int32_t at = narrow(int64_t(numbers.size()));
    for (const int64_t value : values) numbers.push_back(narrow(value));
    return at;
  };
  std::vector<Units> units;
  for (const auto& from : plan.units) {
    units.push_back({narrow(int64_t(from.order.size())), append(from.order), append(from.ends)});
  }

  int64_t rows = 0;
  const auto take = [&](bool wanted, int64_t count) {
    if (!wanted) return int64_t(-1);
    rows += count;
    return rows - count;
  };
  const int64_t features = units[0].count;
  int64_t most = 0;  // parameters of a step
  for (int64_t step = 0; step < plan.steps; ++step) most = std::max(most, plan.rows(plan.hidden, step));
  to.x_row = take(true, features), to.parameter_row = take(true, most);
  std::vector<Layer<T>> layers;
  for (int64_t l = 0; l <= plan.hidden; ++l) {
    Layer<T>& layer = layers.emplace_back();
    layer.weights = static_cast<const T*>(a.layers[l].weights), layer.bias = static_cast<const T*>(a.layers[l].bias);
    layer.bias_sample = a.layers[l].bias_sample;
    const auto& skip = plan.layers[size_t(l)].skip;
    layer.skip = skip.empty() ? -1 : append(skip);
    layer.f_follows = l < plan.hidden && a.f_follows(l);
    if (l == plan.hidden) break;
    const int64_t count = units[size_t(l + 1)].count;
    layer.before = take(true, count);
    layer.after = layer.f_follows && (backward || a.is_added(l)) ? take(true, count) : layer.before;
  }
  to.first_grad_row = rows;
  for (int64_t l = 0; l < plan.hidden; ++l) {
    const int64_t count = units[size_t(l + 1)].count;
    layers[size_t(l)].grad = take(backward, count);
    layers[size_t(l)].grad_added = take(backward && a.is_added(l), count);
  }
  to.grad_x_row = take(backward, features);
  to.scratch_rows = rows;

  std::vector<int64_t> places;
  for (int64_t l = 0; l <= plan.hidden; ++l) {
    const auto& own = plan.layers[size_t(l)].packed;
    places.insert(places.end(), own.begin(), own.end());
    for (int64_t step = 0; step < plan.steps; ++step) {
      narrow(plan.rows(l, step) + kTileRows);
      narrow(plan.inputs(l, step) * kTileRows);
      flat.largest = std::max(flat.largest, plan.rows(l, step) * plan.inputs(l, step));
    }
  }

  const auto put = [&](const auto& values) {
    const int64_t at = int64_t(flat.memory.size()), size = int64_t(values.size() * sizeof(values[0]));
    flat.memory.resize(size_t((at + size + 15) / 16 * 16));
    if (size) std::memcpy(flat.memory.data() + at, values.data(), size_t(size));
    return at;
  };
  put(units);
  flat.layers = put(layers), flat.places = put(places), flat.numbers = put(numbers);

  to.features = narrow(features), to.hidden = narrow(plan.hidden), to.steps = narrow(plan.steps);
  to.parameters = narrow(plan.parameters), to.nonlinearity = a.nonlinearity;
  if (a.is_spline) {
    to.spline = spline_numbers<T>(a.spline);
  } else {
    to.affine = affine_numbers<T>(a.affine, a.shift_leads);
  }
  to.batch = a.batch;
  narrow((plan.hidden + 1) * plan.steps * kMostShares);
  if (!fits) return {};
  return flat;
}

}  // namespace cuda_made
}  // namespace pygen
