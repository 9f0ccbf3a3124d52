// The loss of diffusion models on the CPU: what is admitted, layouts, threads.
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "diffusion_loss_args.h"
#include "glue.h"
#include "place.h"
#include "table.h"
#include "table_rows.h"

namespace pygen {
namespace {

using at::Tensor;
using std::tuple;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;
using OptionalType = std::optional<at::ScalarType>;

constexpr int64_t kParallel = 16384, kParallelDrawn = 4096;  // elements that are worth a thread
constexpr int64_t kColumns = 3;                              // of a table: of x0, of noise, weight

bool fits(const Tensor& t, const Tensor& output, bool bytes = false) {
  return t.is_cpu() && (float_type(t.scalar_type()) || (bytes && t.scalar_type() == at::kByte)) &&
         t.sizes() == output.sizes();
}

LossPlan plan_of(const Tensor& x, const TableRows& rows, int64_t bytes) {
  LossPlan plan{};
  plan.size = x.size(0) ? x.numel() / x.size(0) : 0;
  plan.chunks = (plan.size + kLossTask - 1) / kLossTask;
  plan.runs = plan.size ? std::max<int64_t>(1, rows.tokens) : 0;  // of no tokens there are no rows either
  plan.run = plan.runs ? plan.size / plan.runs : 0;
  plan.stream = bytes > last_level_cache();
  return plan;
}

// f(r, row of the table) for all runs of a batch
template <class F>
void for_rows(int64_t batch, const LossPlan& plan, const TableRows& rows, const F& f) {
  for (int64_t r = 0; r < batch * plan.runs; ++r) f(r, rows.whole() ? 0 : r);
}

template <class F>
void for_tasks(int64_t batch, const LossPlan& plan, int64_t elements, const F& f) {
  const int64_t grain = std::max<int64_t>(1, elements / std::min(kLossTask, plan.size + 1));
  at::parallel_for(0, batch * plan.chunks, grain, f);
}

// Tokens lie together, and elements in the order of the stream, in contiguous memory alone.
at::MemoryFormat format_of(const Tensor& t, const TableRows& rows, bool draws) {
  return draws || rows.tokens > 1 ? at::MemoryFormat::Contiguous : layout(t);
}

tuple<Tensor, Tensor> loss(const Tensor& output, const Tensor& x0, const Tensor& table, const OptionalTensor& index,
                           int64_t row, const OptionalTensor& noise, bool draws, const OptionalTensor& ids, Seed seed,
                           int64_t first_sample, int64_t step, OptionalType kept) {
  const auto refused = [&] {
    return refuse("pygen::diffusion_loss", &loss, output, x0, table, index, row, noise, draws, ids, seed, first_sample,
                  step, kept);
  };
  if (output.dim() < 1 || !fits(output, output) || !fits(x0, output, true) || (noise && !fits(*noise, output)) ||
      (noise && draws) || (kept && !float_type(*kept))) {
    return refused();
  }
  const TableRows rows(output, table, index, row, kColumns);
  if (!rows.ok || table.size(1) != kColumns) return refused();
  LossArgs args{};
  std::optional<Place> place;
  if (draws) {
    place.emplace(ids ? *ids : empty({0}, at::kLong), first_sample, step + (rows.whole() ? rows.at(0) : 0), 0,
                  output.sizes());
    if (!place->ok || step + (rows.whole() ? table.size(0) - 1 : 0) >= int64_t(1) << 24) return refused();
    place->draw(seed);
    args.draws = true;
    args.place = place->stream;
  }
  const bool wide = output.scalar_type() == at::kDouble || x0.scalar_type() == at::kDouble;
  const auto wanted = layout(output), format = format_of(output, rows, draws);
  const Tensor predicted = output.contiguous(format), clean = x0.contiguous(format);
  const Tensor added = noise ? noise->contiguous(format) : Tensor();
  const int64_t batch = output.size(0);
  Tensor out = empty({batch}, wide ? at::kDouble : at::kFloat);
  Tensor difference = kept ? empty(output.sizes(), *kept, format) : empty({0}, output.scalar_type());
  args.plan = plan_of(output, rows, int64_t(predicted.nbytes() + clean.nbytes() + difference.nbytes()));
  const LossPlan& plan = args.plan;
  args.output = stored(predicted), args.x0 = stored(clean);
  if (noise) args.noise = stored(added);
  if (kept) args.difference = {difference.mutable_data_ptr(), *float_type(*kept)};
  std::vector<double> coefficients(size_t(2 * batch * plan.runs)), sums(size_t(batch * (plan.chunks + plan.runs)));
  for_rows(batch, plan, rows, [&](int64_t r, int64_t i) {
    coefficients[size_t(2 * r)] = rows(i, 0), coefficients[size_t(2 * r + 1)] = rows(i, 1);
  });
  args.coefficients = coefficients.data(), args.sums = sums.data();
  const auto kernel = kernels<LossKernels>().loss[wide];
  for_tasks(batch, plan, draws ? kParallelDrawn : kParallel,
            [&](int64_t begin, int64_t end) { kernel(args, begin, end); });

  for (int64_t b = 0; b < batch; ++b) {
    const double* own = sums.data() + b * (plan.chunks + plan.runs);
    double total = 0;
    for (int64_t r = 0; r < plan.runs; ++r) {
      double squares = 0;  // of the tasks that the run is part of
      for (int64_t c = r * plan.run / kLossTask; c <= ((r + 1) * plan.run - 1) / kLossTask; ++c) squares += own[c + r];
      total += rows(rows.whole() ? 0 : b * plan.runs + r, 2) * squares;
    }
    total /= double(plan.size);
    if (wide) {
      out.mutable_data_ptr<double>()[b] = total;
    } else {
      out.mutable_data_ptr<float>()[b] = float(total);
    }
  }
  return {out, kept ? difference.contiguous(wanted) : difference};
}

tuple<Tensor, Tensor, Tensor> loss_backward(const Tensor& grad, const Tensor& difference, const Tensor& loss,
                                            const Tensor& table, const OptionalTensor& index, int64_t row,
                                            OptionalType output, OptionalType x0, OptionalType noise) {
  const OptionalType types[] = {output, x0, noise};
  const auto refused = [&] {
    return refuse("pygen::diffusion_loss_backward", &loss_backward, grad, difference, loss, table, index, row, output,
                  x0, noise);
  };
  const bool wide = grad.scalar_type() == at::kDouble || difference.scalar_type() == at::kDouble;
  if (!fits(difference, difference) || difference.dim() < 1 || !grad.is_cpu() || grad.dim() != 1 ||
      grad.size(0) != difference.size(0) || loss.sizes() != grad.sizes() ||
      !(grad.scalar_type() == at::kDouble || grad.scalar_type() == at::kFloat) ||
      !std::all_of(types, types + 3, [](const OptionalType& t) { return !t || float_type(*t); })) {
    return refused();
  }
  const TableRows rows(difference, table, index, row, kColumns);
  if (!rows.ok) return refused();
  const auto wanted = layout(difference), format = format_of(difference, rows, false);
  const Tensor dense = difference.contiguous(format), upstream = grad.to(at::kDouble).contiguous();
  LossBackwardArgs args{};
  args.difference = stored(dense);
  Tensor gradients[kLossGradients];
  int64_t bytes = int64_t(dense.nbytes());
  for (int g = 0; g < kLossGradients; ++g) {
    gradients[g] = types[g] ? empty(dense.sizes(), *types[g], format) : empty({0}, difference.scalar_type());
    bytes += int64_t(gradients[g].nbytes());
    if (types[g]) args.gradient[g] = {gradients[g].mutable_data_ptr(), *float_type(*types[g])};
  }
  args.plan = plan_of(dense, rows, bytes);
  const LossPlan& plan = args.plan;
  const int64_t batch = dense.size(0);
  std::vector<double> factors(size_t(kLossGradients * batch * plan.runs));
  for_rows(batch, plan, rows, [&](int64_t r, int64_t i) {
    const double slope = 2 * upstream.const_data_ptr<double>()[r / plan.runs] * rows(i, 2) / double(plan.size);
    double* own = factors.data() + kLossGradients * r;
    own[0] = slope, own[1] = -rows(i, 0) * slope, own[2] = -rows(i, 1) * slope;
  });
  args.factors = factors.data();
  const auto kernel = kernels<LossKernels>().backward[wide];
  for_tasks(batch, plan, kParallel, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  if (format != wanted) {
    for (int g = 0; g < kLossGradients; ++g) {
      if (types[g]) gradients[g] = gradients[g].contiguous(wanted);
    }
  }
  return {gradients[0], gradients[1], gradients[2]};
}

// --- autograd: the C++ twin of register_autograd in pygen/ops/diffusion_loss.py, a hundred microseconds cheaper ------

auto forward_op() {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("pygen::diffusion_loss", "").typed<decltype(loss)>();
  return op;
}

auto backward_op() {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("pygen::diffusion_loss_backward", "")
                             .typed<decltype(loss_backward)>();
  return op;
}

struct LossFunction : torch::autograd::Function<LossFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& output, const Tensor& x0, const Tensor& table,
                               const OptionalTensor& index, int64_t row, const OptionalTensor& noise, bool draws,
                               const OptionalTensor& ids, Seed seed, int64_t first_sample, int64_t step,
                               OptionalType kept) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [loss, difference] =
        forward_op().call(output, x0, table, index, row, noise, draws, ids, seed, first_sample, step, kept);
    ctx->set_materialize_grads(false);  // no zeros in the shape of the difference
    ctx->mark_non_differentiable({difference});
    ctx->save_for_backward({difference, loss, table, index.value_or(Tensor())});
    auto& data = ctx->saved_data;
    data["row"] = row, data["kept"] = kept.has_value(), data["index"] = index.has_value();
    data["types"] = std::vector<int64_t>{int64_t(output.scalar_type()), int64_t(x0.scalar_type()),
                                         noise ? int64_t(noise->scalar_type()) : -1};
    return {loss, difference};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list found(12);
    if (!grads[0].defined()) return found;
    auto& data = ctx->saved_data;
    TORCH_CHECK(data["kept"].toBool(),
                "diffusion_loss: expected the dtype of what is kept for a call that is differentiated, got None");
    const auto saved = ctx->get_saved_variables();
    const auto types = data["types"].toIntVector();
    const bool indexed = data["index"].toBool();
    // edges exist for the tensors that were given
    const auto wanted = [&](size_t i, size_t edge) {
      return types[i] >= 0 && ctx->needs_input_grad(edge) ? OptionalType(at::ScalarType(types[i])) : std::nullopt;
    };
    const OptionalType of_output = wanted(0, 0), of_x0 = wanted(1, 1), of_noise = wanted(2, 3 + indexed);
    auto [output, x0, noise] =
        backward_op().call(grads[0], saved[0], saved[1], saved[2], indexed ? OptionalTensor(saved[3]) : std::nullopt,
                           data["row"].toInt(), of_output, of_x0, of_noise);
    if (of_output) found[0] = output;
    if (of_x0) found[1] = x0;
    if (of_noise) found[5] = noise;
    return found;
  }
};

bool wants_grad(const Tensor& t) { return t.requires_grad(); }

tuple<Tensor, Tensor> loss_autograd(c10::DispatchKeySet keys, const Tensor& output, const Tensor& x0,
                                    const Tensor& table, const OptionalTensor& index, int64_t row,
                                    const OptionalTensor& noise, bool draws, const OptionalTensor& ids, Seed seed,
                                    int64_t first_sample, int64_t step, OptionalType kept) {
  if (!at::GradMode::is_enabled() || !(wants_grad(output) || wants_grad(x0) || (noise && wants_grad(*noise)))) {
    return forward_op().redispatch(keys & c10::after_ADInplaceOrView_keyset, output, x0, table, index, row, noise,
                                   draws, ids, seed, first_sample, step, kept);
  }
  auto outputs = LossFunction::apply(output, x0, table, index, row, noise, draws, ids, seed, first_sample, step, kept);
  return {outputs[0], outputs[1]};
}

tuple<Tensor, Tensor, Tensor> loss_backward_autograd(const Tensor& grad, const Tensor& difference, const Tensor& loss,
                                                     const Tensor& table, const OptionalTensor& index, int64_t row,
                                                     OptionalType output, OptionalType x0, OptionalType noise) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      !at::GradMode::is_enabled() || !(wants_grad(grad) || wants_grad(difference) || wants_grad(loss)),
      "pygen::diffusion_loss_backward has no derivative: the op it belongs to is differentiable once");
  at::AutoDispatchBelowADInplaceOrView below;
  return backward_op().call(grad, difference, loss, table, index, row, output, x0, noise);
}

TORCH_LIBRARY_IMPL(pygen, CPU, m) {
  m.impl("diffusion_loss", &loss);
  m.impl("diffusion_loss_backward", &loss_backward);
}
TORCH_LIBRARY_IMPL(pygen, AutogradCPU, m) {
  m.impl("diffusion_loss", &loss_autograd);
  m.impl("diffusion_loss_backward", &loss_backward_autograd);
}

}  // namespace
}  // namespace pygen
