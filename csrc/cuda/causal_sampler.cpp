// Cached sampling on CUDA: what is admitted, and where the kernel has its memory. Of CUDA headers, c10/cuda only.
//
// Of what lies on the device nothing is looked at: the host waits for nothing, and a CUDA graph may capture the call.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include "causal_sampler_launch.h"
#include "causal_sampler_plan.h"
#include "cpu/causal_sampler_glue.h"
#include "cpu/glue.h"
#include "cpu/place.h"

namespace pygen {
namespace {

using at::Tensor;
using cuda_sampler::Storage;
using OptionalTensor = std::optional<Tensor>;

std::optional<Storage> storage_of(at::ScalarType type) {
  if (type == at::kFloat) return Storage::kFloat;
  if (type == at::kDouble) return Storage::kDouble;
  if (type == at::kBFloat16) return Storage::kBFloat16;
  return {};
}

std::tuple<Tensor, Tensor> causal_sampler(const Tensor& x, const Tensor& known, const OptionalTensor& noise,
                                          const Tensor& words, at::TensorList tensors, at::TensorList conditions,
                                          const Tensor& ids, Seed seed, int64_t first_sample, int64_t step,
                                          int64_t offset, std::string_view options) {
  const auto& o = parse_options<SamplerOptions>(options);
  const auto refused = [&] {
    return refuse("pygen::causal_sampler", &causal_sampler, x, known, noise, words, tensors, conditions, ids, seed,
                  first_sample, step, offset, options);
  };
  const auto device = x.device();
  if (!o.admitted() || !words.is_cpu() || words.scalar_type() != at::kLong || words.dim() != 1) return refused();
  const Tensor numbers = words.contiguous();
  const auto p = program::decode(numbers.const_data_ptr<int64_t>(), numbers.numel());
  const auto weight = std::find_if(tensors.begin(), tensors.end(), [](const Tensor& t) { return t.dim() == 3; });
  if (!p || weight == tensors.end() || !x.is_cuda() || x.scalar_type() != at::kLong || known.device() != device ||
      known.scalar_type() != at::kBool) {
    return refused();
  }
  const int64_t batch = x.dim() == 4 ? x.size(0) : 0;
  const std::vector<int64_t> size{batch, p->channels, p->height, p->width};
  const std::vector<int64_t> noise_size{batch, p->draws(), p->height, p->width};
  const auto storage = storage_of(weight->scalar_type());
  if (batch == 0 || x.sizes() != at::IntArrayRef(size) || known.sizes() != x.sizes() || !storage ||
      (noise && (noise->device() != device || noise->sizes() != at::IntArrayRef(noise_size) ||
                 !float_type(noise->scalar_type())))) {
    return refused();
  }
  const c10::cuda::CUDAGuard guard(device);
  Place place(ids, first_sample, step, offset, noise_size, device);
  SamplerTensors taken;
  if (!place.ok || !taken.take(*p, tensors, conditions, batch, weight->scalar_type(), device)) return refused();
  auto plan = cuda_sampler::flatten(*p, taken.weights, taken.conditions, taken.is_map,
                                    *storage == Storage::kDouble ? sizeof(double) : sizeof(float));
  if (!plan) return refused();
  if (!noise) place.draw(seed);

  Tensor out = at::empty(size, x.options());
  out.copy_(x);
  const Tensor dense = known.contiguous(), u = noise ? noise->to(at::kDouble).contiguous() : Tensor();
  Tensor log_prob = at::empty({o.log_prob ? batch : 0}, x.options().dtype(at::kDouble));
  cuda_sampler::Launch& a = plan->launch;
  a.batch = batch;
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
  C10_CUDA_CHECK(cuda_sampler::sampler_blocks(a, *storage, device.index(), &blocks));
  const auto bytes = x.options().dtype(at::kByte);
  Tensor program = at::empty({int64_t(plan->memory.size())}, bytes);
  Tensor scratch = at::empty({blocks * a.scratch_size}, bytes);
  plan->place_at(static_cast<const char*>(program.const_data_ptr()));
  a.scratch = static_cast<char*>(scratch.mutable_data_ptr());
  C10_CUDA_CHECK(cuda_sampler::sampler_store(plan->memory.data(), int64_t(plan->memory.size()),
                                             static_cast<char*>(program.mutable_data_ptr()), stream));
  C10_CUDA_CHECK(cuda_sampler::sampler_launch(a, *storage, blocks, stream));
  return {out, log_prob};
}

TORCH_LIBRARY_IMPL(pygen, CUDA, m) { m.impl("causal_sampler", &causal_sampler); }

}  // namespace
}  // namespace pygen
