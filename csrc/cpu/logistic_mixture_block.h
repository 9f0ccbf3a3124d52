// Walking over the pixels of tensors [samples, channels, area], a lane to a pixel.
#pragma once
#include "lanes.h"
#include "logistic_mixture_args.h"

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

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
