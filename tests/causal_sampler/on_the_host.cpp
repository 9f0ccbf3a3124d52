// For tests alone: the kernel of csrc/cuda/causal_sampler.cu on the host, as a C function.
#include "emulation.h"
// behind it
#include "cuda/causal_sampler_kernel.h"
#include "cuda/causal_sampler_plan.h"

namespace pygen {
namespace cuda_sampler {
namespace {

__align__(16) char shared_memory[kLimit];

}  // namespace
}  // namespace cuda_sampler
}  // namespace pygen

struct Arguments {
  const int64_t* words;
  int64_t word_count;
  const void* const* tensors;
  int64_t tensor_count;
  const void* const* conditions;
  int64_t condition_count;
  const char* is_map;
  int64_t storage, batch;
  int64_t* x;
  const bool* known;
  const double *noise, *temperature_and_top_p;
  double* log_prob;
  const int64_t* ids;
  int64_t seed, first_sample, step, offset, top_k, blocks, order;
};

// 0, or 1: no program, 2: too large.
extern "C" int sample_on_the_host(const Arguments* from) {
  using namespace pygen::cuda_sampler;
  const auto program = pygen::program::decode(from->words, from->word_count);
  if (!program) return 1;
  const bool wide = from->storage == int(Storage::kDouble);
  const std::vector<const void*> tensors(from->tensors, from->tensors + from->tensor_count);
  const std::vector<const void*> conditions(from->conditions, from->conditions + from->condition_count);
  const std::vector<char> is_map(from->is_map, from->is_map + from->condition_count);
  auto plan = flatten(*program, tensors, conditions, is_map, wide ? 8 : 4);
  if (!plan || plan->launch.shared_size > kLimit) return 2;
  plan->place_at(plan->memory.data());
  Launch& a = plan->launch;
  a.batch = from->batch, a.x = from->x, a.known = from->known, a.noise = from->noise, a.log_prob = from->log_prob;
  a.ids = from->ids, a.seed = uint64_t(from->seed), a.first_sample = uint64_t(from->first_sample);
  a.step = uint32_t(from->step), a.offset = from->offset, a.top_k = from->top_k;
  a.set_temperature(from->temperature_and_top_p[0]), a.top_p = from->temperature_and_top_p[1];
  std::vector<char> scratch(size_t(from->blocks * a.scratch_size), char(0xff));  // NaN
  a.scratch = scratch.data();
  for (int64_t i = 0; i < from->blocks; ++i) {
    std::memset(shared_memory, 0xff, sizeof(shared_memory));
    emulation::run(unsigned(i), unsigned(from->blocks), unsigned(from->order), [&] {
      if (wide) {
        sample<double, double>(a);
      } else if (from->storage == int(Storage::kFloat)) {
        sample<float, float>(a);
      } else {
        sample<float, BFloat16>(a);
      }
    });
  }
  return 0;
}
