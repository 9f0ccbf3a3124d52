// Discretised logistic mixtures on the CPU: what is admitted, layouts, threads.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <string_view>
#include <tuple>

#include "glue.h"
#include "logistic_mixture_args.h"
#include "options.h"
#include "place.h"
#include "table.h"

namespace pygen {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using std::tuple;

// MixtureOptions, NllOptions and SampleOptions of pygen/ops/logistic_mixture.py
struct MixtureOptions {
  bool ok = true;
  int64_t levels = 256, layout = 0, channels = 3;
  bool autoregressive = false, openai = false, quantized = true;
  double temperature = 1, scale_temperature = 1;

  bool set(std::string_view name, OptionValue value) {
    if (name == "levels") return levels = value, true;
    if (name == "layout") return layout = value.among({"openai", "flax", "tfp"}), true;
    if (name == "autoregressive") return autoregressive = value, true;
    if (name == "form") return openai = value.among({"exact", "openai"}) == 1, true;
    if (name == "channels") return channels = value, true;
    if (name == "temperature") return temperature = value, true;
    if (name == "scale_temperature") return scale_temperature = value, true;
    if (name == "quantized") return quantized = value, true;
    return false;
  }
};

constexpr int64_t kParallel = 2048, kScaled = 65536;  // parameters that are worth a thread: some 10 microseconds

// --- what is admitted ------------------------------------------------------------------------------------------------

at::MemoryFormat layout(const Tensor& t) {
  const bool last = !t.is_contiguous() && t.is_contiguous(at::MemoryFormat::ChannelsLast);
  return last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

at::ScalarType wide_type(const Tensor& t) { return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// Strides of a dense [B, C, H, W] as the kernels take it. Images of one pixel are the pixels of one image.
MixturePixels pixels(const Tensor& t) {
  const int64_t channels = t.size(1), area = t.size(2) * t.size(3);
  if (area == 1) return {0, 1, channels};
  if (t.is_contiguous()) return {channels * area, area, 1};
  return {channels * area, 1, channels};
}

bool is_image(const Tensor& t) { return t.is_cpu() && t.dim() == 4; }

// The arguments that both kernels take; false where `_check_parameters` in pygen/ops/logistic_mixture.py refuses, or
// where there is nothing to do.
bool describe(MixtureArgs& a, const Tensor& p, int64_t channels, const MixtureOptions& o) {
  const bool own = o.autoregressive;
  if (!o.ok || channels < 1 || o.levels < 2 || o.levels > 65536) return false;
  if (own && o.layout != 2 && channels != 1 && channels != 3) return false;
  const int64_t pairs = own ? channels * (channels - 1) / 2 : 0, each = 1 + 2 * channels + pairs;
  if (p.size(1) == 0 || p.size(1) % each != 0) return false;
  const int64_t area = p.size(2) * p.size(3);
  const bool one = area == 1;
  a.samples = one ? 1 : p.size(0), a.area = one ? p.size(0) : area;
  a.channels = channels, a.mixtures = p.size(1) / each, a.parameters = p.size(1);
  a.autoregressive = own;
  a.last = o.levels - 1;
  a.p = p.const_data_ptr();
  a.p_at = pixels(p);
  set_places(a, o.layout);
  return true;
}

template <class F>
void for_tasks(int64_t samples, int64_t area, int64_t parameters, const F& f) {
  const int64_t tasks = samples * ((area + kMixtureTask - 1) / kMixtureTask);
  const int64_t grain = kParallel / (parameters * std::min(area, kMixtureTask) + 1);
  at::parallel_for(0, tasks, std::max<int64_t>(1, grain), f);
}

// --- the ops ---------------------------------------------------------------------------------------------------------

tuple<Tensor, Tensor> nll(const Tensor& x, const Tensor& parameters, std::string_view options, bool record) {
  const auto& o = parse_options<MixtureOptions>(options);
  const auto refused = [&] { return refuse("pygen::logistic_mixture_nll", &nll, x, parameters, options, record); };
  const auto type = float_type(parameters.scalar_type()), x_float = float_type(x.scalar_type());
  const auto x_int = int_type(x.scalar_type());
  if (!type || !(x_float || x_int) || !is_image(x) || !is_image(parameters) || x.size(0) != parameters.size(0) ||
      x.sizes().slice(2) != parameters.sizes().slice(2)) {
    return refused();
  }
  const auto format = layout(parameters);
  const Tensor p = parameters.contiguous(format), levels = x.contiguous(layout(x));
  MixtureNllArgs a{};
  if (!describe(a, p, x.size(1), o)) return refused();
  Tensor out = empty({x.size(0), x.size(2), x.size(3)}, wide_type(p));
  Tensor slope = record ? empty(p.sizes(), p.scalar_type(), format) : empty({0}, p.scalar_type());
  a.x = levels.const_data_ptr();
  a.integers = x_int.has_value();
  a.x_type = x_int ? int(*x_int) : int(*x_float);
  a.x_at = pixels(levels);
  a.openai = o.openai;
  a.nll = out.mutable_data_ptr();
  a.slope = record ? slope.mutable_data_ptr() : nullptr;
  const auto kernel = kernels<MixtureKernels>().nll[int(*type)];
  std::atomic<bool> fine{true};
  if (out.numel()) {
    for_tasks(a.samples, a.area, a.parameters, [&](int64_t begin, int64_t end) {
      if (!kernel(a, begin, end)) fine = false;
    });
  }
  return fine ? tuple(out, slope) : refused();
}

Tensor nll_backward(const Tensor& grad, const Tensor& slope, const Tensor& nll) {
  const auto type = float_type(slope.scalar_type());
  if (!type || !is_image(slope) || !grad.is_cpu() || grad.dim() != 3 || grad.size(0) != slope.size(0) ||
      grad.sizes().slice(1) != slope.sizes().slice(2) || nll.sizes() != grad.sizes() ||
      grad.scalar_type() != wide_type(slope)) {
    return refuse("pygen::logistic_mixture_nll_backward", &nll_backward, grad, slope, nll);
  }
  const auto format = layout(slope);
  const Tensor s = slope.contiguous(format);
  Tensor out = empty(s.sizes(), s.scalar_type(), format);
  if (!out.numel()) return out;
  const bool one = std::all_of(grad.strides().begin(), grad.strides().end(), [](int64_t n) { return n == 0; });
  const Tensor g = one ? grad : grad.contiguous();
  const int64_t area = s.size(2) * s.size(3), samples = area == 1 ? 1 : s.size(0);
  const MixtureScaleArgs a{
      samples,     area == 1 ? s.size(0) : area, s.size(1), s.const_data_ptr(), g.const_data_ptr(), pixels(s),
      one ? 0 : 1, out.mutable_data_ptr()};
  const auto kernel = kernels<MixtureKernels>().scale[int(*type)];
  const int64_t tasks = a.in_planes() ? samples * s.size(1) : samples * ((a.area + kMixtureTask - 1) / kMixtureTask);
  const int64_t grain = std::max<int64_t>(1, kScaled * tasks / out.numel());
  at::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  return out;
}

Tensor sample(const Tensor& parameters, const OptionalTensor& noise, const Tensor& ids, Seed seed, int64_t first_sample,
              int64_t step, int64_t offset, std::string_view options) {
  const auto& o = parse_options<MixtureOptions>(options);
  const auto refused = [&] {
    return refuse("pygen::logistic_mixture_sample", &sample, parameters, noise, ids, seed, first_sample, step, offset,
                  options);
  };
  const auto type = float_type(parameters.scalar_type());
  if (!type || !is_image(parameters) || o.channels < 1) return refused();
  const int64_t batch = parameters.size(0), height = parameters.size(2), width = parameters.size(3);
  const int64_t each = 1 + o.channels;
  Place place(ids, first_sample, step, offset, {batch, height, width, each});
  const auto noise_type = noise ? float_type(noise->scalar_type()) : FloatType::kF32;
  if (!place.ok || !noise_type ||
      (noise && (!noise->is_cpu() || noise->sizes() != at::IntArrayRef{batch, each, height, width}))) {
    return refused();
  }
  const Tensor p = parameters.contiguous(layout(parameters)), u = noise ? noise->contiguous() : Tensor();
  MixtureSampleArgs a{};
  if (!describe(a, p, o.channels, o)) return refused();
  if (!noise) place.draw(seed);
  Tensor x = empty({batch, o.channels, height, width}, wide_type(p));
  if (!x.numel()) return x;
  a.stream = place.stream;
  a.noise = noise ? u.const_data_ptr() : nullptr;
  a.noise_type = *noise_type;
  if (noise) a.noise_at = pixels(u);
  a.coldness = float(std::min(1 / o.temperature, 3e38));
  a.scale_temperature = float(o.scale_temperature);
  a.quantized = o.quantized;
  a.x = x.mutable_data_ptr();
  a.x_at = pixels(x);
  const auto kernel = kernels<MixtureKernels>().sample[int(*type)];
  for_tasks(a.samples, a.area, a.parameters, [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  return x;
}

TORCH_LIBRARY_IMPL(pygen, CPU, m) {
  m.impl("logistic_mixture_nll", &nll);
  m.impl("logistic_mixture_nll_backward", &nll_backward);
  m.impl("logistic_mixture_sample", &sample);
}

}  // namespace
}  // namespace pygen
