// Inverses of autoregressive transforms on the CPU: what is admitted, the order of the sweep, threads.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <string_view>
#include <tuple>
#include <vector>

#include "glue.h"
#include "made_inverse_glue.h"
#include "table.h"

namespace pygen {
namespace {

using at::Tensor;
using at::TensorList;

constexpr int64_t kPacked = 16384;  // weights that are worth a thread

struct Call : MadeCall {
  Tensor packed;
  int64_t blocks;

  Call(const Tensor& y, TensorList weights, TensorList biases, TensorList degrees, const MadeOptions& o,
       std::string_view own)
      : MadeCall(y, weights, biases, degrees, o, own, 1), packed(empty({plan.packed_size}, type)) {
    args.packed = packed.mutable_data_ptr();
    share();
  }

  size_t by_type() const { return type == at::kDouble; }

  void pack() const {
    const auto& kernel = kernels<MadeKernels>().pack[by_type()];
    const int64_t tasks = (plan.hidden + 1) * plan.steps;
    const int64_t grain = std::max<int64_t>(1, tasks * kPacked / std::max<int64_t>(1, plan.packed_size));
    at::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  }

  void run(void (*kernel)(const MadeArgs&, int64_t, int64_t)) const {
    pack();
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  }

 private:
  // Vectors side by side, as many as leave every thread some, and few of them unused.
  void share() {
    const auto& k = kernels<MadeKernels>();
    const int64_t threads = at::get_num_threads(), lanes = k.lanes[by_type()];
    int64_t least = 0;
    for (int64_t vectors = k.vectors; vectors >= 1; vectors /= 2) {
      const int64_t n = (args.batch + vectors * lanes - 1) / (vectors * lanes);
      const int64_t time = (n + threads - 1) / threads * (vectors + 1);  // a vector more costs less than a block more
      if (least && time >= least) continue;
      least = time, blocks = n, args.vectors = vectors;
    }
  }
};

// --- the ops ---------------------------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> made_inverse(const Tensor& y, TensorList weights, TensorList biases, TensorList degrees,
                                        std::string_view options, std::string_view own) {
  const MadeOptions o = parse_options<MadeOptions>(options);
  if (!y.is_cpu() || !admits(y, weights, biases, degrees, o, own) || !within_bounds(y, o, own)) {
    return refuse("pygen::made_inverse", &made_inverse, y, weights, biases, degrees, options, own);
  }
  Call call(y, weights, biases, degrees, o, own);
  Tensor x = empty(y.sizes(), call.type), logabsdet = empty({y.size(0)}, call.type);
  if (y.size(0)) {
    call.args.x = x.mutable_data_ptr(), call.args.logabsdet = logabsdet.mutable_data_ptr();
    call.run(kernels<MadeKernels>().forward[call.by_type()]);
  }
  return {x.to(y.scalar_type()), logabsdet};
}

std::tuple<Tensor, Tensor> made_inverse_backward(const Tensor& grad_x, const Tensor& grad_logabsdet, const Tensor& x,
                                                 const Tensor& y, TensorList weights, TensorList biases,
                                                 TensorList degrees, std::string_view options, std::string_view own) {
  const MadeOptions o = parse_options<MadeOptions>(options);
  if (!y.is_cpu() || !admits(y, weights, biases, degrees, o, own) || !admits_backward(grad_x, grad_logabsdet, x, y)) {
    return refuse("pygen::made_inverse_backward", &made_inverse_backward, grad_x, grad_logabsdet, x, y, weights, biases,
                  degrees, options, own);
  }
  Call call(y, weights, biases, degrees, o, own);
  Tensor grad_y = empty(y.sizes(), call.type), total = empty(y.sizes(), call.type);
  if (y.size(0)) {
    const auto dense = [&](const Tensor& t) { return t.to(call.type).contiguous(); };
    const Tensor found = dense(x), g_x = dense(grad_x), g_l = dense(grad_logabsdet);
    call.args.found = found.const_data_ptr(), call.args.grad_x = g_x.const_data_ptr();
    call.args.grad_logabsdet = g_l.const_data_ptr(), call.args.grad_y = grad_y.mutable_data_ptr();
    call.args.grad_total = total.mutable_data_ptr();
    call.run(kernels<MadeKernels>().backward[call.by_type()]);
  }
  return {grad_y.to(y.scalar_type()), total};
}

TORCH_LIBRARY_IMPL(pygen, CPU, m) {
  m.impl("made_inverse", &made_inverse);
  m.impl("made_inverse_backward", &made_inverse_backward);
}
TORCH_LIBRARY_IMPL(pygen, AutogradCPU, m) {
  m.impl("made_inverse", torch::CppFunction::makeFromBoxedFunction<&autograd_if_recorded>());
}

}  // namespace
}  // namespace pygen
