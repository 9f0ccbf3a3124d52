// Where an op draws in the random stream.
#pragma once
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Tensor.h>

#include <limits>
#include <mutex>
#include <optional>

#include "random_args.h"

namespace pygen {

using Seed = std::optional<int64_t>;

// The conditions of `check_stream` in pygen/ops/random.py, without the messages; and the place in the stream.
class Place {
 public:
  Place(const at::Tensor& ids, int64_t first_sample, int64_t step, int64_t offset, at::IntArrayRef size,
        at::Device device = at::kCPU) {
    if (size.empty() || ids.device() != device || ids.dim() != 1 || ids.scalar_type() != at::kLong) return;
    int64_t row = 1;
    for (size_t d = 0; d < size.size(); ++d) {
      if (size[d] < 0) return;
      if (d && __builtin_mul_overflow(row, size[d], &row)) return;
    }
    if (ids.size(0) != 0 && ids.size(0) != size[0]) return;
    if (first_sample < 0 || step < 0 || step >= int64_t(1) << 32) return;
    if (size[0] > 0 && first_sample > std::numeric_limits<int64_t>::max() - (size[0] - 1)) return;
    constexpr int64_t kMost = int64_t(1) << 34;
    if (offset < 0 || offset > kMost || row > kMost - offset) return;
    ids_ = ids.contiguous();
    const auto* values = ids_.size(0) ? ids_.const_data_ptr<int64_t>() : nullptr;
    stream = {0, values, uint64_t(first_sample), uint32_t(step), offset, row};
    elements = size[0] * row;
    ok = true;
  }

  // As seed_of of pygen/_seed.py; returns the seed as the schema has it.
  Seed draw(Seed seed) {
    if (!seed) {
      auto* generator =
          at::get_generator_or_default<at::CPUGeneratorImpl>(std::nullopt, at::detail::getDefaultCPUGenerator());
      const std::lock_guard<std::mutex> lock(generator->mutex_);
      seed = int64_t(generator->random64());
    }
    stream.seed = uint64_t(*seed);
    return seed;
  }

  Stream stream{};
  int64_t elements = 0;
  bool ok = false;

 private:
  at::Tensor ids_;
};

}  // namespace pygen
