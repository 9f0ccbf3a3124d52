// Cached sampling on CUDA: what is admitted, and where the kernel has its memory. Of CUDA headers, c10/cuda only.
//
// Of what lies on the device nothing is looked at: the host waits for nothing, and a CUDA graph may capture the call.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include "causal_sampler_launch.h"
#include "causal_sampler_plan.h"
#include "cpu/causal_sampler_glue.h"
#include "cpu/glue.h"
#include "cpu/place.h"
#include "store.h"

namespace pygen {
namespace {

using at::Tensor;
using cuda_sampler::Storage;
using OptionalTensor = std::optional<Tensor>;

std::tuple<Tensor, Tensor> causal_sampler(const Tensor& x, const Tensor& known, const OptionalTensor& noise,
                                          const Tensor& words, at::TensorList tensors, at::TensorList conditions,
                                          const Tensor& ids, Seed seed, int64_t first_sample, int64_t step,
                                          int64_t offset, std::string_view options) {
  const auto& o = parse_options<SamplerOptions>(options);
  const auto refused = [&] {
    return refuse("pygen::causal_sampler", &causal_sampler, x, known, noise, words, tensors, conditions, ids, seed,
                  first_sample, step, offset, options);
  };
  const auto call = SamplerCall::admit(o, x, known, noise, words, tensors);
  if (!call || !x.is_cuda() || call->batch == 0) return refused();
  const auto device = x.device();
  const auto storage = call->type == at::kFloat    ? Storage::kFloat
                       : call->type == at::kDouble ? Storage::kDouble
                                                   : Storage::kBFloat16;
  const c10::cuda::CUDAGuard guard(device);
  Place place(ids, first_sample, step, offset, call->noise_size, device);
  SamplerTensors taken;
  if (!place.ok || !taken.take(call->program, tensors, conditions, call->batch, call->type, device)) return refused();
  auto plan = cuda_sampler::flatten(call->program, taken.weights, taken.conditions, taken.is_map,
                                    storage == Storage::kDouble ? sizeof(double) : sizeof(float));
  if (!plan) return refused();
  if (!noise) place.draw(seed);

  Tensor out = at::empty(call->size, x.options());
  out.copy_(x);
  const Tensor dense = known.contiguous(), u = noise ? noise->to(at::kDouble).contiguous() : Tensor();
  Tensor log_prob = at::empty({o.log_prob ? call->batch : 0}, x.options().dtype(at::kDouble));
  cuda_sampler::Launch& a = plan->launch;
  a.batch = call->batch;
  a.x = out.mutable_data_ptr<int64_t>();
  a.known = dense.const_data_ptr<bool>();
  a.noise = noise ? u.const_data_ptr<double>() : nullptr;
  a.log_prob = o.log_prob ? log_prob.mutable_data_ptr<double>() : nullptr;
  a.ids = place.stream.ids, a.seed = place.stream.seed, a.first_sample = place.stream.first_sample;
  a.step = place.stream.step, a.offset = place.stream.offset;
  a.set_temperature(o.temperature), a.top_k = o.top_k, a.top_p = o.top_p;

  // What is freed when this returns is used again in the order of the stream alone.
  const auto stream = c10::cuda::getCurrentCUDAStream();
  int blocks = 0;
  C10_CUDA_CHECK(cuda_sampler::sampler_blocks(a, storage, device.index(), &blocks));
  const auto bytes = x.options().dtype(at::kByte);
  Tensor program = at::empty({int64_t(plan->memory.size())}, bytes);
  Tensor scratch = at::empty({blocks * a.scratch_size}, bytes);
  plan->place_at(static_cast<const char*>(program.const_data_ptr()));
  a.scratch = static_cast<char*>(scratch.mutable_data_ptr());
  C10_CUDA_CHECK(store_bytes(plan->memory.data(), int64_t(plan->memory.size()),
                             static_cast<char*>(program.mutable_data_ptr()), stream));
  C10_CUDA_CHECK(cuda_sampler::sampler_launch(a, storage, blocks, stream));
  return {out, log_prob};
}

TORCH_LIBRARY_IMPL(pygen, CUDA, m) { m.impl("causal_sampler", &causal_sampler); }

}  // namespace
}  // namespace pygen
