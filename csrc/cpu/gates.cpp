// Gates and the concatenated ELU on the CPU: what is admitted, how tensors are cut into rows and tasks, threads.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <string_view>
#include <vector>

#include "gates_args.h"
#include "glue.h"
#include "table.h"

namespace pygen {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kChunk = 16384;     // elements of a half that one task holds, about
constexpr int64_t kParallel = 16384;  // elements of a half below which a second thread costs more than it brings
constexpr int64_t kStream = 256;      // bytes of a row below which streaming stores cost more than they bring

bool fits(const Tensor& t, const Tensor& x, at::IntArrayRef sizes) {
  return t.is_cpu() && t.scalar_type() == x.scalar_type() && t.sizes() == sizes;
}

// Of a wide tensor [B, 2 C, ...] that of a narrow one, [B, C, ...].
std::vector<int64_t> halved(const Tensor& x) {
  auto sizes = x.sizes().vec();
  sizes[1] /= 2;
  return sizes;
}

const void* dense(const OptionalTensor& t, at::MemoryFormat format, Tensor& owner) {
  if (!t) return nullptr;
  owner = t->contiguous(format);
  return owner.const_data_ptr();
}

// How the halves of `narrow`'s size, [B, C, ...], lie in this layout, and the tasks they make. bias_dim: 0 for no bias.
struct Plan {
  GatesArgs args{};
  int64_t tasks, per_task;

  Plan(at::IntArrayRef narrow, at::MemoryFormat format, int64_t bias_dim, int64_t bytes, int64_t item) {
    auto& a = args;
    const int64_t channels = narrow[1], area = c10::multiply_integers(narrow.slice(2));
    int64_t samples = narrow[0];
    a.pixels = format == at::MemoryFormat::ChannelsLast || area == 1;
    if (a.pixels) {
      const int64_t sites = bias_dim == 2 ? area : samples * area;
      samples = bias_dim == 2 ? samples : 1;
      a.rows = sites, a.row = channels, a.half = channels;
    } else {
      a.half = channels * area;
      a.row = bias_dim == 0 ? std::min(a.half, kChunk) : area;
      a.rows = (a.half + a.row - 1) / std::max<int64_t>(a.row, 1);
    }
    a.run = a.pixels ? a.rows * a.row : a.half;
    a.narrow_row = a.row, a.wide_row = a.pixels ? 2 * a.row : a.row;
    a.narrow_sample = a.run, a.wide_sample = 2 * a.run;
    a.bias_sample = bias_dim == 2 ? 2 * channels : 0;
    a.rows_per_chunk = std::max<int64_t>(1, kChunk / std::max<int64_t>(a.row, 1));
    a.chunks = (a.rows + a.rows_per_chunk - 1) / a.rows_per_chunk;
    a.stream = bytes > last_level_cache() && a.row * item >= kStream;
    tasks = samples * a.chunks;
    per_task = std::max<int64_t>(1, samples * a.run / std::max<int64_t>(tasks, 1));
  }

  template <class F>
  void run(const F& kernel) const {
    at::parallel_for(0, tasks, std::max<int64_t>(1, kParallel / per_task),
                     [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  }
};

// --- gated_activation ------------------------------------------------------------------------------------------------

std::optional<Gate> gate_of(std::string_view kind) {
  if (kind == "tanh") return Gate::kTanh;
  if (kind == "linear") return Gate::kLinear;
  return std::nullopt;
}

bool admits(const Tensor& x, const OptionalTensor& bias, const OptionalTensor& condition, std::string_view kind) {
  return gate_of(kind) && x.is_cpu() && float_type(x.scalar_type()) && x.dim() >= 2 && x.size(1) % 2 == 0 &&
         (!bias || fits(*bias, x, x.sizes().slice(1, 1)) || fits(*bias, x, x.sizes().slice(0, 2))) &&
         (!condition || fits(*condition, x, x.sizes()));
}

Tensor wide_bias(const OptionalTensor& bias) {  // in the type of the arithmetic, dense
  if (!bias) return Tensor();
  return bias->to(bias->scalar_type() == at::kDouble ? at::kDouble : at::kFloat).contiguous();
}

Tensor gated_activation(const Tensor& x, const OptionalTensor& bias, const OptionalTensor& condition,
                        const OptionalTensor& residual, std::string_view kind) {
  if (!admits(x, bias, condition, kind) || (residual && !fits(*residual, x, halved(x)))) {
    return refuse("pygen::gated_activation", &gated_activation, x, bias, condition, residual, kind);
  }
  const auto format = layout(x);
  const auto sizes = halved(x);
  const Tensor in = x.contiguous(format), wide = wide_bias(bias);
  Tensor own_condition, own_residual, y = empty(sizes, x.scalar_type(), format);
  if (y.numel() == 0) return y;
  Plan plan(sizes, format, bias ? bias->dim() : 0, int64_t(in.nbytes() + y.nbytes()), x.element_size());
  auto& a = plan.args;
  a.gate = *gate_of(kind);
  a.x = in.const_data_ptr();
  a.bias = bias ? wide.const_data_ptr() : nullptr;
  a.condition = dense(condition, format, own_condition);
  a.residual = dense(residual, format, own_residual);
  a.out = y.mutable_data_ptr();
  plan.run(kernels<GatesKernels>().gate[int(*float_type(x.scalar_type()))]);
  return y;
}

// [groups, n] from sums [groups, parts, n], added in order
Tensor add_up(const std::vector<double>& sums, int64_t groups, int64_t n) {
  Tensor out = empty({groups, n}, at::kDouble).zero_();
  auto* total = out.mutable_data_ptr<double>();
  const int64_t parts = int64_t(sums.size()) / (groups * n);
  for (int64_t i = 0; i < groups * parts; ++i) {
    for (int64_t k = 0; k < n; ++k) total[i / parts * n + k] += sums[size_t(i * n + k)];
  }
  return out;
}

std::tuple<Tensor, Tensor> gated_activation_backward(const Tensor& grad_y, const Tensor& x, const OptionalTensor& bias,
                                                     const OptionalTensor& condition, std::string_view kind,
                                                     bool need_x, bool need_bias) {
  if (!admits(x, bias, condition, kind) || !fits(grad_y, x, halved(x))) {
    return refuse("pygen::gated_activation_backward", &gated_activation_backward, grad_y, x, bias, condition, kind,
                  need_x, need_bias);
  }
  need_bias = need_bias && bias;
  const auto format = layout(x);
  const auto type = x.scalar_type();
  Tensor grad_x = need_x ? empty(x.sizes(), type, format) : empty({0}, type);
  Tensor grad_bias = empty(need_bias ? bias->sizes() : at::IntArrayRef{0}, type);
  if (x.numel() == 0) return {grad_x, grad_bias.zero_()};
  if (!need_x && !need_bias) return {grad_x, grad_bias};

  const Tensor in = x.contiguous(format), g = grad_y.contiguous(format), wide = wide_bias(bias);
  Tensor own_condition;
  Plan plan(g.sizes(), format, bias ? bias->dim() : 0, int64_t(2 * in.nbytes() + g.nbytes()), x.element_size());
  auto& a = plan.args;
  a.gate = *gate_of(kind);
  a.x = in.const_data_ptr();
  a.bias = bias ? wide.const_data_ptr() : nullptr;
  a.condition = dense(condition, format, own_condition);
  a.grad_y = g.const_data_ptr();
  a.out = need_x ? grad_x.mutable_data_ptr() : nullptr;
  const int64_t batch = x.size(0), n = x.size(1);
  std::vector<double> sums(size_t(need_bias ? (a.pixels ? plan.tasks : batch) * n : 0), 0.0);
  a.sums = need_bias ? sums.data() : nullptr;
  plan.run(kernels<GatesKernels>().gate_backward[int(*float_type(type))]);
  if (need_bias) grad_bias = add_up(sums, bias->dim() == 2 ? batch : 1, n).reshape(bias->sizes()).to(type);
  return {grad_x, grad_bias};
}

// --- concat_elu ------------------------------------------------------------------------------------------------------

std::vector<int64_t> doubled(const Tensor& x) {
  auto sizes = x.sizes().vec();
  sizes[1] *= 2;
  return sizes;
}

bool admits(const Tensor& x) { return x.is_cpu() && float_type(x.scalar_type()) && x.dim() >= 2; }

Tensor concat_elu(const Tensor& x) {
  if (!admits(x)) return refuse("pygen::concat_elu", &concat_elu, x);
  const auto format = layout(x);
  const Tensor in = x.contiguous(format);
  Tensor y = empty(doubled(x), x.scalar_type(), format);
  if (y.numel() == 0) return y;
  Plan plan(x.sizes(), format, 0, int64_t(in.nbytes() + y.nbytes()), x.element_size());
  plan.args.x = in.const_data_ptr();
  plan.args.out = y.mutable_data_ptr();
  plan.run(kernels<GatesKernels>().concat_elu[int(*float_type(x.scalar_type()))]);
  return y;
}

Tensor concat_elu_backward(const Tensor& grad_y, const Tensor& x) {
  if (!admits(x) || !fits(grad_y, x, doubled(x))) {
    return refuse("pygen::concat_elu_backward", &concat_elu_backward, grad_y, x);
  }
  const auto format = layout(x);
  const Tensor in = x.contiguous(format), g = grad_y.contiguous(format);
  Tensor grad_x = empty(x.sizes(), x.scalar_type(), format);
  if (x.numel() == 0) return grad_x;
  Plan plan(x.sizes(), format, 0, int64_t(2 * in.nbytes() + g.nbytes()), x.element_size());
  plan.args.x = in.const_data_ptr();
  plan.args.grad_y = g.const_data_ptr();
  plan.args.out = grad_x.mutable_data_ptr();
  plan.run(kernels<GatesKernels>().concat_elu_backward[int(*float_type(x.scalar_type()))]);
  return grad_x;
}

TORCH_LIBRARY_IMPL(pygen, CPU, m) {
  m.impl("gated_activation", &gated_activation);
  m.impl("gated_activation_backward", &gated_activation_backward);
  m.impl("concat_elu", &concat_elu);
  m.impl("concat_elu_backward", &concat_elu_backward);
}

}  // namespace
}  // namespace pygen
