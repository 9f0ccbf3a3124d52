// Inverses of autoregressive transforms on CUDA: what is admitted, and where the kernels have their memory. Of CUDA
// headers, c10/cuda only.
//
// Of what lies on the device nothing is looked at: the host waits for nothing, and a CUDA graph may capture the call.
// So nothing raises for y beyond the bounds of a spline without tails: it is NaN there.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>
#include <string_view>
#include <tuple>

#include "cpu/made_inverse_glue.h"
#include "made_inverse_launch.h"
#include "made_inverse_plan.h"
#include "store.h"

namespace pygen {
namespace {

using at::Tensor;
using at::TensorList;

// Runs a call whose tensors `args` names; false for what has too large numbers.
template <class T>
bool run(const MadeCall& call, bool backward) {
  auto plan = cuda_made::flatten<T>(call.plan, call.args, backward);
  if (!plan) return false;
  const MadeArgs& from = call.args;
  cuda_made::Launch<T>& a = plan->launch;
  a.y = static_cast<const T*>(from.y), a.x = static_cast<T*>(from.x), a.logabsdet = static_cast<T*>(from.logabsdet);
  a.found = static_cast<const T*>(from.found), a.grad_x = static_cast<const T*>(from.grad_x);
  a.grad_logabsdet = static_cast<const T*>(from.grad_logabsdet), a.grad_y = static_cast<T*>(from.grad_y);
  a.grad_total = static_cast<T*>(from.grad_total);

  // What is freed when this returns is used again in the order of the stream alone.
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const cuda_made::Kind kind{from.is_spline, backward};
  int blocks = 0;
  C10_CUDA_CHECK(cuda_made::made_blocks(a, kind, call.y.device().index(), &blocks));
  const auto numbers = call.y.options();
  Tensor net = at::empty({int64_t(plan->memory.size())}, numbers.dtype(at::kByte));
  Tensor packed = at::empty({call.plan.packed_size}, numbers);
  Tensor scratch = at::empty({blocks * a.scratch_rows * cuda_made::kLanes}, numbers);
  plan->place_at(static_cast<const char*>(net.const_data_ptr()));
  a.packed = packed.mutable_data_ptr<T>(), a.scratch = scratch.mutable_data_ptr<T>();
  C10_CUDA_CHECK(store_bytes(plan->memory.data(), int64_t(plan->memory.size()),
                             static_cast<char*>(net.mutable_data_ptr()), stream));
  C10_CUDA_CHECK(cuda_made::made_launch(a, kind, plan->largest, blocks, stream));
  return true;
}

bool run(const MadeCall& call, bool backward) {
  if (call.args.batch == 0) return true;
  return call.type == at::kDouble ? run<double>(call, backward) : run<float>(call, backward);
}

std::tuple<Tensor, Tensor> made_inverse(const Tensor& y, TensorList weights, TensorList biases, TensorList degrees,
                                        std::string_view options, std::string_view own) {
  const MadeOptions o = parse_options<MadeOptions>(options);
  const auto refused = [&] {
    return refuse("pygen::made_inverse", &made_inverse, y, weights, biases, degrees, options, own);
  };
  if (!y.is_cuda() || !admits(y, weights, biases, degrees, o, own)) return refused();
  const c10::cuda::CUDAGuard guard(y.device());
  MadeCall call(y, weights, biases, degrees, o, own, cuda_made::kTileRows);
  const auto type = y.options().dtype(call.type);
  Tensor x = at::empty(y.sizes(), type), logabsdet = at::empty({y.size(0)}, type);
  call.args.x = x.mutable_data_ptr(), call.args.logabsdet = logabsdet.mutable_data_ptr();
  if (!run(call, false)) return refused();
  return {x.to(y.scalar_type()), logabsdet};
}

std::tuple<Tensor, Tensor> made_inverse_backward(const Tensor& grad_x, const Tensor& grad_logabsdet, const Tensor& x,
                                                 const Tensor& y, TensorList weights, TensorList biases,
                                                 TensorList degrees, std::string_view options, std::string_view own) {
  const MadeOptions o = parse_options<MadeOptions>(options);
  const auto refused = [&] {
    return refuse("pygen::made_inverse_backward", &made_inverse_backward, grad_x, grad_logabsdet, x, y, weights, biases,
                  degrees, options, own);
  };
  if (!y.is_cuda() || !admits(y, weights, biases, degrees, o, own) || !admits_backward(grad_x, grad_logabsdet, x, y)) {
    return refused();
  }
  const c10::cuda::CUDAGuard guard(y.device());
  MadeCall call(y, weights, biases, degrees, o, own, cuda_made::kTileRows);
  const auto dense = [&](const Tensor& t) { return t.to(call.type).contiguous(); };
  const Tensor found = dense(x), g_x = dense(grad_x), g_l = dense(grad_logabsdet);
  const auto type = y.options().dtype(call.type);
  Tensor grad_y = at::empty(y.sizes(), type), total = at::empty(y.sizes(), type);
  call.args.found = found.const_data_ptr(), call.args.grad_x = g_x.const_data_ptr();
  call.args.grad_logabsdet = g_l.const_data_ptr(), call.args.grad_y = grad_y.mutable_data_ptr();
  call.args.grad_total = total.mutable_data_ptr();
  if (!run(call, true)) return refused();
  return {grad_y.to(y.scalar_type()), total};
}

TORCH_LIBRARY_IMPL(pygen, CUDA, m) {
  m.impl("made_inverse", &made_inverse);
  m.impl("made_inverse_backward", &made_inverse_backward);
}

}  // namespace
}  // namespace pygen
