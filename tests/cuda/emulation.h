// For tests alone: enough of CUDA to run a kernel on the host. The threads of a block are fibers, which run one at a
// time, in an order drawn anew at each turn, until they wait for others: a barrier that is missing shows. Asynchronous
// copies, which a kernel's own header brings, wait here until they are made, as late as they may be.
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

#define __global__
#define __device__
#define __shared__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

// of float, too
using std::atan, std::exp, std::expm1, std::fabs, std::ldexp, std::log, std::log1p, std::rint, std::sqrt, std::tanh;

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
  static std::vector<std::vector<char>> stacks(kThreads, std::vector<char>(kStack));
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
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stacks[size_t(i)].data();
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
