// Sums and a quantile of each sample, one ISA tier. In PyTorch: reference/sample_stats.py.
#pragma once
#include <atomic>
#include <limits>
#include <vector>

#include "sample_stats_args.h"
#include "stored_blocks.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

// --- sums ------------------------------------------------------------------------------------------------------------

// The vectors of double that hold a vector of T: products of floats are exact in them.
PYGEN_INLINE void split(const Vec<float>& x, Vec<double>* wide) { widen(x, wide[0], wide[1]); }
PYGEN_INLINE void split(const Vec<double>& x, Vec<double>* wide) { wide[0] = x; }

template <bool kPair, class T>
void add_stats(const T* a, const T* b, int64_t n, double* sums) {
  using at::vec::fmadd;
  using D = Vec<double>;
  constexpr int kParts = sizeof(double) / sizeof(T);
  D total[kStats][kParts];
  for (auto& each : total) {
    for (D& part : each) part = D(0.0);
  }
  for_vectors<T>(n, [&](int64_t i, auto w) __attribute__((always_inline)) {  // beyond the end a and b are 0
    D x[kParts], y[kParts];
    split(Vec<T>::loadu(a + i, w), x);
    if constexpr (kPair) split(Vec<T>::loadu(b + i, w), y);
#pragma GCC unroll 2
    for (int p = 0; p < kParts; ++p) {
      total[0][p] = total[0][p] + x[p];
      total[2][p] = fmadd(x[p], x[p], total[2][p]);
      if constexpr (kPair) {
        total[1][p] = total[1][p] + y[p];
        total[3][p] = fmadd(x[p], y[p], total[3][p]);
        total[4][p] = fmadd(y[p], y[p], total[4][p]);
      }
    }
  });
  for (int s = 0; s < kStats; ++s) {
    if constexpr (kParts == 2) total[s][0] = total[s][0] + total[s][1];
    sums[s] += Sum<double>{total[s][0]}.total();
  }
}

template <class T>
void stats_sums(const StatsArgs& args, int64_t begin, int64_t end) {
  BlockReader<T> a, b;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t sample = task / args.chunks, first = task % args.chunks * kStatsTask;
    const int64_t last = std::min(first + kStatsTask, args.size);
    double* sums = args.sums + task * kStats;
    std::fill_n(sums, kStats, 0.0);
    for (int64_t i = first; i < last; i += kBlock) {
      const int64_t at = sample * args.size + i, n = std::min(kBlock, last - i);
      if (args.b.data) {
        add_stats<true>(a.read(args.a, at, n), b.read(args.b, at, n), n, sums);
      } else {
        add_stats<false, T>(a.read(args.a, at, n), nullptr, n, sums);
      }
    }
  }
}

// --- quantile --------------------------------------------------------------------------------------------------------
//
// Magnitudes are looked at as integers, their keys, which have the same order. Those in an interval of keys around the
// one that is looked for are counted by their leading bits, so that the interval shrinks to one of few, which are then
// put in order.

constexpr int64_t kQuantileTask = 65536;
constexpr int kRadix = 12;  // bits: the exponent, and a few that tell a NaN from infinity
constexpr int64_t kBins = 1 << kRadix;
constexpr int64_t kFew = 2048;  // magnitudes that are put in order

template <class T>
struct Keys;
template <>
struct Keys<float> {
  using Key = uint32_t;
  static constexpr int kBits = 31;
  static constexpr Key kInfinity = 0x7f800000;
};
template <>
struct Keys<double> {
  using Key = uint64_t;
  static constexpr int kBits = 63;
  static constexpr Key kInfinity = uint64_t(0x7ff0) << 48;
};

template <class T>
PYGEN_INLINE T value_of(typename Keys<T>::Key key) {
  T value;
  std::memcpy(&value, &key, sizeof(T));
  return value;
}

// Keys of a sample's elements, block by block.
template <class T>
class Magnitudes {
 public:
  using Key = typename Keys<T>::Key;
  Magnitudes(const QuantileArgs& args, int64_t sample) : args_(args), sample_(sample) {}

  // of [first, first + n), n at most kBlock
  const Key* read(int64_t first, int64_t n) {
    const T* t[kPredicted];
    for (int i = 0; i < args_.count; ++i) t[i] = reader_[i].read(args_.tensor[i], sample_ * args_.size + first, n);
    for_runs(args_.run, first, n, [&](int64_t r, int64_t at, int64_t count) {
      const double* c = args_.coefficients + (sample_ * args_.runs + r) * args_.count;
      combine(t, c, at - first, count);
    });
    return keys_;
  }

 private:
  void combine(const T* const* t, const double* c, int64_t at, int64_t n) {
    using V = Vec<T>;
    for_vectors<T>(n, [&](int64_t k, auto w) __attribute__((always_inline)) {
      V sum = V(T(c[0])) * V::loadu(t[0] + at + k, w);
      for (int i = 1; i < args_.count; ++i) sum = at::vec::fmadd(V(T(c[i])), V::loadu(t[i] + at + k, w), sum);
      sum.abs().store(reinterpret_cast<T*>(keys_) + at + k, w);
    });
  }

  const QuantileArgs& args_;
  int64_t sample_;
  BlockReader<T> reader_[kPredicted];
  alignas(64) Key keys_[kBlock];
};

template <class T>
class Quantile {
 public:
  using Key = typename Keys<T>::Key;
  Quantile(const Workers& workers, const QuantileArgs& args, int64_t sample)
      : workers_(workers), args_(args), sample_(sample), count_(args.size), rank_(args.rank) {}

  T find() {
    while (count_ > kFew && bits_ > 0) {
      if (!narrow()) return kNaN;
    }
    collect();
    Key key = first_, next = above_;
    if (held_ > 0) {
      const auto begin = few_.begin(), end = begin + held_, at = begin + rank_;
      std::nth_element(begin, at, end);
      key = *at;
      if (at + 1 != end) next = *std::min_element(at + 1, end);
      if (*std::max_element(at, end) > Keys<T>::kInfinity) return kNaN;
    } else if (rank_ + 1 < count_) {
      next = key;
    }
    const T below = value_of<T>(key);
    if (args_.weight == 0 || next == key) return below;
    const T above = value_of<T>(next), step = above - below;
    if (std::isinf(above)) return above;
    return args_.weight < 0.5 ? below + T(args_.weight) * step : above - T(1 - args_.weight) * step;
  }

 private:
  static constexpr Key kNone = std::numeric_limits<Key>::max();
  static constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();

  // f(keys, n) for the elements of a task
  template <class F>
  void for_blocks(int64_t task, const F& f) {
    Magnitudes<T> magnitudes(args_, sample_);
    const int64_t last = std::min((task + 1) * kQuantileTask, args_.size);
    for (int64_t i = task * kQuantileTask; i < last; i += kBlock) {
      const int64_t n = std::min(kBlock, last - i);
      f(magnitudes.read(i, n), n);
    }
  }

  // To the keys of the interval that share their next bits with the one looked for; false if a NaN was met.
  bool narrow() {
    const int shift = std::max(0, bits_ - kRadix);
    const Key span = Key(1) << bits_, first = first_;
    std::vector<uint64_t> bins(kBins);
    workers_(tiles(args_.size, kQuantileTask), [&](int64_t task) {
      uint32_t own[kBins] = {};
      for_blocks(task, [&](const Key* keys, int64_t n) {
        for (int64_t i = 0; i < n; ++i) {
          const Key key = keys[i] - first;
          if (key < span) ++own[key >> shift];
        }
      });
      for (int64_t k = 0; k < kBins; ++k) {
        if (own[k]) __atomic_fetch_add(&bins[size_t(k)], own[k], __ATOMIC_RELAXED);
      }
    });
    if (bits_ == Keys<T>::kBits) {  // a NaN made by arithmetic is a quiet one: its leading bits are not infinity's
      const auto infinite = size_t(Keys<T>::kInfinity >> shift);
      if (std::any_of(bins.begin() + int64_t(infinite) + 1, bins.end(), [](uint64_t n) { return n > 0; })) return false;
    }
    size_t bin = 0;
    while (rank_ >= int64_t(bins[bin])) rank_ -= int64_t(bins[bin++]);
    first_ += Key(bin) << shift;
    count_ = int64_t(bins[bin]);
    bits_ = shift;
    return true;
  }

  // The keys of the interval, unless they are many (and the same), and the least above it.
  void collect() {
    const Key span = Key(1) << bits_, first = first_;
    const bool hold = count_ <= kFew;
    if (hold) few_.resize(size_t(count_));
    std::atomic<int64_t> held{0};
    std::atomic<Key> above{kNone};
    workers_(tiles(args_.size, kQuantileTask), [&](int64_t task) {
      Key least = kNone;
      for_blocks(task, [&](const Key* keys, int64_t n) {
        for (int64_t i = 0; i < n; ++i) {
          if (keys[i] < first) continue;
          if (keys[i] - first >= span) {
            least = std::min(least, keys[i]);
          } else if (hold) {
            few_[size_t(held.fetch_add(1, std::memory_order_relaxed))] = keys[i];
          }
        }
      });
      Key known = above.load();
      while (least < known && !above.compare_exchange_weak(known, least)) {
      }
    });
    held_ = held, above_ = above;
  }

  const Workers& workers_;
  const QuantileArgs& args_;
  int64_t sample_;
  // keys [first, first + 2^bits), of which there are `count`, and `rank` before the one looked for
  Key first_ = 0, above_ = kNone;
  int bits_ = Keys<T>::kBits;
  int64_t count_, rank_, held_ = 0;
  std::vector<Key> few_;
};

template <class T>
void quantile(const Workers& workers, const QuantileArgs& args, int64_t sample, void* out) {
  static_cast<T*>(out)[sample] = Quantile<T>(workers, args, sample).find();
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
