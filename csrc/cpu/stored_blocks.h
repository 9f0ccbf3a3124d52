// Dense tensors of any storage type, block by block in the type of the arithmetic, one ISA tier.
#pragma once
#include "types.h"
#include "vmath.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

template <class F>
PYGEN_INLINE auto with_storage(Storage type, const F& f) {
  switch (type) {
    case Storage::kF32:
      return f(float{});
    case Storage::kF64:
      return f(double{});
    case Storage::kBF16:
      return f(c10::BFloat16{});
    case Storage::kF16:
      return f(c10::Half{});
    case Storage::kU8:
      break;
  }
  return f(uint8_t{});
}

template <class T>
class BlockReader {
 public:
  // Elements [at, at + n), n at most kBlock: as they lie, or converted.
  const T* read(const Stored& from, int64_t at, int64_t n) {
    return with_storage(from.type, [&](auto s) -> const T* {
      using S = decltype(s);
      const S* p = static_cast<const S*>(from.data) + at;
      if constexpr (std::is_same_v<S, T>) {
        return p;
      } else if constexpr (std::is_same_v<S, uint8_t>) {
        for (int64_t i = 0; i < n; ++i) values_[i] = (T(p[i]) - T(127.5)) / T(127.5);
      } else if constexpr (std::is_same_v<T, float> && sizeof(S) == 2) {
        load_run(values_, p, n);
      } else {
        for (int64_t i = 0; i < n; ++i) values_[i] = static_cast<T>(p[i]);
      }
      return values_;
    });
  }

 private:
  alignas(64) T values_[kBlock];
};

template <class T>
class BlockWriter {
 public:
  BlockWriter(void* base, FloatType type, bool stream) : base_(base), type_(Storage(type)), stream_(stream) {
    direct_ = base && !stream && type == (sizeof(T) == 4 ? FloatType::kF32 : FloatType::kF64);
  }

  // Where to write up to kBlock elements, before put() moves them to where they belong.
  T* at(int64_t at) {
    at_ = at;
    return direct_ ? static_cast<T*>(base_) + at : values_;
  }
  void put(int64_t n) {
    if (!base_ || direct_) return;
    with_storage(type_, [&](auto s) {
      using S = decltype(s);
      S* p = static_cast<S*>(base_) + at_;
      if constexpr (std::is_same_v<S, T> || (std::is_same_v<T, float> && sizeof(S) == 2)) {
        store_run(p, values_, n, stream_);
      } else {
        for (int64_t i = 0; i < n; ++i) p[i] = static_cast<S>(values_[i]);
      }
    });
  }

 private:
  void* base_;
  Storage type_;
  bool stream_, direct_;
  int64_t at_ = 0;
  alignas(64) T values_[kBlock];
};

// f(run, first, count) for the parts of runs of `run` elements each among the elements [first, first + n).
template <class F>
PYGEN_INLINE void for_runs(int64_t run, int64_t first, int64_t n, const F& f) {
  for (int64_t i = first, end = first + n; i < end;) {
    const int64_t r = i / run, count = std::min(end, (r + 1) * run) - i;
    f(r, i, count);
    i += count;
  }
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
