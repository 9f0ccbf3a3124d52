// Masked convolutions on the CPU: what is admitted, sizes and layouts, outputs.
#include <torch/library.h>

#include <string>
#include <string_view>
#include <vector>

#include "glue.h"
#include "masked_conv_args.h"
#include "options.h"
#include "table.h"

namespace pygen {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// ConvOptions of pygen/ops/masked_conv.py.
struct Options {
  bool ok = true;
  std::vector<int64_t> offsets;  // dy, dx of each tap
  int64_t mask = 0, groups = 1, stride = 1, dilation = 1, height = 0, width = 0;
  bool interleaved = false, transposed = false;
  ConvActivation activation = ConvActivation::kNone;

  bool set(std::string_view name, OptionValue value) {
    if (name == "taps") return parse_taps(value), true;
    if (name == "mask") return mask = value.among({"none", "A", "B"}), true;
    if (name == "groups") return groups = value, true;
    if (name == "interleaved") return interleaved = value, true;
    if (name == "stride") return stride = value, true;
    if (name == "dilation") return dilation = value, true;
    if (name == "transposed") return transposed = value, true;
    if (name == "height") return height = value, true;
    if (name == "width") return width = value, true;
    if (name == "activation") {
      return activation = ConvActivation(value.among({"none", "relu", "elu", "gate", "glu"})), true;
    }
    return false;
  }

  int64_t taps() const { return int64_t(offsets.size()) / 2; }
  bool gated() const { return activation == ConvActivation::kGate || activation == ConvActivation::kGlu; }

  // Of an axis of the input; given: what output_size says, or 0.
  int64_t output_size(int64_t n, int64_t given) const {
    if (given) return given;
    return transposed ? n * stride : (n + stride - 1) / stride;
  }

 private:
  void parse_taps(const std::string& text) {
    for (std::string_view rest = text; !rest.empty();) {
      const auto number = rest.substr(0, rest.find_first_of(",;"));
      rest.remove_prefix(std::min(rest.size(), number.size() + 1));
      offsets.push_back(OptionValue(number, ok));
    }
  }
};

std::tuple<Tensor, Tensor> masked_conv2d(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                         const OptionalTensor& condition, const OptionalTensor& residual,
                                         std::string_view options);
std::tuple<Tensor, Tensor, Tensor, Tensor> masked_conv2d_backward(const Tensor& grad_y, const Tensor& x,
                                                                  const Tensor& weight, const OptionalTensor& pre,
                                                                  std::string_view options, bool need_x,
                                                                  bool need_weight, bool need_bias, bool need_pre,
                                                                  bool bias_of_samples);

// --- what is admitted ------------------------------------------------------------------------------------------------

bool is_code(at::ScalarType type) {
  return type == at::kByte || type == at::kShort || type == at::kInt || type == at::kLong;
}

// codes: int64, contiguous
bool in_range(const Tensor& codes, int64_t count) {
  const auto* p = codes.const_data_ptr<int64_t>();
  return std::all_of(p, p + codes.numel(), [&](int64_t code) { return code >= 0 && code < count; });
}

// The conditions of `check` in pygen/ops/masked_conv.py, without the messages; false hands over to it.
bool admits(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& condition,
            const OptionalTensor& residual, const Options& o) {
  const bool codes = is_code(x.scalar_type());
  if (!o.ok || !float_type(weight.scalar_type()) || !x.is_cpu() || !weight.is_cpu() || weight.dim() != 3) return false;
  if (o.taps() == 0 || weight.size(0) != o.taps() || x.dim() != (codes ? 3 : 4)) return false;
  if (!codes && (x.scalar_type() != weight.scalar_type() || x.size(1) != weight.size(1))) return false;
  const int64_t channels = weight.size(2), of_y = o.gated() ? channels / 2 : channels;
  if (o.gated() && channels % 2) return false;
  if (o.mask && (codes || weight.size(1) % o.groups || of_y % o.groups)) return false;
  const int64_t d = codes ? 1 : 2;
  const int64_t height = o.output_size(x.size(d), o.height), width = o.output_size(x.size(d + 1), o.width);
  const auto within = [&](int64_t n, int64_t out) { return (n - 1) * o.stride < out && out <= n * o.stride; };
  if (o.height && !(within(x.size(d), height) && within(x.size(d + 1), width))) return false;
  const auto fits = [&](const OptionalTensor& t, at::IntArrayRef sizes) {
    return !t || !t->defined() || (t->is_cpu() && t->scalar_type() == weight.scalar_type() && t->sizes() == sizes);
  };
  return (fits(bias, {channels}) || fits(bias, {x.size(0), channels})) &&
         fits(condition, {x.size(0), channels, height, width}) && fits(residual, {x.size(0), of_y, height, width});
}

// --- sizes and layouts -----------------------------------------------------------------------------------------------

// channels_last where x is so and not contiguous too, as pygen/_lib.py has it
at::MemoryFormat layout(const Tensor& x) {
  const bool last = x.dim() == 4 && !x.is_contiguous() && x.is_contiguous(at::MemoryFormat::ChannelsLast);
  return last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

ConvImages images(const Tensor& t) {
  return {t.const_data_ptr(), t.size(1), t.size(2), t.size(3), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

// x: codes as int64, [B, 1, H, W]; weight: contiguous
ConvArgs arguments(const Tensor& x, const Tensor& weight, const Options& o, std::vector<int64_t>& offsets) {
  ConvArgs a;
  a.batch = x.size(0);
  a.x = images(x);
  a.channels_in = weight.size(1);
  a.codes = x.scalar_type() == at::kLong;
  a.taps = o.taps();
  for (size_t t = 0; t < size_t(a.taps); ++t) {
    if (o.mask && o.offsets[2 * t] == 0 && o.offsets[2 * t + 1] == 0) a.masked = int64_t(t);
  }
  offsets = o.offsets;
  for (int64_t& offset : offsets) offset *= o.dilation;
  a.offsets = offsets.data();
  a.stride = o.stride;
  a.transposed = o.transposed;
  a.strict = o.mask == 1;
  a.groups = o.groups;
  a.interleaved = o.interleaved;
  a.activation = o.activation;
  a.weight = weight.const_data_ptr();
  a.pre.channels = weight.size(2);
  a.pre.height = o.output_size(x.size(2), o.height);
  a.pre.width = o.output_size(x.size(3), o.width);
  return a;
}

// --- the ops ---------------------------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> masked_conv2d(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                         const OptionalTensor& condition, const OptionalTensor& residual,
                                         std::string_view options) {
  const Options& o = parse_options<Options>(options);
  const auto hand_over = [&] {
    return refuse("pygen::masked_conv2d", &masked_conv2d, x, weight, bias, condition, residual, options);
  };
  if (!admits(x, weight, bias, condition, residual, o)) return hand_over();
  const bool codes = is_code(x.scalar_type());
  const Tensor in = codes ? x.to(at::kLong).contiguous().unsqueeze(1) : x, w = weight.contiguous();
  if (codes && !in_range(in, weight.size(1))) return hand_over();

  std::vector<int64_t> offsets;
  ConvArgs a = arguments(in, w, o, offsets);
  const auto type = weight.scalar_type();
  const auto format = layout(x);
  const int64_t channels = a.pre.channels, height = a.pre.height, width = a.pre.width;
  Tensor y = empty({a.batch, o.gated() ? channels / 2 : channels, height, width}, type, format);
  const bool activates = o.activation != ConvActivation::kNone;
  Tensor pre =
      activates ? empty({a.batch, channels, height, width}, type, at::MemoryFormat::ChannelsLast) : empty({0}, type);
  if (y.numel() == 0) return {y, pre};
  Tensor b;
  if (bias) {
    b = bias->contiguous();
    a.bias = b.const_data_ptr();
    a.bias_of_samples = b.dim() == 2;
  }
  if (condition) a.condition = images(*condition);
  if (residual) a.residual = images(*residual);
  if (activates) a.pre = images(pre);
  a.y = images(y);
  kernels<ConvKernels>().forward[int(*float_type(type))](torch_threads, a);
  return {y, pre};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> masked_conv2d_backward(const Tensor& grad_y, const Tensor& x,
                                                                  const Tensor& weight, const OptionalTensor& pre,
                                                                  std::string_view options, bool need_x,
                                                                  bool need_weight, bool need_bias, bool need_pre,
                                                                  bool bias_of_samples) {
  const Options& o = parse_options<Options>(options);
  const auto hand_over = [&] {
    return refuse("pygen::masked_conv2d_backward", &masked_conv2d_backward, grad_y, x, weight, pre, options, need_x,
                  need_weight, need_bias, need_pre, bias_of_samples);
  };
  const bool activates = o.activation != ConvActivation::kNone;
  if (!admits(x, weight, std::nullopt, pre, grad_y, o) || (pre && pre->defined()) != activates) return hand_over();
  const bool codes = is_code(x.scalar_type());
  const Tensor in = codes ? x.to(at::kLong).contiguous().unsqueeze(1) : x, w = weight.contiguous();
  if (codes && !in_range(in, weight.size(1))) return hand_over();

  std::vector<int64_t> offsets;
  ConvArgs a = arguments(in, w, o, offsets);
  const auto type = weight.scalar_type();
  const int64_t channels = a.pre.channels;
  const auto output = [&](bool needed, at::IntArrayRef sizes, at::MemoryFormat format) {
    return needed ? empty(sizes, type, format) : empty({0}, type);
  };
  need_x = need_x && !codes;
  const auto dense = at::MemoryFormat::Contiguous;
  Tensor grad_x = output(need_x, x.sizes(), layout(x)), grad_weight = output(need_weight, weight.sizes(), dense);
  Tensor grad_bias =
      bias_of_samples ? output(need_bias, {a.batch, channels}, dense) : output(need_bias, {channels}, dense);
  Tensor grad_pre = output(need_pre, {a.batch, channels, a.pre.height, a.pre.width}, layout(x));
  if (grad_y.numel() == 0) {  // sums over nothing
    for (const Tensor* t : {&grad_x, &grad_weight, &grad_bias, &grad_pre}) t->zero_();
    return {grad_x, grad_weight, grad_bias, grad_pre};
  }
  a.y = images(grad_y);
  if (activates) a.pre = images(*pre);
  if (need_x && grad_x.numel()) a.grad_x = images(grad_x);
  if (need_pre) a.grad_pre = images(grad_pre);
  if (need_weight) a.grad_weight = grad_weight.mutable_data_ptr();
  if (need_bias) a.grad_bias = grad_bias.mutable_data_ptr();
  a.bias_of_samples = bias_of_samples;
  kernels<ConvKernels>().backward[int(*float_type(type))](torch_threads, a);
  return {grad_x, grad_weight, grad_bias, grad_pre};
}

TORCH_LIBRARY_IMPL(pygen, CPU, m) {
  m.impl("masked_conv2d", &masked_conv2d);
  m.impl("masked_conv2d_backward", &masked_conv2d_backward);
}

}  // namespace
}  // namespace pygen
