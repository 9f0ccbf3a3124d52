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
constexpr size_t kMapped = 8 * kHugePage;  // below, zeroing pages takes longer than what they save

struct Release {
  size_t mapped;
  void operator()(void* p) const {
    if (mapped) {
      munmap(p, mapped);
    } else {
      std::free(p);
    }
  }
};

// Uninitialised, on a cache line. Large ones are mapped in huge pages where the system has them, past the heap, whose
// pages stay the small ones that they once were: a matrix that is read by rows and columns would wait for its pages.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count) {
    size_t bytes = std::max<size_t>(1, size_t(count) * sizeof(T));
#if defined(MADV_HUGEPAGE)
    if (bytes >= kMapped) {
      bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
      void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (p == MAP_FAILED) throw std::bad_alloc();
      madvise(p, bytes, MADV_HUGEPAGE);
      memory_ = {static_cast<T*>(p), Release{bytes}};
      return;
    }
#endif
    void* p = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (p == nullptr) throw std::bad_alloc();
    memory_ = {static_cast<T*>(p), Release{0}};
  }
  operator T*() const { return memory_.get(); }

 private:
  std::unique_ptr<T[], Release> memory_{nullptr, Release{0}};
};

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
