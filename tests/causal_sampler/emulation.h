// For tests alone: what the kernel of csrc/cuda/causal_sampler.cu takes from the hardware, on the host.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "../cuda/emulation.h"
#include "common/philox.h"

namespace pygen {
namespace cuda_sampler {
namespace {

inline int thread_read_again() { return int(threadIdx.x); }

inline void copy(void* to, const void* from, int size, bool some) {
  const auto own = static_cast<size_t>(emulation::block->current);
  emulation::block->fibers[own].batch.push_back({static_cast<char*>(to), static_cast<const char*>(from), size, some});
}
inline void copy_quad(void* to, const void* from, bool some) { copy(to, from, 16, some); }
template <class T>
void copy_one(T* to, const T* from, bool some) {
  copy(to, from, int(sizeof(T)), some);
}
inline void commit() {
  auto& fiber = emulation::block->fibers[size_t(emulation::block->current)];
  fiber.batches.push_back(std::move(fiber.batch));
  fiber.batch.clear();
}
template <int N>
void wait_for_all_but() {
  auto& batches = emulation::block->fibers[size_t(emulation::block->current)].batches;
  for (; batches.size() > N; batches.pop_front()) {
    for (const auto& copy : batches.front()) copy.make();
  }
}

// What PTX says of ldmatrix (m8n8.x4.trans) and of mma (m16n8k16).
inline void load_transposed(uint32_t (&to)[4], const void* row) {
  const auto* const rows = emulation::publish(row);
  const int lane = emulation::block->current % 32;
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t pair[2];
    for (int i = 0; i < 2; ++i) {
      const char* from;
      std::memcpy(&from, &rows[matrix * 8 + lane % 4 * 2 + i], sizeof(from));
      std::memcpy(&pair[i], from + lane / 4 * 2, 2);
    }
    to[matrix] = pair[0] | uint32_t(pair[1]) << 16;
  }
  __syncwarp();
}
inline float of_pair(uint32_t pair, int i) { return pygen::philox::as_float(i ? pair & 0xffff0000u : pair << 16); }
inline void multiply_tile(float* sum, const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static uint32_t all[emulation::kThreads][6];
  std::copy_n(a, 4, all[emulation::block->current]);
  std::copy_n(b, 2, all[emulation::block->current] + 4);
  __syncwarp();
  const auto* const lanes = all + emulation::block->current / 32 * 32;
  const int lane = emulation::block->current % 32;
  for (int e = 0; e < 4; ++e) {
    const int m = lane / 4 + e / 2 * 8, n = lane % 4 * 2 + e % 2;
    for (int k = 0; k < 16; ++k) {
      const int of_k = k % 8 / 2;
      const float x = of_pair(lanes[m % 8 * 4 + of_k][m / 8 + k / 8 * 2], k % 2);
      sum[e] += x * of_pair(lanes[n * 4 + of_k][4 + k / 8], k % 2);
    }
  }
  __syncwarp();
}

}  // namespace
}  // namespace cuda_sampler
}  // namespace pygen
