// Memory for the length of a call.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

constexpr size_t kHugePage = size_t(1) << 21;

struct Release {
  void operator()(void* p) const { std::free(p); }
};

// Uninitialised, on a cache line; in huge pages where that matters and the system has them: a large matrix would else
// take longer to be mapped than to be multiplied by a few vectors.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count) {
    const size_t unit = size_t(count) * sizeof(T) >= 2 * kHugePage ? kHugePage : 64;
    const size_t bytes = std::max<size_t>(1, (size_t(count) * sizeof(T) + unit - 1) / unit) * unit;
    memory_.reset(static_cast<T*>(std::aligned_alloc(unit, bytes)));
    if (!memory_) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    if (unit == kHugePage) madvise(memory_.get(), bytes, MADV_HUGEPAGE);
#endif
  }
  operator T*() const { return memory_.get(); }

 private:
  std::unique_ptr<T[], Release> memory_;
};

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
