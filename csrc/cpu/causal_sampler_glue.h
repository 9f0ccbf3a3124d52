// Cached sampling: what the glue of the CPU and that of CUDA share.
#pragma once
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "common/pixel_program.h"
#include "glue.h"
#include "options.h"

namespace pygen {

// SamplerOptions of pygen/ops/causal_sampler.py
struct SamplerOptions {
  bool ok = true;
  double temperature = 1, top_p = 1;
  int64_t top_k = 0;
  bool log_prob = false;

  bool set(std::string_view name, OptionValue value) {
    if (name == "temperature") return temperature = value, true;
    if (name == "top_k") return top_k = value, true;
    if (name == "top_p") return top_p = value, true;
    if (name == "log_prob") return log_prob = value, true;
    return false;
  }
  bool admitted() const {
    constexpr double kLeast = 1e-38;
    const bool warm = temperature >= kLeast && temperature <= 1 / kLeast;
    return ok && (temperature == 0 || warm) && top_k >= 0 && top_k < int64_t(1) << 31 && top_p > 0 && top_p <= 1;
  }
};

// A call whose arguments fit together, but for what a program's stages take and what levels and masks hold.
struct SamplerCall {
  program::Program program;
  at::ScalarType type;  // of weights: float, double or bfloat16
  int64_t batch;
  std::vector<int64_t> size, noise_size;

  static std::optional<SamplerCall> admit(const SamplerOptions& o, const at::Tensor& x, const at::Tensor& known,
                                          const std::optional<at::Tensor>& noise, const at::Tensor& words,
                                          at::TensorList tensors) {
    if (!o.admitted() || !words.is_cpu() || words.scalar_type() != at::kLong || words.dim() != 1) return {};
    const at::Tensor numbers = words.contiguous();
    auto p = program::decode(numbers.const_data_ptr<int64_t>(), numbers.numel());
    const auto weight = std::find_if(tensors.begin(), tensors.end(), [](const auto& t) { return t.dim() == 3; });
    if (!p || weight == tensors.end() || x.dim() != 4) return {};
    const int64_t batch = x.size(0);
    SamplerCall call{std::move(*p), weight->scalar_type(), batch, {}, {}};
    call.size = {batch, call.program.channels, call.program.height, call.program.width};
    call.noise_size = {batch, call.program.draws(), call.program.height, call.program.width};
    const auto fits = [&](const at::Tensor& t, const std::vector<int64_t>& sizes) {
      return t.device() == x.device() && t.sizes() == at::IntArrayRef(sizes);
    };
    const bool stored = call.type == at::kFloat || call.type == at::kDouble || call.type == at::kBFloat16;
    if (!stored || x.scalar_type() != at::kLong || known.scalar_type() != at::kBool) return {};
    if (!fits(x, call.size) || !fits(known, call.size)) return {};
    if (noise && (!fits(*noise, call.noise_size) || !float_type(noise->scalar_type()))) return {};
    return call;
  }
};

// What a program's stages take, dense, by their index.
struct SamplerTensors {
  std::vector<const void*> weights, conditions;
  std::vector<char> is_map;  // of conditions: [batch, height, width, outputs], not [batch, outputs]

  // False for what Program.check_tensors in pygen/program.py raises for, and for other types and devices.
  bool take(const program::Program& p, at::TensorList tensors, at::TensorList given, int64_t batch, at::ScalarType type,
            at::Device device) {
    if (int64_t(tensors.size()) != p.tensors || int64_t(given.size()) != p.conditions) return false;
    weights.resize(tensors.size());
    conditions.resize(given.size());
    is_map.resize(given.size());
    const auto dense = [&](const at::Tensor& t, at::ScalarType wanted, const std::vector<int64_t>& sizes) {
      if (t.device() != device || t.scalar_type() != wanted || t.sizes() != at::IntArrayRef(sizes)) return false;
      at::Tensor own = t.contiguous();
      if (reinterpret_cast<uintptr_t>(own.const_data_ptr()) % 16) own = own.clone();  // a GPU copies 16 bytes at once
      kept_.push_back(std::move(own));
      return true;
    };
    const auto wide = type == at::kDouble ? at::kDouble : at::kFloat;
    for (const auto& s : p.stages) {
      if (s.weight >= 0) {
        if (!dense(tensors[size_t(s.weight)], type, {s.panels(), s.depth(), program::kPanel})) return false;
        weights[size_t(s.weight)] = kept_.back().const_data_ptr();
      }
      if (s.bias >= 0) {
        if (!dense(tensors[size_t(s.bias)], wide, {s.outputs})) return false;
        weights[size_t(s.bias)] = kept_.back().const_data_ptr();
      }
      if (s.condition >= 0) {
        const at::Tensor& t = given[size_t(s.condition)];
        const auto& out = p.planes[size_t(s.out)];
        const bool map = t.dim() == 4;
        if (map ? !dense(t, wide, {batch, out.height, out.width, s.outputs}) : !dense(t, wide, {batch, s.outputs})) {
          return false;
        }
        conditions[size_t(s.condition)] = kept_.back().const_data_ptr();
        is_map[size_t(s.condition)] = char(map);
      }
    }
    const auto set = [](const void* p) { return p != nullptr; };
    return std::all_of(weights.begin(), weights.end(), set) && std::all_of(conditions.begin(), conditions.end(), set);
  }

 private:
  std::vector<at::Tensor> kept_;
};

}  // namespace pygen
