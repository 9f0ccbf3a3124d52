// The random stream on the CPU: what is admitted, seeds, threads.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <atomic>
#include <limits>
#include <string_view>

#include "glue.h"
#include "place.h"
#include "random_args.h"
#include "table.h"

namespace pygen {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

Tensor random(const Tensor& ids, Seed seed, int64_t first_sample, int64_t step, int64_t offset, at::IntArrayRef size,
              std::string_view kind, at::ScalarType dtype);
Tensor bernoulli(const Tensor& p, const Tensor& ids, Seed seed, int64_t first_sample, int64_t step, int64_t offset);
Tensor categorical(const Tensor& logits, const Tensor& ids, Seed seed, int64_t first_sample, int64_t step,
                   int64_t offset);
Tensor dequantize(const Tensor& x, const OptionalTensor& noise, const Tensor& ids, Seed seed, int64_t first_sample,
                  int64_t step, int64_t offset, int64_t levels, double scale, double shift, at::ScalarType dtype);

// --- what is admitted ------------------------------------------------------------------------------------------------

std::optional<Distribution> distribution(std::string_view name) {
  int i = 0;
  for (const std::string_view known : {"bits", "uniform", "normal", "logistic", "gumbel"}) {
    if (name == known) return Distribution(i);
    ++i;
  }
  return std::nullopt;
}

// --- the ops ---------------------------------------------------------------------------------------------------------

constexpr int64_t kParallel = 16384;  // elements that are worth a thread: some 10 microseconds

// f(begin, end) over all elements, which are computed each by itself; false if one of them was
template <class F>
bool run(const Place& place, int64_t cost, const F& f) {
  std::atomic<bool> fine{true};
  at::parallel_for(0, place.elements, std::max<int64_t>(1, kParallel / cost), [&](int64_t begin, int64_t end) {
    if (!f(begin, end)) fine = false;
  });
  return fine;
}

Tensor random(const Tensor& ids, Seed seed, int64_t first_sample, int64_t step, int64_t offset, at::IntArrayRef size,
              std::string_view kind, at::ScalarType dtype) {
  Place place(ids, first_sample, step, offset, size);
  const auto d = distribution(kind);
  const auto type = d == Distribution::kBits && dtype == at::kInt ? FloatType::kF32 : float_type(dtype);
  if (!place.ok || !d || !type || (*d == Distribution::kBits) != (dtype == at::kInt)) {
    return refuse("pygen::random", &random, ids, seed, first_sample, step, offset, size, kind, dtype);
  }
  place.draw(seed);
  Tensor out = empty(size, dtype);
  void* p = out.mutable_data_ptr();
  const auto fill = kernels<RandomKernels>().fill;
  run(place, 1, [&](int64_t begin, int64_t end) { return fill(place.stream, *d, *type, p, begin, end), true; });
  return out;
}

Tensor bernoulli(const Tensor& p, const Tensor& ids, Seed seed, int64_t first_sample, int64_t step, int64_t offset) {
  Place place(ids, first_sample, step, offset, p.sizes());
  const auto type = float_type(p.scalar_type());
  if (!place.ok || !type || !p.is_cpu()) {
    return refuse("pygen::bernoulli", &bernoulli, p, ids, seed, first_sample, step, offset);
  }
  seed = place.draw(seed);
  // one probability for all of a sample is read where it is
  const bool one = p.numel() && c10::multiply_integers(p.strides().slice(1)) == 0 &&
                   std::all_of(p.strides().begin() + 1, p.strides().end(), [](int64_t s) { return s == 0; });
  const Tensor dense = one ? p : p.contiguous();
  const int64_t p_sample = one ? p.stride(0) : place.stream.row, p_step = one ? 0 : 1;
  Tensor out = empty(p.sizes(), p.scalar_type());
  const void* from = dense.const_data_ptr();
  void* to = out.mutable_data_ptr();
  const auto kernel = kernels<RandomKernels>().bernoulli[int(*type)];
  const bool fine = run(place, 1, [&](int64_t begin, int64_t end) {
    return kernel(place.stream, from, p_sample, p_step, to, begin, end);
  });
  if (!fine) return refuse("pygen::bernoulli", &bernoulli, p, ids, seed, first_sample, step, offset);
  return out;
}

Tensor categorical(const Tensor& logits, const Tensor& ids, Seed seed, int64_t first_sample, int64_t step,
                   int64_t offset) {
  const auto size = logits.sizes().slice(0, size_t(std::max<int64_t>(0, logits.dim() - 1)));
  Place place(ids, first_sample, step, offset, size);
  const auto type = float_type(logits.scalar_type());
  const int64_t categories = logits.dim() ? logits.size(-1) : 0;
  if (!place.ok || !type || !logits.is_cpu() || categories < 1 || categories > std::numeric_limits<int32_t>::max()) {
    return refuse("pygen::categorical", &categorical, logits, ids, seed, first_sample, step, offset);
  }
  seed = place.draw(seed);
  const Tensor dense = logits.contiguous();
  Tensor out = empty(size, at::kLong);
  const void* from = dense.const_data_ptr();
  int64_t* to = out.mutable_data_ptr<int64_t>();
  const auto kernel = kernels<RandomKernels>().categorical[int(*type)];
  const bool fine = run(place, categories, [&](int64_t begin, int64_t end) {
    return kernel(place.stream, from, categories, to, begin, end);
  });
  if (!fine) return refuse("pygen::categorical", &categorical, logits, ids, seed, first_sample, step, offset);
  return out;
}

Tensor dequantize(const Tensor& x, const OptionalTensor& noise, const Tensor& ids, Seed seed, int64_t first_sample,
                  int64_t step, int64_t offset, int64_t levels, double scale, double shift, at::ScalarType dtype) {
  Place place(ids, first_sample, step, offset, x.sizes());
  const auto from = int_type(x.scalar_type());
  const auto type = float_type(dtype);
  const bool noise_fits = !noise || (noise->is_cpu() && noise->scalar_type() == dtype && noise->sizes() == x.sizes());
  if (!place.ok || !from || !type || !x.is_cpu() || !noise_fits || levels < 1) {
    return refuse("pygen::dequantize", &dequantize, x, noise, ids, seed, first_sample, step, offset, levels, scale,
                  shift, dtype);
  }
  if (!noise) seed = place.draw(seed);
  const bool one =
      noise && std::all_of(noise->strides().begin(), noise->strides().end(), [](auto s) { return s == 0; });
  const Tensor dense = x.contiguous(), u = !noise ? Tensor() : one ? *noise : noise->contiguous();
  Tensor out = empty(x.sizes(), dtype);
  const void *values = dense.const_data_ptr(), *added = noise ? u.const_data_ptr() : nullptr;
  void* to = out.mutable_data_ptr();
  const auto kernel = kernels<RandomKernels>().dequantize[int(*from)];
  const bool fine = run(place, 1, [&](int64_t begin, int64_t end) {
    return kernel(place.stream, values, added, one ? 0 : 1, levels, scale, shift, *type, to, begin, end);
  });
  if (!fine) {
    return refuse("pygen::dequantize", &dequantize, x, noise, ids, seed, first_sample, step, offset, levels, scale,
                  shift, dtype);
  }
  return out;
}

TORCH_LIBRARY_IMPL(pygen, CPU, m) {
  m.impl("random", &random);
  m.impl("bernoulli", &bernoulli);
  m.impl("categorical", &categorical);
  m.impl("dequantize", &dequantize);
}

}  // namespace
}  // namespace pygen
