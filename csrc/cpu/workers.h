// How a kernel runs tasks side by side without knowing torch: the glue hands it a runner.
#pragma once
#include <cstdint>
#include <type_traits>

namespace pygen {

// workers(n, f) calls f(0), ..., f(n - 1), each once, in any order, by as many threads as there are; all have returned
// when it does. Nothing may wait for another task: one thread may have to run them all.
struct Workers {
  void (*run)(int64_t tasks, void (*task)(void* context, int64_t index), void* context);

  template <class F>
  void operator()(int64_t tasks, F&& f) const {
    if (tasks == 1) return f(0);
    run(tasks, [](void* context, int64_t index) { (*static_cast<std::remove_reference_t<F>*>(context))(index); }, &f);
  }
};

extern const Workers torch_threads;  // torch's intra-op threads; lives in _C

}  // namespace pygen
