// Rational-quadratic splines on the CPU: what is admitted, where parameters lie, threads.
#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <atomic>
#include <string>
#include <string_view>
#include <tuple>

#include "glue.h"
#include "rational_quadratic_spline_options.h"
#include "table.h"

namespace pygen {
namespace {

using at::Tensor;
using std::tuple;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kParallel = 512;  // elements that are worth a thread: some 5 microseconds

using Options = SplineOptions;

// --- parameters ------------------------------------------------------------------------------------------------------

// The three kinds: tensors of their own, or views of one.
struct Parameters {
  Tensor kinds[kSplineKinds];
  int64_t bins = 0;

  Parameters(const Tensor& widths, const OptionalTensor& heights, const OptionalTensor& derivatives, bool knots) {
    if (heights && derivatives) {
      kinds[0] = widths, kinds[1] = *heights, kinds[2] = *derivatives;
    } else if (!heights && !derivatives && widths.dim() > 0) {
      const SplineParts parts(widths.size(-1), knots);
      if (!parts.bins) return;
      const int64_t starts[] = {0, parts.each, 2 * parts.each, widths.size(-1)};
      for (int i = 0; i < kSplineKinds; ++i) kinds[i] = widths.slice(-1, starts[i], starts[i + 1]);
    } else {
      return;
    }
    bins = kinds[0].dim() ? kinds[0].size(-1) - knots : 0;
  }
};

// The conditions of `_check` in pygen/ops/rational_quadratic_spline.py, without the messages.
bool admits(const Tensor& x, const Parameters& p, const Options& o) {
  if (!o.ok || !x.is_cpu() || p.bins < kMinBins) return false;
  if (!paired_types(x.scalar_type(), p.kinds[0].scalar_type())) return false;
  for (const Tensor& t : p.kinds) {
    if (!t.is_cpu() || t.scalar_type() != p.kinds[0].scalar_type() || t.dim() != x.dim() + 1 ||
        t.sizes().slice(0, size_t(x.dim())) != x.sizes()) {
      return false;
    }
  }
  return p.kinds[1].size(-1) == p.kinds[0].size(-1) && o.admits(p.bins, p.kinds[2].size(-1));
}

// A tensor's dimensions in the order in which elements are counted; its last one, of the parameters, stays.
Tensor in_order(const Tensor& t, at::MemoryFormat format) {
  return format == at::MemoryFormat::ChannelsLast ? t.permute({0, 2, 3, 1, 4}) : t;
}

// Elements that lie at one stride from each other; where there is more than one such run, the stride between runs.
struct Run {
  int64_t length = 1, stride = 1, outer = 0;
  bool more = false, ok = true;

  explicit Run(const Tensor& t) {
    int64_t expected = 0;
    for (int64_t d = t.dim() - 2; d >= 0; --d) {
      if (t.size(d) == 1) continue;
      if (length == 1) {
        stride = t.stride(d), length = t.size(d), expected = stride * length;
      } else if (!more && t.stride(d) == expected) {
        length *= t.size(d), expected *= t.size(d);
      } else if (!more) {
        more = true, outer = t.stride(d), expected = outer * t.size(d);
      } else {
        ok &= t.stride(d) == expected;
        expected *= t.size(d);
      }
    }
    ok &= t.stride(-1) == 1 || stride == 1;
  }
};

// Tensors as the kernels take them: of runs of one length, copies where they are not.
struct Laid {
  Tensor tensors[kSplineKinds];
  int64_t run;

  Laid(const Parameters& p, at::MemoryFormat format, int64_t elements) : run(elements) {
    for (int i = 0; i < kSplineKinds; ++i) tensors[i] = in_order(p.kinds[i], format);
    for (const Tensor& t : tensors) {
      const Run own(t);
      if (own.ok) run = std::min(run, own.length);
    }
    for (Tensor& t : tensors) {
      if (!fits(Run(t))) t = t.contiguous();
    }
  }

  // whether its runs can be of this length
  bool fits(const Run& r) const { return r.ok && (r.length == run || (!r.more && r.length % run == 0)); }

  SplinePlaces places(int i) const { return places(tensors[i]); }
  SplinePlaces places(const Tensor& t) const {
    const Run r(t);
    return {t.data_ptr(), t.size(-1), r.more ? r.outer : run * r.stride, r.stride, t.stride(-1)};
  }
};

SplineArgs describe(const Tensor& x, const Parameters& p, const Laid& laid, const Options& o) {
  SplineArgs a{};
  o.describe(a, p.bins, p.kinds[2].size(-1), stored_as(x.scalar_type()));
  a.run = laid.run;
  for (int i = 0; i < kSplineKinds; ++i) a.parameters[i] = laid.places(i);
  return a;
}

at::ScalarType wide_type(const Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// --- forward ---------------------------------------------------------------------------------------------------------

tuple<Tensor, Tensor> spline(const Tensor& x, const Tensor& widths, const OptionalTensor& heights,
                             const OptionalTensor& derivatives, std::string_view options) {
  const auto& o = parse_options<Options>(options);
  const auto refused = [&] {
    return refuse("pygen::rational_quadratic_spline", &spline, x, widths, heights, derivatives, options);
  };
  const Parameters p(widths, heights, derivatives, o.knots());
  if (!admits(x, p, o)) return refused();
  const auto format = layout(x);
  Tensor y = empty(x.sizes(), x.scalar_type(), format), logabsdet = empty(x.sizes(), wide_type(x), format);
  if (!x.numel()) return {y, logabsdet};
  const Tensor in = x.contiguous(format);
  const Laid laid(p, format, x.numel());
  SplineArgs a = describe(x, p, laid, o);
  a.x = in.const_data_ptr();
  a.y = y.mutable_data_ptr(), a.logabsdet = logabsdet.mutable_data_ptr();
  const auto kernel = kernels<SplineKernels>().forward[int(*paired_types(x.scalar_type(), widths.scalar_type()))];
  std::atomic<bool> fine{true};
  at::parallel_for(0, x.numel(), kParallel, [&](int64_t begin, int64_t end) {
    if (!kernel(a, begin, end)) fine = false;
  });
  return fine ? tuple(y, logabsdet) : refused();
}

// --- backward --------------------------------------------------------------------------------------------------------

// One number for all elements, as the gradient of a sum is, or dense.
Tensor upstream(const Tensor& grad, at::MemoryFormat format, int64_t& step) {
  step = std::any_of(grad.strides().begin(), grad.strides().end(), [](int64_t n) { return n != 0; });
  return step ? grad.contiguous(format) : grad;
}

tuple<Tensor, Tensor, Tensor, Tensor> spline_backward(const Tensor& grad_y, const Tensor& grad_logabsdet,
                                                      const Tensor& x, const Tensor& widths,
                                                      const OptionalTensor& heights, const OptionalTensor& derivatives,
                                                      std::string_view options, bool need_x, bool need_widths,
                                                      bool need_heights, bool need_derivatives) {
  const auto& o = parse_options<Options>(options);
  const Parameters p(widths, heights, derivatives, o.knots());
  if (!admits(x, p, o) || !grad_y.is_cpu() || !grad_logabsdet.is_cpu() || grad_y.sizes() != x.sizes() ||
      grad_logabsdet.sizes() != x.sizes() || grad_y.scalar_type() != x.scalar_type() ||
      grad_logabsdet.scalar_type() != wide_type(x)) {
    return refuse("pygen::rational_quadratic_spline_backward", &spline_backward, grad_y, grad_logabsdet, x, widths,
                  heights, derivatives, options, need_x, need_widths, need_heights, need_derivatives);
  }
  const auto format = layout(x);
  Tensor grad_x = need_x ? empty(x.sizes(), x.scalar_type(), format) : empty({0}, x.scalar_type());
  const bool packed = !heights,
             needs[] = {need_widths, packed ? need_widths : need_heights, packed ? need_widths : need_derivatives};
  const auto output = [&](const OptionalTensor& t, bool needed) {
    return needed && t ? at::empty_like(*t) : empty({0}, widths.scalar_type());
  };
  Tensor grads[] = {output(widths, need_widths), output(heights, need_heights), output(derivatives, need_derivatives)};
  if (!x.numel() || !(need_x || need_widths || need_heights || need_derivatives)) {
    return {grad_x, grads[0], grads[1], grads[2]};
  }
  const Tensor in = x.contiguous(format);
  const Laid laid(p, format, x.numel());
  SplineArgs a = describe(x, p, laid, o);
  const Tensor g_y = upstream(grad_y, format, a.grad_y_step);
  const Tensor g_l = upstream(grad_logabsdet, format, a.grad_logabsdet_step);
  a.x = in.const_data_ptr(), a.grad_y = g_y.const_data_ptr(), a.grad_logabsdet = g_l.const_data_ptr();
  a.grad_x = need_x ? grad_x.mutable_data_ptr() : nullptr;
  Tensor outputs[kSplineKinds], written[kSplineKinds];
  if (packed && need_widths) {
    const Parameters views(grads[0], std::nullopt, std::nullopt, o.knots());
    std::copy_n(views.kinds, kSplineKinds, outputs);
  } else {
    std::copy_n(grads, kSplineKinds, outputs);
  }
  for (int i = 0; i < kSplineKinds; ++i) {
    if (!needs[i]) continue;
    written[i] = in_order(outputs[i], format);
    if (!laid.fits(Run(written[i]))) written[i] = empty(written[i].sizes(), written[i].scalar_type());
    a.gradients[i] = laid.places(written[i]);
  }
  const auto kernel = kernels<SplineKernels>().backward[int(*paired_types(x.scalar_type(), widths.scalar_type()))];
  at::parallel_for(0, x.numel(), kParallel, [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
  for (int i = 0; i < kSplineKinds; ++i) {
    if (needs[i] && written[i].data_ptr() != outputs[i].data_ptr()) in_order(outputs[i], format).copy_(written[i]);
  }
  return {grad_x, grads[0], grads[1], grads[2]};
}

// --- autograd: the C++ twin of register_autograd in pygen/ops/rational_quadratic_spline.py, cheaper a call -----------

auto forward_op() {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("pygen::rational_quadratic_spline", "").typed<decltype(spline)>();
  return op;
}

auto backward_op() {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("pygen::rational_quadratic_spline_backward", "")
                             .typed<decltype(spline_backward)>();
  return op;
}

struct SplineFunction : torch::autograd::Function<SplineFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& widths,
                               const OptionalTensor& heights, const OptionalTensor& derivatives,
                               std::string_view options) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [y, logabsdet] = forward_op().call(x, widths, heights, derivatives, options);
    ctx->save_for_backward({x, widths, heights.value_or(Tensor()), derivatives.value_or(Tensor())});
    ctx->saved_data["options"] = std::string(options);
    return {y, logabsdet};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const std::string_view options = ctx->saved_data["options"].toStringView();
    const auto optional = [](const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; };
    const bool all = saved[2].defined();  // edges exist for the tensors that were given
    const bool needs[] = {ctx->needs_input_grad(0), ctx->needs_input_grad(1), all && ctx->needs_input_grad(2),
                          all && ctx->needs_input_grad(3)};
    auto [x, widths, heights, derivatives] =
        backward_op().call(grads[0], grads[1], saved[0], saved[1], optional(saved[2]), optional(saved[3]), options,
                           needs[0], needs[1], needs[2], needs[3]);
    return {needs[0] ? x : Tensor(), needs[1] ? widths : Tensor(), needs[2] ? heights : Tensor(),
            needs[3] ? derivatives : Tensor(), Tensor()};
  }
};

bool wants_grad(const Tensor& t) { return t.defined() && t.requires_grad(); }
bool wants_grad(const OptionalTensor& t) { return t && wants_grad(*t); }

tuple<Tensor, Tensor> spline_autograd(c10::DispatchKeySet keys, const Tensor& x, const Tensor& widths,
                                      const OptionalTensor& heights, const OptionalTensor& derivatives,
                                      std::string_view options) {
  const bool some = wants_grad(x) || wants_grad(widths) || wants_grad(heights) || wants_grad(derivatives);
  if (!at::GradMode::is_enabled() || !some || heights.has_value() != derivatives.has_value()) {
    return forward_op().redispatch(keys & c10::after_ADInplaceOrView_keyset, x, widths, heights, derivatives, options);
  }
  auto outputs = SplineFunction::apply(x, widths, heights, derivatives, options);
  return {outputs[0], outputs[1]};
}

tuple<Tensor, Tensor, Tensor, Tensor> spline_backward_autograd(const Tensor& grad_y, const Tensor& grad_logabsdet,
                                                               const Tensor& x, const Tensor& widths,
                                                               const OptionalTensor& heights,
                                                               const OptionalTensor& derivatives,
                                                               std::string_view options, bool need_x, bool need_widths,
                                                               bool need_heights, bool need_derivatives) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      !at::GradMode::is_enabled() || !(wants_grad(grad_y) || wants_grad(grad_logabsdet) || wants_grad(x) ||
                                       wants_grad(widths) || wants_grad(heights) || wants_grad(derivatives)),
      "pygen::rational_quadratic_spline_backward has no derivative: the op it belongs to is differentiable once");
  at::AutoDispatchBelowADInplaceOrView below;
  return backward_op().call(grad_y, grad_logabsdet, x, widths, heights, derivatives, options, need_x, need_widths,
                            need_heights, need_derivatives);
}

TORCH_LIBRARY_IMPL(pygen, CPU, m) {
  m.impl("rational_quadratic_spline", &spline);
  m.impl("rational_quadratic_spline_backward", &spline_backward);
}
TORCH_LIBRARY_IMPL(pygen, AutogradCPU, m) {
  m.impl("rational_quadratic_spline", &spline_autograd);
  m.impl("rational_quadratic_spline_backward", &spline_backward_autograd);
}

}  // namespace
}  // namespace pygen
