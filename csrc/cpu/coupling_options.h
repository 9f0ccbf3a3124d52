// CouplingOptions of pygen/ops/coupling.py.
#pragma once
#include <limits>
#include <string_view>

#include "coupling_args.h"
#include "options.h"

namespace pygen {

enum Part : int64_t { kFirst, kSecond, kAll, kEven, kOdd, kRangePart, kIndex };

struct CouplingOptions {
  bool ok = true;
  Activation activation = Activation::kExp;
  Squash squash = Squash::kNone;
  Part part = kSecond;
  int64_t start = 0, stop = 0;
  bool shift_first = false, shift_leads = false, interleaved = false, inverse = false, memory_efficient = false;
  double offset = 0, eps = 0, max_scale = std::numeric_limits<double>::infinity(), gain = 1, width = 1, shift_scale = 1;

  bool set(std::string_view name, OptionValue value) {
    if (name == "activation")
      return activation = Activation(value.among({"exp", "sigmoid", "softplus", "additive"})), true;
    if (name == "squash") return squash = Squash(value.among({"none", "tanh", "atan", "softsign"})), true;
    if (name == "part") {
      return part = Part(value.among({"first", "second", "all", "even", "odd", "range", "index"})), true;
    }
    if (name == "shift") return shift_first = value.among({"after", "before"}) != 0, true;
    if (name == "order") return shift_leads = value.among({"st", "ts"}) != 0, true;
    if (name == "start") return start = value, true;
    if (name == "stop") return stop = value, true;
    if (name == "interleaved") return interleaved = value, true;
    if (name == "inverse") return inverse = value, true;
    if (name == "memory_efficient") return memory_efficient = value, true;
    if (name == "offset") return offset = value, true;
    if (name == "eps") return eps = value, true;
    if (name == "max_scale") return max_scale = value, true;
    if (name == "gain") return gain = value, true;
    if (name == "width") return width = value, true;
    if (name == "shift_scale") return shift_scale = value, true;
    return false;
  }

  bool additive() const { return activation == Activation::kAdditive; }
  bool checkerboard() const { return part == kEven || part == kOdd; }
  // out = (in + tau) M, else in M + tau
  bool multiply_last() const { return shift_first != inverse; }

  // what kernels take of them
  void describe(CouplingArgs& a) const {
    a.activation = activation;
    a.squash = squash;
    a.multiply_last = multiply_last();
    a.reciprocal = inverse;
    a.recover = memory_efficient && !a.multiply_last;
    a.offset = offset, a.eps = eps, a.max_scale = max_scale, a.gain = gain, a.width = width;
    a.tau = inverse ? -shift_scale : shift_scale;
  }
};

}  // namespace pygen
