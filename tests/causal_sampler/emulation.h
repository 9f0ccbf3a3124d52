// For tests alone: enough of CUDA to run a kernel on the host. The threads of a block are fibers, which run one at a
// time, in an order drawn anew at each turn, until they wait for others: a barrier that is missing shows. Asynchronous
// copies are made as late as they may be.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <random>
#include <vector>

#include "common/philox.h"

#define __global__
#define __device__
#define __shared__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

using std::exp, std::expm1, std::log, std::log1p, std::tanh;  // of float, too

namespace emulation {

constexpr int kThreads = 256, kStack = 128 * 1024;

struct Barrier {
  int threads, arrived = 0, turn = 0;
};

struct Copy {
  char* to;
  const char* from;
  int size;
  bool some;

  void make() const {
    if (some) {
      std::memcpy(to, from, size_t(size));
    } else {
      std::memset(to, 0, size_t(size));
    }
  }
};

struct Fiber {
  ucontext_t context;  // where it starts; then it goes on from jumps, which cost no system call
  jmp_buf own;
  bool started = false;
  std::vector<char> stack;
  bool done;
  std::vector<Copy> batch;
  std::deque<std::vector<Copy>> batches;
};

struct Block {
  std::vector<Fiber> fibers{kThreads};
  jmp_buf turn;
  int current = 0;
  Barrier all{kThreads};
  std::vector<Barrier> warps;
  uint64_t exchanged[kThreads];
  std::function<void()> kernel;
};
inline Block* block;

struct Index {
  unsigned x;
};
inline Index block_index, thread_index, grid_size;

inline void yield() {
  if (_setjmp(block->fibers[size_t(block->current)].own) == 0) _longjmp(block->turn, 1);
}
inline void wait(Barrier& barrier) {
  const int turn = barrier.turn;
  if (++barrier.arrived == barrier.threads) {
    barrier.arrived = 0;
    ++barrier.turn;
  }
  while (barrier.turn == turn) yield();
}
inline Barrier& of_warp() { return block->warps[size_t(block->current / 32)]; }

inline void start() {
  block->kernel();
  block->fibers[size_t(block->current)].done = true;
  _longjmp(block->turn, 1);
}
// Lets a fiber run until it waits.
inline void resume(int i) {
  Fiber& fiber = block->fibers[size_t(i)];
  block->current = i;
  thread_index.x = unsigned(i);
  if (_setjmp(block->turn) != 0) return;
  if (fiber.started) _longjmp(fiber.own, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

// A block of the kernel.
inline void run(unsigned index, unsigned blocks, unsigned order, const std::function<void()>& kernel) {
  Block own;
  block = &own;
  block_index.x = index;
  grid_size.x = blocks;
  own.kernel = kernel;
  own.warps.assign(kThreads / 32, Barrier{32});
  std::vector<int> turns;
  for (int i = 0; i < kThreads; ++i) {
    Fiber& fiber = own.fibers[size_t(i)];
    fiber.done = false;
    fiber.stack.resize(kStack);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, start, 0);
    turns.push_back(i);
  }
  std::mt19937 engine(order);
  while (!turns.empty()) {
    std::shuffle(turns.begin(), turns.end(), engine);
    for (const int i : turns) resume(i);
    turns.erase(std::remove_if(turns.begin(), turns.end(), [&](int i) { return own.fibers[size_t(i)].done; }),
                turns.end());
  }
}

// What the lanes of the warp hand over, until they meet again.
template <class T>
const uint64_t* publish(T value) {
  static_assert(sizeof(T) <= 8);
  std::memcpy(&block->exchanged[block->current], &value, sizeof(T));
  wait(of_warp());
  return block->exchanged + block->current / 32 * 32;
}
template <class T>
T exchange(T value, int from) {
  publish(value);
  std::memcpy(&value, &block->exchanged[from], sizeof(T));
  wait(of_warp());
  return value;
}

}  // namespace emulation

#define threadIdx emulation::thread_index
#define blockIdx emulation::block_index
#define gridDim emulation::grid_size

inline void __syncthreads() { emulation::wait(emulation::block->all); }
inline void __syncwarp() { emulation::wait(emulation::of_warp()); }
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulation::exchange(value, emulation::block->current ^ mask);
}
template <class T>
T __shfl_up_sync(unsigned, T value, int by) {
  const int own = emulation::block->current;
  return emulation::exchange(value, own % 32 < by ? own : own - by);
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return emulation::exchange(value, emulation::block->current / 32 * 32 + lane);
}

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
