// Cached sampling on a GPU: a program, flattened for the kernel. Runs on the host. No torch headers, no CUDA.
#pragma once
#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

#include "causal_sampler_layout.h"
#include "common/pixel_program.h"

namespace pygen {
namespace cuda_sampler {

struct Plan {
  Launch launch{};                          // of the program and of the memory of a block; pointers are yet to be set
  std::vector<char> memory;                 // what `launch` points to
  int64_t stages = 0, reads = 0, ends = 0;  // where in it; planes come first

  // The pointers, where `memory` lies at `base`.
  void place_at(const char* base) {
    launch.planes = reinterpret_cast<const Plane*>(base);
    launch.stages = reinterpret_cast<const Stage*>(base + stages);
    launch.reads = reinterpret_cast<const Read*>(base + reads);
    launch.ends = reinterpret_cast<const int32_t*>(base + ends);
  }
};

// Nothing for what has too large numbers for the kernel. Tensors and conditions are pointers to device memory, by their
// index; `arithmetic` is the size of the type of arithmetic.
inline std::optional<Plan> flatten(const program::Program& p, const std::vector<const void*>& tensors,
                                   const std::vector<const void*>& conditions, const std::vector<char>& is_map,
                                   int arithmetic) {
  const auto up = [](int64_t n) { return (n + 15) / 16 * 16; };
  bool fits = true;
  const auto narrow = [&](int64_t n) {
    fits &= n >= std::numeric_limits<int32_t>::min() && n <= std::numeric_limits<int32_t>::max();
    return int32_t(n);
  };
  Plan plan;
  Launch& a = plan.launch;

  int64_t widest = 0;
  for (const auto& s : p.stages) widest = std::max(widest, s.panels() * program::kPanel);
  a.widest = narrow(widest);
  int64_t shared = own_bytes(arithmetic);
  const auto share = [&](int64_t size) {  // whether there is so much left
    if (size > kLimit - shared) return false;
    shared += up(size);
    return true;
  };
  a.shared_pre = int32_t(shared);
  a.pre_shared = share(kImages * widest * arithmetic);
  a.shared_planes = int32_t(shared);

  std::vector<Plane> planes;
  int64_t global = 0;
  for (const auto& from : p.planes) {
    Plane to{};
    to.channels = narrow(from.channels), to.scale = narrow(from.scale), to.transient = from.transient;
    to.left = narrow(from.transient ? 0 : from.left);
    const int64_t columns = from.transient ? 1 : from.left + from.width + from.right;
    int64_t rows = 1;
    while (rows < from.rows) rows *= 2;
    to.ring = narrow(rows - 1);
    to.row_size = columns * kImages * from.channels;
    fits &= columns < (int64_t(1) << 31) && rows * to.row_size < (int64_t(1) << 40);
    if (!fits) return {};
    const int64_t size = rows * to.row_size * arithmetic, before = shared;
    to.shared = from.transient && share(size);
    to.offset = to.shared ? before - a.shared_planes : global;
    if (!to.shared) global += up(size);
    planes.push_back(to);
  }
  a.shared_size = int32_t(shared);
  a.pre_offset = global;
  a.drawn_offset = a.pre_offset + up(kSites * widest * arithmetic);
  a.scratch_size = a.drawn_offset + up(kImages * p.channels * int64_t(sizeof(float)));

  std::vector<Stage> stages;
  std::vector<Read> reads;
  std::vector<int32_t> ends;
  const auto add = [&](program::Phase phase, int64_t group) {
    for (const auto& from : p.stages) {
      if (from.when() != phase || (phase != program::Phase::kRow && from.group != group)) continue;
      Stage s{};
      s.weight = from.weight < 0 ? nullptr : tensors[size_t(from.weight)];
      s.bias = from.bias < 0 ? nullptr : tensors[size_t(from.bias)];
      s.condition = from.condition < 0 ? nullptr : conditions[size_t(from.condition)];
      s.condition_map = from.condition >= 0 && is_map[size_t(from.condition)];
      s.out = narrow(from.out), s.first = narrow(from.first), s.outputs = narrow(from.outputs);
      s.written = narrow(from.written()), s.depth = narrow(from.depth());
      s.start = narrow(from.start), s.start_first = narrow(from.start_first);
      s.activation = narrow(from.activation);
      s.residual = narrow(from.residual), s.residual_first = narrow(from.residual_first);
      s.row_every = narrow(from.row_every), s.row_at = narrow(from.row_at);
      s.column_every = narrow(from.column_every), s.column_at = narrow(from.column_at);
      s.first_read = narrow(int64_t(reads.size())), s.reads = narrow(int64_t(from.reads.size()));
      for (const auto& r : from.reads) {
        reads.push_back({narrow(r.plane), narrow(r.dy), narrow(r.dx), narrow(r.first), narrow(r.count)});
      }
      stages.push_back(s);
    }
    ends.push_back(narrow(int64_t(stages.size())));
  };
  add(program::Phase::kRow, 0);
  for (int64_t group = 0; group < p.groups; ++group) {
    add(program::Phase::kPixel, group);
    add(program::Phase::kHead, group);
  }
  if (!fits) return {};

  const auto put = [&](const auto& values) {
    const int64_t at = int64_t(plan.memory.size()), size = int64_t(values.size() * sizeof(values[0]));
    plan.memory.resize(size_t(at + up(size)));
    if (size) std::memcpy(plan.memory.data() + at, values.data(), size_t(size));
    return at;
  };
  put(planes);
  plan.stages = put(stages), plan.reads = put(reads), plan.ends = put(ends);

  a.plane_count = narrow(int64_t(planes.size()));
  a.height = narrow(p.height), a.width = narrow(p.width), a.channels = narrow(p.channels);
  a.levels = narrow(p.levels), a.groups = narrow(p.groups), a.head = narrow(p.head), a.output = narrow(p.output);
  a.draws = narrow(p.draws()), a.mixtures = narrow(p.mixtures);
  if (p.draws_from() == program::Head::kMixture) {
    MixtureArgs m{};
    m.channels = p.channels, m.mixtures = p.mixtures, m.autoregressive = p.channels > 1;
    set_places(m, p.layout);
    a.means = m.means, a.log_scales = m.log_scales, a.coefficients = m.coefficients;
  }
  if (!fits) return {};
  return plan;
}

}  // namespace cuda_sampler
}  // namespace pygen
