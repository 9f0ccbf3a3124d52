// Torch's intra-op threads as a kernel's workers.
#include "workers.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

namespace pygen {

const Workers torch_threads{[](int64_t tasks, void (*task)(void*, int64_t), void* context) {
  std::atomic<int64_t> next{0};  // tasks differ in size: who is free takes the next
  at::parallel_for(0, std::min<int64_t>(tasks, at::get_num_threads()), 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < tasks; i = next++) task(context, i);
  });
}};

}  // namespace pygen
