// For tests alone: the kernels of csrc/cuda/made_inverse.cu on the host, as a C function.
#include "../cuda/emulation.h"
// behind it
#include <string_view>

#include "cpu/made_inverse_options.h"
#include "cuda/made_inverse_kernel.h"
#include "cuda/made_inverse_plan.h"

namespace pygen {
namespace cuda_made {
namespace {

__align__(16) char shared_memory[shared_size(8)];

}  // namespace

struct Arguments {
  const int64_t* degrees;  // those of the features, then those of the units of each layer
  const int64_t* counts;   // [hidden + 1]
  int64_t hidden, parameters, wide, backward, batch;
  const void *const *weights, *const *biases;
  const int64_t* bias_samples;
  const char *options, *own;
  const void* y;
  void *x, *logabsdet;
  const void *found, *grad_x, *grad_logabsdet;
  void *grad_y, *grad_total;
  int64_t shares, blocks, order;
};

namespace {

template <class T, template <class> class Feature>
void run(const Launch<T>& a, const Arguments& from) {
  const unsigned order = unsigned(from.order), blocks = unsigned(from.blocks);
  const unsigned packers = unsigned((a.hidden + 1) * a.steps * from.shares);
  for (unsigned i = 0; i < packers; ++i) emulation::run(i, packers, order, [&] { pack<T>(a, int(from.shares)); });
  for (unsigned i = 0; i < blocks; ++i) {
    std::memset(shared_memory, 0xff, sizeof(shared_memory));
    emulation::run(i, blocks, order, [&] { from.backward ? sweep<T, Feature, true>(a) : sweep<T, Feature, false>(a); });
  }
}

template <class T>
int run(const Arguments& from) {
  std::vector<std::vector<int64_t>> degrees;
  const int64_t* at = from.degrees;
  for (int64_t l = 0; l <= from.hidden; at += from.counts[l++]) degrees.emplace_back(at, at + from.counts[l]);
  const MadeOptions& options = parse_options<MadeOptions>(from.options);
  const MadePlan plan(degrees, from.parameters, options.residual, kTileRows);
  std::vector<MadeLayer> layers;
  for (int64_t l = 0; l <= from.hidden; ++l) {
    layers.push_back({from.weights[l], from.biases[l], from.bias_samples[l], nullptr, nullptr});
  }
  MadeArgs args{};
  args.batch = from.batch, args.hidden = from.hidden, args.parameters = from.parameters;
  args.layers = layers.data(), args.residual = options.residual, args.nonlinearity = options.nonlinearity;
  describe_transform(args, options, from.own, [](double number) { return number; });
  auto flat = flatten<T>(plan, args, from.backward);
  if (!flat) return 1;
  flat->place_at(flat->memory.data());
  Launch<T>& a = flat->launch;
  std::vector<T> packed(size_t(plan.packed_size), kNan<T>);
  std::vector<T> scratch(size_t(from.blocks * a.scratch_rows * kLanes), kNan<T>);
  a.packed = packed.data(), a.scratch = scratch.data();
  a.y = static_cast<const T*>(from.y), a.x = static_cast<T*>(from.x), a.logabsdet = static_cast<T*>(from.logabsdet);
  a.found = static_cast<const T*>(from.found), a.grad_x = static_cast<const T*>(from.grad_x);
  a.grad_logabsdet = static_cast<const T*>(from.grad_logabsdet), a.grad_y = static_cast<T*>(from.grad_y);
  a.grad_total = static_cast<T*>(from.grad_total);
  options.is_spline ? run<T, Spline>(a, from) : run<T, Affine>(a, from);
  return 0;
}

}  // namespace
}  // namespace cuda_made
}  // namespace pygen

// 0, or 1: too large.
extern "C" int made_inverse_on_the_host(const pygen::cuda_made::Arguments* from) {
  return from->wide ? pygen::cuda_made::run<double>(*from) : pygen::cuda_made::run<float>(*from);
}
