// Output heads on the CPU: what is admitted, how sites are cut into blocks, threads.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <string_view>

#include "glue.h"
#include "heads_args.h"
#include "table.h"

namespace pygen {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kLogits = 1 << 17;  // of a block: half a second-level cache in float32
constexpr int64_t kGroups = 16;       // of tasks, each with sums of its own for the gradients of weight and bias

bool fits(const Tensor& t, const Tensor& h) { return t.is_cpu() && t.scalar_type() == h.scalar_type(); }

enum class Head { kCategorical, kBernoulli };

// The conditions of `_Head.check` in pygen/ops/heads.py, without the messages. order: of the categorical head.
bool admits(Head head, const Tensor& h, const Tensor& weight, const OptionalTensor& bias, const Tensor& target,
            std::string_view order) {
  if ((order != "channel" && order != "level") || h.dim() < 2 || !h.is_cpu() || !float_type(h.scalar_type()) ||
      weight.dim() != 2 || !fits(weight, h) || weight.size(1) != h.size(1) || !target.is_cpu() ||
      !at::isIntegralType(target.scalar_type(), head == Head::kBernoulli) || target.dim() != h.dim() ||
      target.size(0) != h.size(0) || target.sizes().slice(2) != h.sizes().slice(2)) {
    return false;
  }
  const int64_t outputs = weight.size(0), channels = target.size(1);
  return channels > 0 && outputs > 0 && (head == Head::kBernoulli ? outputs == channels : outputs % channels == 0) &&
         (!bias || (fits(*bias, h) && bias->sizes() == weight.sizes().slice(0, 1)));
}

bool in_range(const Tensor& target, int64_t values) {
  const auto* p = target.const_data_ptr<int64_t>();
  return std::all_of(p, p + target.numel(), [&](int64_t value) { return value >= 0 && value < values; });
}

// weight or bias with their outputs in the other order: `inner` neighbours next to each other are `inner` apart.
Tensor swapped(const Tensor& t, int64_t inner) { return t.unflatten(0, {-1, inner}).transpose(0, 1).flatten(0, 1); }

// Kernel arguments with what they point to. Types are those of the arithmetic.
struct Plan {
  HeadsArgs args{};
  Tensor h, weight, bias, target;
  int64_t tasks = 0;

  Plan(const Tensor& h_, const Tensor& weight_, const OptionalTensor& bias_, const Tensor& target_,
       std::string_view order) {
    const auto by_channel = [&](const Tensor& t) { return order == "level" ? swapped(t, target_.size(1)) : t; };
    const auto type = h_.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    const auto format = layout(h_);
    h = h_.to(type).contiguous(format);
    weight = by_channel(weight_.to(type)).contiguous();
    if (bias_) bias = by_channel(bias_->to(type)).contiguous();
    target = target_.to(at::kLong).contiguous();
    auto& a = args;
    a.h = h.const_data_ptr();
    a.weight = weight.const_data_ptr();
    a.bias = bias_ ? bias.const_data_ptr() : nullptr;
    a.target = target.const_data_ptr<int64_t>();
    a.inputs = h.size(1), a.outputs = weight.size(0), a.channels = target.size(1);
    a.levels = a.outputs / a.channels;
    a.area = c10::multiply_integers(h.sizes().slice(2));
    const bool together = format == at::MemoryFormat::ChannelsLast || a.area == 1;  // a site's inputs
    a.sites = together ? h.size(0) * a.area : a.area;
    a.h_sample = a.inputs * a.sites;
    a.h_site = together ? a.inputs : 1;
    a.h_input = together ? 1 : a.area;
    a.block = std::clamp<int64_t>(kLogits / a.outputs / 8 * 8, 8, 256);
    a.block = std::min(a.block, a.sites);
    a.blocks = target.numel() ? (a.sites + a.block - 1) / a.block : 0;
    tasks = (together ? 1 : h.size(0)) * a.blocks;
  }
  bool is_double() const { return h.scalar_type() == at::kDouble; }
  int64_t values(Head head) const { return head == Head::kBernoulli ? 2 : args.levels; }  // of target
};

const HeadKernels& kernels_of(Head head) {
  const HeadsKernels& all = kernels<HeadsKernels>();
  return head == Head::kBernoulli ? all.bernoulli : all.categorical;
}

// Both return nothing for arguments that are not admitted.
std::optional<Tensor> nll_of(Head head, const Tensor& h, const Tensor& weight, const OptionalTensor& bias,
                             const Tensor& target, std::string_view order) {
  if (!admits(head, h, weight, bias, target, order)) return {};
  Plan plan(h, weight, bias, target, order);
  if (!in_range(plan.target, plan.values(head))) return {};
  Tensor nll = empty(target.sizes(), plan.h.scalar_type());
  plan.args.nll = nll.mutable_data_ptr();
  const auto kernel = kernels_of(head).nll[plan.is_double()];
  at::parallel_for(0, plan.tasks, 1, [&](int64_t begin, int64_t end) { kernel(plan.args, begin, end); });
  return nll;
}

using Gradients = std::tuple<Tensor, Tensor, Tensor>;

std::optional<Gradients> gradients_of(Head head, const Tensor& grad, const Tensor& h, const Tensor& weight,
                                      const OptionalTensor& bias, const Tensor& target, std::string_view order,
                                      bool need_h, bool need_weight, bool need_bias) {
  if (!admits(head, h, weight, bias, target, order) || !grad.is_cpu() || grad.sizes() != target.sizes()) return {};
  Plan plan(h, weight, bias, target, order);
  const auto type = plan.h.scalar_type(), storage = h.scalar_type();
  auto& a = plan.args;
  if (grad.scalar_type() != type || !in_range(plan.target, plan.values(head))) return {};
  need_bias = need_bias && bias;
  const Tensor g = grad.contiguous();
  Tensor grad_h =
      empty(need_h ? h.sizes() : at::IntArrayRef{0}, type, need_h ? layout(h) : at::MemoryFormat::Contiguous);
  a.grad = g.const_data_ptr();
  a.grad_h = need_h ? grad_h.mutable_data_ptr() : nullptr;

  const int64_t groups = std::max<int64_t>(1, std::min(plan.tasks, kGroups));
  const int64_t weights = need_weight ? weight.numel() : 0, own = weights + (need_bias ? a.outputs : 0);
  Tensor sums = empty({groups, own}, at::kDouble).zero_();
  auto* values = sums.mutable_data_ptr<double>();
  const auto kernel = kernels_of(head).nll_backward[plan.is_double()];
  at::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
    for (; begin < end; ++begin) {
      HeadsArgs part = a;
      part.grad_weight = need_weight ? values + begin * own : nullptr;
      part.grad_bias = need_bias ? values + begin * own + weights : nullptr;
      kernel(part, plan.tasks * begin / groups, plan.tasks * (begin + 1) / groups);
    }
  });
  for (int64_t k = 1; k < groups; ++k) {
    for (int64_t i = 0; i < own; ++i) values[i] += values[k * own + i];
  }
  const auto part = [&](int64_t from, const Tensor& like, bool needed) {  // a copy, also where the type is the sums'
    if (!needed) return empty({0}, storage);
    const Tensor sum = sums.select(0, 0).narrow(0, from, like.numel()).view(like.sizes());
    return (order == "level" ? swapped(sum, a.levels) : sum).to(storage, false, true);
  };
  return Gradients{grad_h.to(storage), part(0, plan.weight, need_weight), part(weights, plan.bias, need_bias)};
}

Tensor categorical_nll(const Tensor& h, const Tensor& weight, const OptionalTensor& bias, const Tensor& target,
                       std::string_view order) {
  auto nll = nll_of(Head::kCategorical, h, weight, bias, target, order);
  return nll ? *nll : refuse("pygen::categorical_nll", &categorical_nll, h, weight, bias, target, order);
}

Gradients categorical_nll_backward(const Tensor& grad, const Tensor& h, const Tensor& weight,
                                   const OptionalTensor& bias, const Tensor& target, std::string_view order,
                                   bool need_h, bool need_weight, bool need_bias) {
  auto grads = gradients_of(Head::kCategorical, grad, h, weight, bias, target, order, need_h, need_weight, need_bias);
  return grads ? *grads
               : refuse("pygen::categorical_nll_backward", &categorical_nll_backward, grad, h, weight, bias, target,
                        order, need_h, need_weight, need_bias);
}

Tensor bernoulli_nll(const Tensor& h, const Tensor& weight, const OptionalTensor& bias, const Tensor& target) {
  auto nll = nll_of(Head::kBernoulli, h, weight, bias, target, "channel");
  return nll ? *nll : refuse("pygen::bernoulli_nll", &bernoulli_nll, h, weight, bias, target);
}

Gradients bernoulli_nll_backward(const Tensor& grad, const Tensor& h, const Tensor& weight, const OptionalTensor& bias,
                                 const Tensor& target, bool need_h, bool need_weight, bool need_bias) {
  auto grads = gradients_of(Head::kBernoulli, grad, h, weight, bias, target, "channel", need_h, need_weight, need_bias);
  return grads ? *grads
               : refuse("pygen::bernoulli_nll_backward", &bernoulli_nll_backward, grad, h, weight, bias, target, need_h,
                        need_weight, need_bias);
}

TORCH_LIBRARY_IMPL(pygen, CPU, m) {
  m.impl("categorical_nll", &categorical_nll);
  m.impl("categorical_nll_backward", &categorical_nll_backward);
  m.impl("bernoulli_nll", &bernoulli_nll);
  m.impl("bernoulli_nll_backward", &bernoulli_nll_backward);
}

}  // namespace
}  // namespace pygen
