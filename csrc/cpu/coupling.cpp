// Affine coupling on the CPU: what is admitted, how tensors are cut into rows and tasks, threads, autograd.
#include <ATen/Parallel.h>
#include <c10/util/SmallVector.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <string_view>
#include <vector>

#include "coupling_options.h"
#include "glue.h"
#include "table.h"

namespace pygen {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Options = CouplingOptions;

std::tuple<Tensor, Tensor> affine_coupling(const Tensor& x, const Tensor& params, const OptionalTensor& gain,
                                           const OptionalTensor& index, const OptionalTensor& logdet,
                                           std::string_view options);
std::tuple<Tensor, Tensor, Tensor> affine_coupling_backward(const Tensor& grad_y, const Tensor& grad_logdet,
                                                            const OptionalTensor& saved, const Tensor& params,
                                                            const OptionalTensor& gain, const OptionalTensor& index,
                                                            std::string_view options, bool need_x, bool need_params,
                                                            bool need_gain);

const auto& forward_op() {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("pygen::affine_coupling", "").typed<decltype(affine_coupling)>();
  return op;
}
const auto& backward_op() {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("pygen::affine_coupling_backward", "")
                             .typed<decltype(affine_coupling_backward)>();
  return op;
}

// --- what is admitted ------------------------------------------------------------------------------------------------

std::optional<PairedTypes> types(const Tensor& x, const Tensor& params) {
  return paired_types(x.scalar_type(), params.scalar_type());
}

at::ScalarType accumulate_type(const Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

int64_t changed(const Tensor& params, const Options& o) { return params.size(1) / (o.additive() ? 1 : 2); }

bool distinct_channels(const Tensor& index, int64_t channels) {
  const Tensor dense = index.contiguous();
  const auto* p = dense.const_data_ptr<int64_t>();
  c10::SmallVector<bool, 256> seen(size_t(channels), false);
  for (int64_t i = 0; i < dense.numel(); ++i) {
    if (p[i] < 0 || p[i] >= channels || seen[size_t(p[i])]) return false;
    seen[size_t(p[i])] = true;
  }
  return true;
}

// The conditions of `check` in pygen/ops/coupling.py, without the messages; false hands over to it.
bool admits(const Tensor& x, const Tensor& params, const OptionalTensor& gain, const OptionalTensor& index,
            const OptionalTensor& logdet, const Options& o) {
  if (!o.ok || x.dim() < 2 || params.dim() != x.dim() || !types(x, params)) return false;
  for (int64_t d = 0; d < x.dim(); ++d) {
    if (d != 1 && x.size(d) != params.size(d)) return false;
  }
  const int64_t channels = x.size(1), n = changed(params, o);
  if (!x.is_cpu() || !params.is_cpu() || (!o.additive() && params.size(1) % 2)) return false;
  if ((o.part == kIndex) != index.has_value()) return false;
  switch (o.part) {
    case kRangePart:
      if (o.start < 0 || o.start > o.stop || o.stop > channels || n != o.stop - o.start) return false;
      break;
    case kFirst:
    case kSecond:
      if (channels % 2 || n != channels / 2) return false;
      break;
    case kIndex:
      if (!index->is_cpu() || index->dim() != 1 || index->scalar_type() != at::kLong || index->size(0) != n ||
          !distinct_channels(*index, channels))
        return false;
      break;
    default:
      if (n != channels) return false;
  }
  const auto accumulate = accumulate_type(x);
  if (gain && (!gain->is_cpu() || gain->scalar_type() != accumulate || (gain->numel() != 1 && gain->numel() != n)))
    return false;
  return !logdet || (logdet->is_cpu() && logdet->scalar_type() == accumulate && logdet->dim() == 1 &&
                     logdet->size(0) == x.size(0));
}

// --- rows and tasks --------------------------------------------------------------------------------------------------

constexpr int64_t kChunk = 8192;      // elements of x that one task holds, about
constexpr int64_t kGroups = 32;       // of tasks, each with sums of its own for the gain's gradient
constexpr int64_t kParallel = 16384;  // elements below which a second thread costs more than it brings

// Kernel arguments with what they point to.
struct Plan {
  CouplingArgs args{};
  int64_t batch = 0;
  Tensor index, gain;
  c10::SmallVector<int64_t, 64> channel;
  c10::SmallVector<uint8_t, 64> parity;
  std::vector<float> odd;

  Plan(const Tensor& x, const Tensor& params, const OptionalTensor& gain_, const OptionalTensor& index_,
       at::MemoryFormat format, const Options& o) {
    const int64_t channels = x.size(1), n = changed(params, o), param_channels = params.size(1);
    const bool last = format == at::MemoryFormat::ChannelsLast;
    const auto spatial = x.sizes().slice(2);
    const int64_t area = c10::multiply_integers(spatial);
    batch = x.size(0);
    auto& a = args;
    if (x.numel() == 0) return;  // no task
    o.describe(a);
    if (gain_ && !o.additive()) {
      gain = gain_->contiguous();
      a.gain_values = gain.const_data_ptr();
      a.gain_count = gain.numel();
    }

    // params as [.., s and t, ..] along the channels
    a.params_sample = param_channels * area;
    a.params_row = param_channels;
    a.params_step = o.interleaved && !o.additive() ? 2 : 1;
    const int64_t second = o.additive() ? 0 : o.interleaved ? 1 : n;
    a.s_start = o.shift_leads ? second : 0;
    a.t_start = o.shift_leads ? 0 : second;
    a.start = o.part == kSecond ? channels - n : o.part == kRangePart ? o.start : 0;
    a.step = 1;
    a.count = n;
    a.gain_step = 1;

    const bool pixels = last || area == 1;  // rows are pixels: their channels lie together
    a.rows = pixels ? area : channels;
    a.row = pixels ? channels : area;
    a.pattern = pixels ? Pattern::kRange : Pattern::kChannels;
    if (o.checkerboard()) {
      checker(spatial, channels, last, o.part == kOdd);
    } else if (o.part == kIndex) {
      index = index_->contiguous();
      const auto* cols = index.const_data_ptr<int64_t>();
      if (pixels) {
        a.pattern = Pattern::kGather;
        a.cols = cols;
        a.start = 0;
      } else {
        channel.resize(size_t(channels), -1);
        for (int64_t k = 0; k < n; ++k) channel[size_t(cols[k])] = k;
      }
    } else if (!pixels && a.params_step == 1 && a.gain_count <= 1) {  // all that changes is one run
      a.pattern = Pattern::kRange;
      a.rows = 1;
      a.row = channels * area;
      for (int64_t* v : {&a.params_row, &a.start, &a.count, &a.s_start, &a.t_start}) *v *= area;
    } else if (!pixels) {
      channel.resize(size_t(channels), -1);
      for (int64_t k = 0; k < n; ++k) channel[size_t(a.start + k)] = k;
    }
    a.channel = channel.data();
    a.parity = parity.data();
    a.odd = odd.data();

    const bool divisible = (a.pattern == Pattern::kRange && a.step == 1) || a.pattern == Pattern::kChannels ||
                           a.pattern == Pattern::kChecker;
    a.pieces = divisible && a.row >= 2 * kChunk ? (a.row + kChunk - 1) / kChunk : 1;
    a.rows_per_chunk =
        a.pieces > 1 ? 1 : std::clamp<int64_t>(kChunk / std::max<int64_t>(a.row, 1), 1, std::max<int64_t>(a.rows, 1));
    a.chunks = a.pieces > 1 ? a.rows * a.pieces : (a.rows + a.rows_per_chunk - 1) / a.rows_per_chunk;
  }

  int64_t tasks() const { return batch * args.chunks; }

  template <class F>
  void run(const F& kernel) const {
    const int64_t per_task = std::max<int64_t>(1, batch * args.rows * args.row / std::max<int64_t>(tasks(), 1));
    at::parallel_for(0, tasks(), std::max<int64_t>(1, kParallel / per_task),
                     [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  }

 private:
  // Every second element by the parity of the sum of its spatial coordinates (of its channel where there are none).
  void checker(at::IntArrayRef spatial, int64_t channels, bool last, bool odd_part) {
    auto& a = args;
    if (spatial.empty()) {
      a.pattern = Pattern::kRange;
      a.start = odd_part;
      a.step = 2;
      a.count = (channels - odd_part + 1) / 2;
      a.s_start += odd_part * a.params_step;
      a.t_start += odd_part * a.params_step;
      a.params_step *= 2;
      a.gain_start = odd_part;
      a.gain_step = 2;
      return;
    }
    size_t leading = spatial.size() - 1;
    int64_t width = spatial[leading];
    // Rows of odd length follow each other without a break in the pattern: together they are one row.
    while (!last && width % 2 != 0 && leading > 0) width *= spatial[--leading];
    const int64_t image_rows = c10::multiply_integers(spatial.slice(0, leading));
    parity.resize(size_t(image_rows));
    for (int64_t r = 0; r < image_rows; ++r) {
      int64_t sum = odd_part, rest = r;
      for (size_t d = leading; d-- > 0;) {
        sum += rest % spatial[d];
        rest /= spatial[d];
      }
      parity[size_t(r)] = uint8_t(sum & 1);
    }
    if (last) {
      a.pattern = Pattern::kCheckerPixels;
      a.image_row = width;
      return;
    }
    a.pattern = Pattern::kChecker;
    a.rows = channels;
    a.row = image_rows * width;
    odd.resize(size_t(image_rows * width + 1) / 2);
    for (size_t k = 0; k < odd.size(); ++k) odd[k] = parity[2 * k / size_t(width)];
  }
};

// --- forward ---------------------------------------------------------------------------------------------------------

template <class T>
void write_logdet(Tensor& out, const OptionalTensor& running, const Plan& plan, const double* parts) {
  auto* p = out.mutable_data_ptr<T>();
  for (int64_t b = 0; b < plan.batch; ++b) {
    double sum = 0;
    for (int64_t k = 0; k < plan.args.chunks; ++k) sum += parts[b * plan.args.chunks + k];
    p[b] = T(running ? double(running->const_data_ptr<T>()[b * running->stride(0)]) + sum : sum);
  }
}

std::tuple<Tensor, Tensor> affine_coupling(const Tensor& x, const Tensor& params, const OptionalTensor& gain,
                                           const OptionalTensor& index, const OptionalTensor& logdet,
                                           std::string_view options) {
  const auto& o = parse_options<Options>(options);
  if (!admits(x, params, gain, index, logdet, o)) {
    return forward_op().redispatch(kDefaultKernel, x, params, gain, index, logdet, options);
  }
  const auto format = layout(x);
  const Tensor in = x.contiguous(format), p = params.contiguous(format);
  Tensor y = empty(x.sizes(), x.scalar_type(), format);
  Tensor total = empty({x.size(0)}, accumulate_type(x));
  Plan plan(in, p, gain, index, format, o);
  c10::SmallVector<double, 128> parts(size_t(plan.tasks()), 0.0);
  auto& a = plan.args;
  a.x = in.const_data_ptr();
  a.params = p.const_data_ptr();
  a.y = y.mutable_data_ptr();
  a.log_scale = parts.data();
  a.stream = int64_t(2 * in.nbytes() + p.nbytes()) > last_level_cache();
  if (in.numel()) plan.run(kernels<CouplingKernels>().forward[int(*types(in, p))]);
  if (total.scalar_type() == at::kDouble) {
    write_logdet<double>(total, logdet, plan, parts.data());
  } else {
    write_logdet<float>(total, logdet, plan, parts.data());
  }
  return {y, total};
}

// --- backward --------------------------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor, Tensor> affine_coupling_backward(const Tensor& grad_y, const Tensor& grad_logdet,
                                                            const OptionalTensor& saved, const Tensor& params,
                                                            const OptionalTensor& gain, const OptionalTensor& index,
                                                            std::string_view options, bool need_x, bool need_params,
                                                            bool need_gain) {
  const auto& o = parse_options<Options>(options);
  const bool has_saved = saved.has_value() && saved->defined();
  const Tensor& like = has_saved ? *saved : grad_y;
  if (!admits(like, params, gain, index, grad_logdet, o) || grad_y.sizes() != like.sizes() ||
      grad_y.scalar_type() != like.scalar_type() || !grad_y.is_cpu() || has_saved == o.additive()) {
    return backward_op().redispatch(kDefaultKernel, grad_y, grad_logdet, saved, params, gain, index, options, need_x,
                                    need_params, need_gain);
  }
  const auto format = layout(like);
  const Tensor g = grad_y.contiguous(format), z = has_saved ? saved->contiguous(format) : Tensor();
  const Tensor p = params.contiguous(format);
  need_gain = need_gain && gain.has_value() && !o.additive();

  const auto output = [&](const Tensor& t, bool needed) {
    return needed ? empty(t.sizes(), t.scalar_type(), format) : empty({0}, t.scalar_type());
  };
  Tensor grad_x = output(g, need_x), grad_params = output(p, need_params);
  Tensor grad_gain = empty(need_gain ? gain->sizes() : at::IntArrayRef{0}, accumulate_type(g));

  Plan plan(g, p, gain, index, format, o);
  auto& a = plan.args;
  c10::SmallVector<double, 64> upstream(size_t(plan.batch));
  for (int64_t b = 0; b < plan.batch; ++b) {
    upstream[size_t(b)] = grad_logdet.scalar_type() == at::kDouble
                              ? grad_logdet.const_data_ptr<double>()[b * grad_logdet.stride(0)]
                              : double(grad_logdet.const_data_ptr<float>()[b * grad_logdet.stride(0)]);
  }
  a.grad_y = g.const_data_ptr();
  a.z = z.defined() ? z.const_data_ptr() : nullptr;
  a.params = p.const_data_ptr();
  a.grad_logdet = upstream.data();
  a.grad_x = need_x ? grad_x.mutable_data_ptr() : nullptr;
  a.grad_params = need_params ? grad_params.mutable_data_ptr() : nullptr;
  a.stream = int64_t(3 * g.nbytes() + 2 * p.nbytes()) > last_level_cache();
  const auto kernel = kernels<CouplingKernels>().backward[int(*types(g, p))];
  if (!need_gain || !g.numel()) {
    if (g.numel()) plan.run(kernel);
    grad_gain.zero_();  // of no element, or of an empty sum
    return {grad_x, grad_params, grad_gain};
  }
  // The gain's gradient: groups of tasks, cut by shape alone, add up their own; then the groups' sums, in order.
  const int64_t groups = std::min(plan.tasks(), kGroups), n = a.gain_count;
  std::vector<double> sums(size_t((groups + 1) * n), 0.0);
  at::parallel_for(0, groups, std::max<int64_t>(1, groups * kParallel / g.numel()), [&](int64_t begin, int64_t end) {
    for (; begin < end; ++begin) {
      CouplingArgs part = a;
      part.grad_gain = sums.data() + begin * n;
      kernel(part, plan.tasks() * begin / groups, plan.tasks() * (begin + 1) / groups);
    }
  });
  double* total = sums.data() + groups * n;
  for (int64_t k = 0; k < groups; ++k) {
    for (int64_t i = 0; i < n; ++i) total[i] += sums[size_t(k * n + i)];
  }
  if (grad_gain.scalar_type() == at::kDouble) {
    std::copy_n(total, n, grad_gain.mutable_data_ptr<double>());
  } else {
    std::copy_n(total, n, grad_gain.mutable_data_ptr<float>());
  }
  return {grad_x, grad_params, grad_gain};
}

// --- autograd: the C++ twin of register_autograd in pygen/ops/coupling.py, microseconds cheaper a call ---------------

struct CouplingFunction : torch::autograd::Function<CouplingFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& params, const OptionalTensor& gain,
                               const OptionalTensor& index, const OptionalTensor& logdet, std::string_view options) {
    const Options o = parse_options<Options>(options);  // a copy: what is called below may parse others
    at::AutoDispatchBelowADInplaceOrView below;
    auto [y, total] = forward_op().call(x, params, gain, index, logdet, options);
    Tensor saved;
    if (!o.additive()) saved = o.memory_efficient || o.multiply_last() ? y : x;
    ctx->save_for_backward({saved, params, gain.value_or(Tensor()), index.value_or(Tensor())});
    ctx->saved_data["options"] = std::string(options);
    if (logdet) ctx->saved_data["logdet"] = true;
    return {y, total};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const std::string_view options = ctx->saved_data["options"].toStringView();
    const auto optional = [](const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; };
    const OptionalTensor gain = optional(saved[2]), index = optional(saved[3]);
    // edges exist for the tensors that were given
    const bool need_x = ctx->needs_input_grad(0), need_params = ctx->needs_input_grad(1);
    const bool need_gain = gain && ctx->needs_input_grad(2);
    const bool need_logdet =
        ctx->saved_data.count("logdet") && ctx->needs_input_grad(2 + gain.has_value() + index.has_value());
    auto [x, params, g] = backward_op().call(grads[0], grads[1], optional(saved[0]), saved[1], gain, index, options,
                                             need_x, need_params, need_gain);
    return {need_x ? x : Tensor(),
            need_params ? params : Tensor(),
            need_gain ? g : Tensor(),
            Tensor(),
            need_logdet ? grads[1] : Tensor(),
            Tensor()};
  }
};

bool wants_grad(const Tensor& t) { return t.defined() && t.requires_grad(); }
bool wants_grad(const OptionalTensor& t) { return t && wants_grad(*t); }

std::tuple<Tensor, Tensor> affine_coupling_autograd(c10::DispatchKeySet keys, const Tensor& x, const Tensor& params,
                                                    const OptionalTensor& gain, const OptionalTensor& index,
                                                    const OptionalTensor& logdet, std::string_view options) {
  if (!at::GradMode::is_enabled() || !(wants_grad(x) || wants_grad(params) || wants_grad(gain) || wants_grad(logdet))) {
    return forward_op().redispatch(keys & c10::after_ADInplaceOrView_keyset, x, params, gain, index, logdet, options);
  }
  auto outputs = CouplingFunction::apply(x, params, gain, index, logdet, options);
  return {outputs[0], outputs[1]};
}

std::tuple<Tensor, Tensor, Tensor> affine_coupling_backward_autograd(const Tensor& grad_y, const Tensor& grad_logdet,
                                                                     const OptionalTensor& saved, const Tensor& params,
                                                                     const OptionalTensor& gain,
                                                                     const OptionalTensor& index,
                                                                     std::string_view options, bool need_x,
                                                                     bool need_params, bool need_gain) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      !at::GradMode::is_enabled() || !(wants_grad(grad_y) || wants_grad(grad_logdet) || wants_grad(saved) ||
                                       wants_grad(params) || wants_grad(gain)),
      "pygen::affine_coupling_backward has no derivative: the op it belongs to is differentiable once");
  at::AutoDispatchBelowADInplaceOrView below;
  return backward_op().call(grad_y, grad_logdet, saved, params, gain, index, options, need_x, need_params, need_gain);
}

TORCH_LIBRARY_IMPL(pygen, CPU, m) {
  m.impl("affine_coupling", &affine_coupling);
  m.impl("affine_coupling_backward", &affine_coupling_backward);
}
TORCH_LIBRARY_IMPL(pygen, AutogradCPU, m) {
  m.impl("affine_coupling", &affine_coupling_autograd);
  m.impl("affine_coupling_backward", &affine_coupling_backward_autograd);
}

}  // namespace
}  // namespace pygen
