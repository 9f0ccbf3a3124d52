// Pixels of tensors [samples, channels, area] as blocks [channels][lanes]: a lane to a pixel, whatever the layout.
#pragma once
#include <optional>

#include "logistic_mixture_args.h"
#include "scratch.h"
#include "vmath.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

// f(sample, first pixel, pixels) for the pixels of some tasks, at most `lanes` of one sample at a time
template <class F>
PYGEN_INLINE void for_lanes(int64_t area, int64_t lanes, int64_t begin, int64_t end, const F& f) {
  const int64_t tasks = (area + kMixtureTask - 1) / kMixtureTask;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t sample = task / tasks, first = task % tasks * kMixtureTask;
    const int64_t stop = std::min(area, first + kMixtureTask);
    for (int64_t pixel = first; pixel < stop; pixel += lanes) f(sample, pixel, std::min(lanes, stop - pixel));
  }
}

constexpr int64_t kLine = 64;  // bytes in a cache line

// Asks for memory a few lines at a time, while others are worked on: planes are in more pages than hardware looks
// ahead, and all at once would be more lines than a core has on their way.
class Ahead {
 public:
  Ahead(const void* read, const void* write, int64_t lines, int64_t step, int64_t turns)
      : read_(static_cast<const char*>(read)),
        write_(static_cast<const char*>(write)),
        left_(lines),
        step_(step),
        each_((lines + turns - 1) / turns) {}

  PYGEN_INLINE void ask() {  // inlined: GCC drops calls that do nothing else
    for (int64_t n = std::min(each_, left_); n > 0; --n, --left_, read_ += step_, write_ += step_) {
      __builtin_prefetch(read_);
      __builtin_prefetch(write_, 1, 2);  // not into the first cache, where planes 2^n apart push each other out
    }
  }

 private:
  const char *read_, *write_;
  int64_t left_, step_, each_;
};

// Channels of up to Vec<T>::size() pixels, in storage S, to and from blocks. Lanes beyond the pixels repeat the last.
template <class T, class S>
class Lanes {
 public:
  static constexpr int64_t kLanes = Vec<T>::size();

  Lanes(int64_t channels, MixturePixels at) : channels_(channels), at_(at) {
    if (at.channel == 1 && !std::is_same_v<T, S>) rows_.emplace(kLanes * channels);
  }

  // Of the pixels behind a full block, in a tensor that is read and one that is written, asked for in so many turns.
  Ahead ahead(const S* read, const S* write, int64_t turns) const {
    const int64_t block = kLanes * at_.pixel;
    const bool planes = at_.channel != 1;
    const int64_t step = planes ? at_.channel * int64_t(sizeof(S)) : kLine;
    return {read + block, write + block, planes ? channels_ : kLanes * channels_ * int64_t(sizeof(S)) / kLine, step,
            turns};
  }

  void load(const S* src, int64_t pixels, T* block) const {
    if (at_.channel != 1) {
      for (int64_t c = 0; c < channels_; ++c, src += at_.channel, block += kLanes) {
        if (std::is_same_v<T, S> && pixels == kLanes) {
          Vec<T>::loadu(src).store(block);
        } else if (pixels == kLanes) {
          load_run(block, src, kLanes);
        } else {
          for (int64_t i = 0; i < kLanes; ++i) block[i] = static_cast<T>(src[std::min(i, pixels - 1)]);
        }
      }
      return;
    }
    const T* row[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      const S* from = src + std::min(i, pixels - 1) * at_.pixel;
      if constexpr (std::is_same_v<T, S>) {
        row[i] = from;
      } else {
        T* converted = *rows_ + i * channels_;
        load_run(converted, from, channels_);
        row[i] = converted;
      }
    }
    squares(
        [&](int64_t c) {
          Vec<T> r[kLanes];
#pragma GCC unroll 16
          for (int64_t i = 0; i < kLanes; ++i) r[i] = Vec<T>::loadu(row[i] + c);
          transpose<T>(r);
#pragma GCC unroll 16
          for (int64_t i = 0; i < kLanes; ++i) r[i].store(block + (c + i) * kLanes);
        },
        [&](int64_t c) {
          for (int64_t i = 0; i < kLanes; ++i) block[c * kLanes + i] = row[i][c];
        });
  }

  void store(S* dst, int64_t pixels, const T* block) const {
    if (at_.channel != 1) {
      for (int64_t c = 0; c < channels_; ++c) {
        if (std::is_same_v<T, S> && pixels == kLanes) {
          Vec<T>::loadu(block + c * kLanes).store(dst + c * at_.channel);
        } else {
          store_run(dst + c * at_.channel, block + c * kLanes, pixels, false);
        }
      }
      return;
    }
    const auto row = [&](int64_t i) {
      if constexpr (std::is_same_v<T, S>) {
        return dst + i * at_.pixel;
      } else {
        return *rows_ + i * channels_;
      }
    };
    squares(
        [&](int64_t c) {
          Vec<T> r[kLanes];
#pragma GCC unroll 16
          for (int64_t i = 0; i < kLanes; ++i) r[i] = Vec<T>::loadu(block + (c + i) * kLanes);
          transpose<T>(r);
#pragma GCC unroll 16
          for (int64_t i = 0; i < kLanes; ++i) {
            if (i < pixels) r[i].store(row(i) + c);
          }
        },
        [&](int64_t c) {
          for (int64_t i = 0; i < pixels; ++i) row(i)[c] = block[c * kLanes + i];
        });
    if constexpr (!std::is_same_v<T, S>) {
      for (int64_t i = 0; i < pixels; ++i) store_run(dst + i * at_.pixel, row(i), channels_, false);
    }
  }

 private:
  // The last square overlaps the one before.
  template <class Square, class One>
  PYGEN_INLINE void squares(const Square& square, const One& one) const {
    if (channels_ < kLanes) {
      for (int64_t c = 0; c < channels_; ++c) one(c);
      return;
    }
    for (int64_t c = 0; c + kLanes <= channels_; c += kLanes) square(c);
    if (channels_ % kLanes) square(channels_ - kLanes);
  }

  int64_t channels_;
  MixturePixels at_;
  std::optional<Scratch<T>> rows_;
};

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
