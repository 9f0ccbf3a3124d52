// Cached sampling, one ISA tier: runs a pixel program for some images side by side. In PyTorch:
// reference/causal_sampler.py.
//
// A plane is kept as [row of a ring][column][image][channel]: the places that a stage reads for all images, or for all
// of a row, are the rows of one matrix. A stage is a product of such matrices with packed weights, and what follows it.
// Every output is a sum over k in one order, in chains of bounded length, whatever is computed beside it: images are
// the same bits alone and among others, on any number of threads.
//
// Where there are threads enough, an image has two: the second one computes the stages of the next row, a few columns
// behind the pixels that the first one draws. What it has not begun when it is wanted the first one computes itself, so
// that a thread that does not get to run holds up nobody.
#pragma once
#include <array>
#include <cstring>
#include <limits>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "categorical.h"
#include "causal_sampler_args.h"
#include "gate_math.h"
#include "logistic_mixture_args.h"
#include "scratch.h"
#include "table.h"

namespace pygen {
inline namespace CPU_CAPABILITY {

extern const MixtureKernels mixture_kernels;

namespace {
namespace sampler {

using program::Activation;
using program::kPanel;
using program::Phase;
using program::Plane;
using program::Program;
using program::Read;
using program::Stage;

// --- products --------------------------------------------------------------------------------------------------------

#if defined(CPU_CAPABILITY_AVX512)
constexpr int kRows = 12, kVectors = 2;  // of a tile: 24 accumulators, 2 and 1 of 32 registers
#elif defined(CPU_CAPABILITY_AVX2)
constexpr int kRows = 6, kVectors = 2;  // 12, 2 and 1 of 16
#else
constexpr int kRows = 4, kVectors = 1;  // a vector of at::vec is two registers here
#endif
constexpr int64_t kChain = 256;  // terms of one sum: of more, the rounding shows

// Some channels of the rows of a matrix.
template <class T>
struct Part {
  const T* a;
  int64_t row, depth;
};

// The parts [begin, end) of a sum, one chain, whose weights begin at row `depth` of a panel.
struct Chain {
  int64_t begin, end, depth;
};

template <class T>
PYGEN_INLINE Vec<T> load_weights(const T* p) {
  return Vec<T>::loadu(p);
}
PYGEN_INLINE Vec<float> load_weights(const c10::BFloat16* p) {
#if defined(CPU_CAPABILITY_AVX512)
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
#elif defined(CPU_CAPABILITY_AVX2)
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
#else
  float wide[Vec<float>::size()];
  for (int i = 0; i < Vec<float>::size(); ++i) wide[i] = float(p[i]);
  return Vec<float>::loadu(wide);
#endif
}

// c [R, ...] = sum over parts of a b, or has it added, for kVectors vectors of P panels that are `panel` elements
// apart. a starts at row `first` of each part.
template <class T, class W, int R, int P>
__attribute__((noinline)) void multiply_add(const Part<T>* parts, int64_t count, int64_t first, const W* b,
                                            int64_t panel, T* c, int64_t c_row, bool add) {
  using X = Vec<T>;
  X sum[R][P * kVectors];
#pragma GCC unroll 12
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < P * kVectors; ++v) sum[i][v] = X(T(0));
  }
  for (const Part<T>* part = parts; part < parts + count; ++part) {
    const int64_t row = part->row, depth = part->depth;
    const T* a[(R + 2) / 3];  // three rows to a pointer: what addresses can express
#pragma GCC unroll 4
    for (int i = 0; i < (R + 2) / 3; ++i) a[i] = part->a + (first + 3 * i) * row;
#pragma GCC unroll 2
    for (int64_t k = 0; k < depth; ++k, b += kPanel) {
      X columns[P * kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < P * kVectors; ++v) {
        columns[v] = load_weights(b + v / kVectors * panel + v % kVectors * X::size());
      }
#pragma GCC unroll 12
      for (int i = 0; i < R; ++i) {
        const X x(a[i / 3][i % 3 * row + k]);
#pragma GCC unroll 8
        for (int v = 0; v < P * kVectors; ++v) sum[i][v] = at::vec::fmadd(x, columns[v], sum[i][v]);
      }
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < P * kVectors; ++v) {
      T* to = c + i * c_row + v * X::size();
      (add ? X::loadu(to) + sum[i][v] : sum[i][v]).store(to);
    }
  }
}

template <class T, class W>
using Tile = void (*)(const Part<T>*, int64_t, int64_t, const W*, int64_t, T*, int64_t, bool);

template <class T, class W, int P, int... R>
constexpr std::array<Tile<T, W>, sizeof...(R)> tiles_of(std::integer_sequence<int, R...>) {
  return {multiply_add<T, W, R + 1, P>...};
}
template <class T, class W, int P, int kMost>
constexpr auto kTiles = tiles_of<T, W, P>(std::make_integer_sequence<int, kMost>());

// pre [rows, stride] = the parts' rows times packed weights [panels][depth][kPanel], chain by chain
template <class T, class W>
void multiply(const std::vector<Part<T>>& parts, const std::vector<Chain>& chains, int64_t rows, const W* weights,
              int64_t depth, int64_t outputs, T* pre, int64_t stride) {
  constexpr int64_t kColumns = kVectors * Vec<T>::size();
  const int64_t panel = depth * kPanel, panels = (outputs + kPanel - 1) / kPanel;
  const auto add = [&](const auto& by_rows, int64_t first, int64_t n, const W* b, T* c) {
    for (const Chain& chain : chains) {
      by_rows[size_t(n - 1)](parts.data() + chain.begin, chain.end - chain.begin, first, b + chain.depth * kPanel,
                             panel, c, stride, chain.depth > 0);
    }
  };
  if constexpr (kColumns == kPanel) {
    // few rows: several panels at once, so that there are sums enough that do not wait for each other
    constexpr int kFew = kRows / 4;
    if (rows <= kFew) {
      int64_t j = 0;
      const auto step = [&](const auto& by_rows, int64_t together) {
        for (; j + together <= panels; j += together) add(by_rows, 0, rows, weights + j * panel, pre + j * kPanel);
      };
      step(kTiles<T, W, 4, kFew>, 4);
      step(kTiles<T, W, 2, kFew>, 2);
      step(kTiles<T, W, 1, kFew>, 1);
      return;
    }
  }
  const int64_t cuts = (rows + kRows - 1) / kRows;  // tiles of nearly equal size
  for (int64_t j = 0; j < outputs; j += kColumns) {
    for (int64_t i = 0; i < cuts; ++i) {
      const int64_t first = rows * i / cuts, n = rows * (i + 1) / cuts - first;
      add(kTiles<T, W, 1, kRows>, first, n, weights + j / kPanel * panel + j % kPanel, pre + first * stride + j);
    }
  }
}

// --- what follows a product ------------------------------------------------------------------------------------------

// What a site's pre-activation is the sum of; null: nothing.
template <class T>
struct Sum {
  const T *product, *bias, *condition, *start;

  template <class N>
  PYGEN_INLINE Vec<T> operator()(int64_t i, N n) const {
    Vec<T> sum = product ? Vec<T>::loadu(product + i, n) : Vec<T>(T(0));
    for (const T* term : {bias, condition, start}) {
      if (term) sum = sum + Vec<T>::loadu(term + i, n);
    }
    return sum;
  }
};

// y = activation(pre) + residual at a site, with `outputs` columns of pre
template <class T>
PYGEN_INLINE void finish(Activation activation, const Sum<T>& pre, int64_t outputs, const T* residual, T* y) {
  using V = Vec<T>;
  const auto each = [&](int64_t channels, const auto& f) __attribute__((always_inline)) {
    for_vectors<T>(channels, [&](int64_t i, auto n) __attribute__((always_inline)) {
      V v = f(i, n);
      if (residual) v = v + V::loadu(residual + i, n);
      v.store(y + i, n);
    });
  };
  const int64_t half = outputs / 2;
  switch (activation) {
    case Activation::kNone:
      return each(outputs, pre);
    case Activation::kRelu:
      return each(outputs, [&](int64_t i, auto n) __attribute__((always_inline)) { return relu(pre(i, n)); });
    case Activation::kElu:
      return each(outputs, [&](int64_t i, auto n) __attribute__((always_inline)) { return elu(pre(i, n)); });
    case Activation::kGate:
      return each(half, [&](int64_t i, auto n)
                            __attribute__((always_inline)) { return gate<Gate::kTanh>(pre(i, n), pre(half + i, n)); });
    case Activation::kGlu:
      return each(half, [&](int64_t i, auto n) __attribute__((always_inline)) {
        return gate<Gate::kLinear>(pre(i, n), pre(half + i, n));
      });
    case Activation::kConcatElu:
      for_vectors<T>(outputs, [&](int64_t i, auto n) __attribute__((always_inline)) {
        V first, second;
        concat_elu(pre(i, n), first, second);
        if (residual) first = first + V::loadu(residual + i, n), second = second + V::loadu(residual + outputs + i, n);
        first.store(y + i, n);
        second.store(y + outputs + i, n);
      });
  }
}

// NaN if one is
template <class T>
inline T largest(const T* z, int64_t n) {
  using V = Vec<T>;
  constexpr T kLeast = -std::numeric_limits<T>::infinity();
  V most(kLeast);
  for_vectors<T>(n, [&](int64_t i, auto w) __attribute__((always_inline)) {
    most = at::vec::maximum(most, V::set(V(kLeast), V::loadu(z + i, w), w));
  });
  T lanes[V::size()];
  most.store(lanes);
  T top = lanes[0];
  for (const T v : lanes) top = v > top || v != v ? v : top;
  return top;
}

// sum of e^(z - top)
template <class T>
inline T sum_of_exponentials(const T* z, int64_t n, T top) {
  T sum(0);
  for (int64_t i = 0; i < n; ++i) sum += std::exp(z[i] - top);
  return sum;
}

// --- a program, for some images --------------------------------------------------------------------------------------

constexpr int64_t kSites = 4 * kRows;  // whose pre-activations are made at once, and stay in the first-level cache

// A moment's wait.
inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Between looks at what another thread does.
struct Patience {
  static constexpr int kMost = 1 << 12;  // about the time of a row: who waits longer has no core of its own
  int looks = 0;

  void operator()() {
    if (looks++ < kMost) {
      relax();
    } else {
      std::this_thread::yield();
    }
  }
};

template <class T, class W>
class Sampler {
 public:
  Sampler(const SamplerArgs& args, int64_t first, int64_t count, bool paired)
      : args_(args), p_(*args.program), first_(first), count_(count), area_(p_.height * p_.width) {
    int64_t size = 0;
    for (const Plane& plane : p_.planes) {
      rows_.push_back(plane.rows + (paired ? 1 : 0));  // the second thread is at most a row ahead
      offsets_.push_back(size);
      size += rows_.back() * columns(plane) * count_ * plane.channels;
    }
    planes_ = Scratch<T>(size);
    std::fill_n(static_cast<T*>(planes_), size, T(0));
    if (p_.draws_from() == program::Head::kCategorical) {
      logits_ = Scratch<float>(p_.levels);
    } else {
      describe_mixture();
    }
    words_.resize(size_t(count_));
    drawn_.resize(size_t(count_ * p_.channels));
    nll_.resize(size_t(count_));
    of_pixel_.resize(size_t(p_.groups));
    of_head_.resize(size_t(p_.groups));
    for (const Stage& s : p_.stages) {
      if (s.when() == Phase::kRow) of_row_.push_back(&s);
      if (s.when() == Phase::kHead) of_head_[size_t(s.group)].push_back(&s);
      if (s.when() != Phase::kPixel) continue;
      of_pixel_[size_t(s.group)].push_back(&s);
      of_known_.push_back(&s);
    }
    if (args_.log_prob) std::fill_n(args_.log_prob + first_, count_, 0.0);
    last_ = last_unknown();
    find_lags();
    begin_ahead(0);
  }

  SamplerEnd run() {
    Room room(p_);
    for (int64_t r = 0; r * p_.width <= last_; ++r) {
      blank_image_row(r);
      const auto of_known = in_row(of_known_, r);
      std::vector<std::vector<InRow>> of_pixel, of_head;
      for (size_t group = 0; group < size_t(p_.groups); ++group) {
        of_pixel.push_back(in_row(of_pixel_[group], r));
        of_head.push_back(in_row(of_head_[group], r));
      }
      for (int64_t c = 0; c < p_.width && r * p_.width + c <= last_;) {
        const int64_t known = end_of_known(r, c), end = std::max(known, c + 1);
        for (int64_t i = c; i < end; ++i) put_known(r, i);
        want(room, r * p_.width + std::min(p_.width, end + reach_));
        if (known > c) {  // side by side, stage by stage
          run_stages(room, of_known, r, c, known);
        } else {
          for (int64_t group = 0; group < p_.groups; ++group) {
            run_stages(room, of_pixel[size_t(group)], r, c, c + 1);
            if (!any_unknown(group, r, c)) continue;
            run_stages(room, of_head[size_t(group)], r, c, c + 1);
            const SamplerEnd how = draw(group, r, c);
            if (how != SamplerEnd::kDone) return how;
          }
        }
        c = end;
        done_.store(r * p_.width + c, std::memory_order_release);
      }
      if (args_.tick && !args_.tick(args_.context, count_)) return SamplerEnd::kStopped;
    }
    return SamplerEnd::kDone;
  }

  // What the second thread does, until all is over.
  void help(const std::atomic<bool>& over) {
    Room room(p_);
    for (Patience wait; !over.load(std::memory_order_relaxed);) {
      if (done_.load(std::memory_order_acquire) < next_.load(std::memory_order_relaxed) || !advance(room)) {
        wait();
      } else {
        wait = {};
      }
    }
  }

 private:
  static int64_t columns(const Plane& plane) { return plane.left + plane.width + plane.right; }

  // Where the places of a plane lie in one row: of the first image and channel.
  struct Line {
    T* first;
    int64_t scale, step, site;  // step: from column to column; 0: of a transient plane. site: from image to image

    T* at(int64_t c) const { return first + (scale == 1 ? c : c / scale) * step; }
  };

  // A stage in one row.
  struct InRow {
    const Stage* stage;
    Line out, start, residual;
    struct Term {
      Line line;
      int64_t depth;
    };
    std::vector<Term> terms;
    std::vector<Chain> chains;
    bool even;  // whether its columns lie side by side in all planes
  };

  Line line(int64_t plane, int64_t r, int64_t dy = 0, int64_t dx = 0, int64_t channel = 0) {
    const Plane& p = p_.planes[size_t(plane)];
    const int64_t rows = rows_[size_t(plane)], row = r / p.scale + dy, ring = (row % rows + rows) % rows,
                  step = count_ * p.channels;
    T* first = planes_ + offsets_[size_t(plane)] + (ring * columns(p) + p.left + dx) * step + channel;
    return {first, p.scale, p.transient ? 0 : step, p.channels};
  }

  // --- stages

  std::vector<InRow> in_row(const std::vector<const Stage*>& stages, int64_t r) {
    std::vector<InRow> found;
    for (const Stage* s : stages) {
      if (r % s->row_every != s->row_at) continue;
      InRow at{s, line(s->out, r, 0, 0, s->first), {}, {}, {}, {}, s->column_every == p_.planes[size_t(s->out)].scale};
      if (s->start >= 0) at.start = line(s->start, r, 0, 0, s->start_first);
      if (s->residual >= 0) at.residual = line(s->residual, r, 0, 0, s->residual_first);
      int64_t depth = 0;
      for (const Read& read : s->reads) {
        at.even &= s->column_every == p_.planes[size_t(read.plane)].scale;
        for (int64_t k = 0; k < read.count;) {
          if (depth % kChain == 0) at.chains.push_back({int64_t(at.terms.size()), 0, depth});
          const int64_t n = std::min(read.count - k, kChain - depth % kChain);
          at.terms.push_back({line(read.plane, r, read.dy, read.dx, read.first + k), n});
          at.chains.back().end = int64_t(at.terms.size());
          depth += n;
          k += n;
        }
      }
      found.push_back(std::move(at));
    }
    return found;
  }

  // What a thread needs to itself.
  struct Room {
    explicit Room(const Program& p) {
      int64_t widest = 0;
      for (const Stage& s : p.stages) widest = std::max(widest, s.panels() * kPanel);
      pre = Scratch<T>(kSites * widest);
    }
    Scratch<T> pre{0};
    std::vector<Part<T>> parts;
  };

  // Some stages, or one, for the pixels [begin, end) of a row.
  void run_stages(Room& room, const std::vector<InRow>& stages, int64_t r, int64_t begin, int64_t end) {
    for (const InRow& at : stages) run_stage_at(room, at, r, begin, end);
  }
  void run_stage_at(Room& room, const InRow& at, int64_t r, int64_t begin, int64_t end) {
    const int64_t step = at.stage->column_every,
                  first = begin + (step == 1 ? 0 : to_next(at.stage->column_at - begin, step));
    if (first >= end) return;
    const int64_t n = step == 1 ? end - first : (end - 1 - first) / step + 1;
    for (int64_t i = 0; i < n; i += at.even ? n : 1) run_stage(room, at, r, first + i * step, i, at.even ? n : 1);
  }
  static int64_t to_next(int64_t distance, int64_t step) { return (distance % step + step) % step; }

  // n columns from c on, which is column `i` of a run.
  void run_stage(Room& room, const InRow& at, int64_t r, int64_t c, int64_t i, int64_t n) {
    const Stage& s = *at.stage;
    std::vector<Part<T>>& parts = room.parts;
    const auto place = [&](const Line& line) { return line.step ? line.at(c) : line.first + i * count_ * line.site; };
    const int64_t stride = s.panels() * kPanel, sites = n * count_;
    T* const y = place(at.out);
    const T* const start = s.start < 0 ? nullptr : place(at.start);
    const T* const residual = s.residual < 0 ? nullptr : place(at.residual);
    const T* const bias = s.bias < 0 ? nullptr : static_cast<const T*>(args_.tensors[s.bias]);
    parts.clear();
    for (const auto& term : at.terms) parts.push_back({place(term.line), term.line.site, term.depth});
    for (int64_t site = 0; site < sites; site += kSites) {
      const int64_t some = std::min(kSites, sites - site);
      if (!parts.empty()) {
        multiply<T, W>(parts, at.chains, some, static_cast<const W*>(args_.tensors[s.weight]), s.depth(), s.outputs,
                       room.pre, stride);
        for (Part<T>& part : parts) part.a += some * part.row;
      }
      for (int64_t k = 0; k < some; ++k) {
        const Sum<T> pre{parts.empty() ? nullptr : room.pre + k * stride, bias, condition(s, r, c, site + k),
                         start ? start + (site + k) * at.start.site : nullptr};
        finish(s.activates(), pre, s.outputs, residual ? residual + (site + k) * at.residual.site : nullptr,
               y + (site + k) * at.out.site);
      }
    }
  }

  // [outputs] of a site, or null
  const T* condition(const Stage& s, int64_t r, int64_t c, int64_t site) const {
    if (s.condition < 0) return nullptr;
    int64_t index = first_ + site % count_;
    if (args_.is_map[s.condition]) {
      const Plane& out = p_.planes[size_t(s.out)];
      index = (index * out.height + r / out.scale) * out.width + (c + site / count_ * s.column_every) / out.scale;
    }
    return static_cast<const T*>(args_.conditions[s.condition]) + index * s.outputs;
  }

  // --- stages of a row, ahead of its pixels

  // How many columns a stage of a row is behind the pixels above, and how far right of itself a pixel reads.
  void find_lags() {
    lags_.assign(p_.stages.size(), 0);
    std::vector<int64_t> of_plane(p_.planes.size(), 0);
    const auto right = [&](int64_t plane, int64_t dx) {  // the columns that a place is right of its reader's, at most
      return std::max<int64_t>(0, (dx + 1) * p_.planes[size_t(plane)].scale - 1);
    };
    const auto each_read = [&](const Stage& s, const auto& f) {
      for (const int64_t plane : {s.start, s.residual}) {
        if (plane >= 0) f(plane, 0);
      }
      for (const Read& read : s.reads) f(read.plane, read.dx);
    };
    for (const Stage* s : of_row_) {
      int64_t& lag = lags_[size_t(s - p_.stages.data())];
      each_read(*s,
                [&](int64_t plane, int64_t dx) { lag = std::max(lag, of_plane[size_t(plane)] + right(plane, dx)); });
      of_plane[size_t(s->out)] = std::max(of_plane[size_t(s->out)], lag);
    }
    for (const Stage& s : p_.stages) {
      if (s.when() == Phase::kRow) continue;
      each_read(s, [&](int64_t plane, int64_t dx) { reach_ = std::max(reach_, right(plane, dx)); });
    }
  }

  void begin_ahead(int64_t r) {
    ahead_.row = r;
    ahead_.stages = in_row(of_row_, r);
    ahead_.ends.assign(ahead_.stages.size(), 0);
  }

  // Computes what the pixels that are done allow; false: another thread is at it.
  bool advance(Room& room) {
    if (busy_.test_and_set(std::memory_order_acquire)) return false;
    const int64_t width = p_.width, r = ahead_.row;
    const int64_t above = std::min(width, done_.load(std::memory_order_acquire) - (r - 1) * width);
    int64_t ready = width;
    for (size_t i = 0; i < ahead_.stages.size(); ++i) {
      const InRow& at = ahead_.stages[i];
      int64_t& begin = ahead_.ends[i];
      const int64_t end = above == width ? width : above - lags_[size_t(at.stage - p_.stages.data())];
      if (end > begin) {
        run_stage_at(room, at, r, begin, end);
        begin = end;
      }
      ready = std::min(ready, begin);
    }
    const int64_t strip = std::max<int64_t>(1, kRows / 2 / count_);  // columns at once: enough for a good tile
    if (ready < width) {
      next_.store((r - 1) * width + std::min(width, above + strip), std::memory_order_relaxed);
    } else if ((r + 1) * width <= last_) {
      begin_ahead(r + 1);
      next_.store(r * width + std::min(width, strip), std::memory_order_relaxed);
    } else {
      next_.store(area_ + 1, std::memory_order_relaxed);
    }
    ready_.store(r * width + ready, std::memory_order_release);
    busy_.clear(std::memory_order_release);
    return true;
  }

  // Makes sure that the stages of the rows are computed for so many columns.
  void want(Room& room, int64_t columns) {
    for (Patience wait; ready_.load(std::memory_order_acquire) < columns;) {
      if (!advance(room)) wait();
    }
  }

  // --- what is known

  int64_t index(int64_t image, int64_t channel, int64_t r, int64_t c) const {
    return ((first_ + image) * p_.channels + channel) * area_ + r * p_.width + c;
  }
  std::pair<int64_t, int64_t> channels_of(int64_t group) const {
    return p_.groups > 1 ? std::pair{group, group + 1} : std::pair{int64_t(0), p_.channels};
  }
  bool known(int64_t image, int64_t group, int64_t r, int64_t c) const {
    return args_.known[index(image, channels_of(group).first, r, c)];  // channels of a group are known together
  }
  bool any_unknown(int64_t group, int64_t r, int64_t c) const {
    for (int64_t i = 0; i < count_; ++i) {
      if (!known(i, group, r, c)) return true;
    }
    return false;
  }
  int64_t last_unknown() const {
    for (int64_t at = area_ - 1; at >= 0; --at) {
      for (int64_t group = 0; group < p_.groups; ++group) {
        if (any_unknown(group, at / p_.width, at % p_.width)) return at;
      }
    }
    return -1;
  }
  int64_t end_of_known(int64_t r, int64_t c) const {
    for (; c < p_.width; ++c) {
      for (int64_t group = 0; group < p_.groups; ++group) {
        if (any_unknown(group, r, c)) return c;
      }
    }
    return c;
  }

  // --- the image

  void blank_image_row(int64_t r) {  // a row of the ring that held another one; channels beyond the image's are 1
    const Line image = line(0, r);
    T* const row = image.first;
    const int64_t wide = image.site;
    for (int64_t i = 0; i < p_.width * count_; ++i) {
      for (int64_t k = 0; k < wide; ++k) row[i * wide + k] = k < p_.channels ? T(0) : T(1);
    }
  }
  void put(int64_t image, int64_t channel, int64_t r, int64_t c, int64_t level) {
    const Line row = line(0, r);
    row.at(c)[image * row.site + channel] = T(level) * T(2.0 / double(p_.levels - 1)) - T(1);
  }
  void put_known(int64_t r, int64_t c) {
    for (int64_t image = 0; image < count_; ++image) {
      for (int64_t channel = 0; channel < p_.channels; ++channel) {
        const int64_t i = index(image, channel, r, c);
        if (args_.known[i]) put(image, channel, r, c, args_.x[i]);
      }
    }
  }

  // --- draws

  Stream stream_at(int64_t pixel, int64_t within, int64_t numbers) const {
    Stream s = args_.stream;
    if (s.ids) {
      s.ids += first_;
    } else {
      s.first_sample += uint64_t(first_);
    }
    s.offset += pixel * p_.draws() + within;
    s.row = numbers;
    return s;
  }

  SamplerEnd draw(int64_t group, int64_t r, int64_t c) {
    const bool fine = p_.draws_from() == program::Head::kCategorical ? draw_level(group, r, c) : draw_mixture(r, c);
    if (!fine) {
      return p_.draws_from() == program::Head::kCategorical ? SamplerEnd::kBadLogits : SamplerEnd::kBadMixture;
    }
    const auto [begin, end] = channels_of(group);
    for (int64_t image = 0; image < count_; ++image) {
      for (int64_t channel = begin; channel < end; ++channel) {
        const int64_t i = index(image, channel, r, c);
        if (!args_.known[i]) args_.x[i] = drawn_[size_t(image * p_.channels + channel)];
        put(image, channel, r, c, args_.x[i]);
      }
    }
    return args_.log_prob ? add_log_prob(group, r, c) : SamplerEnd::kDone;
  }

  bool draw_level(int64_t group, int64_t r, int64_t c) {
    const int64_t pixel = r * p_.width + c, levels = p_.levels;
    if (args_.noise) {
      for (int64_t i = 0; i < count_; ++i) {
        words_[size_t(i)] = uint32_t(args_.noise[((first_ + i) * p_.draws() + group) * area_ + pixel] * 4294967296.0);
      }
    } else if (args_.temperature > 0) {
      fill_values<Distribution::kBits>(stream_at(pixel, group, 1), 0, count_, words_.data());
    }
    const T* z = parameters(r, c);
    bool fine = true;
    for (int64_t image = 0; image < count_; ++image, z += levels) {
      if (known(image, group, r, c)) continue;
      int64_t& level = drawn_[size_t(image * p_.channels + group)];
      const T top = largest(z, levels);
      fine &= std::isfinite(top);
      if (args_.temperature == 0) {
        level = std::max_element(z, z + levels) - z;
        continue;
      }
      for (int64_t k = 0; k < levels; ++k) logits_[k] = float(z[k] - top) / args_.temperature;
      filter();
      level = categorical_row(static_cast<const float*>(logits_), levels, words_[size_t(image)]);
      fine &= level >= 0;
    }
    return fine;
  }

  // As `kept` of reference/causal_sampler.py.
  void filter() {
    constexpr float kNone = -std::numeric_limits<float>::infinity();
    float* const z = logits_;
    const int64_t levels = p_.levels;
    if (args_.top_k > 0 && args_.top_k < levels) {
      sorted_.assign(z, z + levels);
      std::nth_element(sorted_.begin(), sorted_.begin() + (args_.top_k - 1), sorted_.end(), std::greater<>());
      const float least = sorted_[size_t(args_.top_k - 1)];
      for (int64_t k = 0; k < levels; ++k) z[k] = z[k] < least ? kNone : z[k];
    }
    if (args_.top_p >= 1) return;
    order_.clear();
    uint64_t total = 0;
    for (int64_t k = 0; k < levels; ++k) {
      order_.push_back({philox::exp_units(z[k]), k});
      total += order_.back().first;
    }
    std::sort(order_.begin(), order_.end(), std::greater<>());
    uint64_t likelier = 0;
    for (size_t i = 0; i < order_.size();) {
      size_t next = i;
      uint64_t sum = 0;
      for (; next < order_.size() && order_[next].first == order_[i].first; ++next) {
        sum += order_[next].first;
        if (double(likelier) >= args_.top_p * double(total)) z[order_[next].second] = kNone;
      }
      likelier += sum;
      i = next;
    }
  }

  // --- mixtures, whose pixels are here those of one image: each has its own row of the stream

  void describe_mixture() {
    MixtureArgs& m = mixture_;
    m.samples = 1, m.area = count_, m.channels = p_.channels, m.mixtures = p_.mixtures;
    m.parameters = p_.head_channels(), m.autoregressive = p_.channels > 1, m.last = p_.levels - 1;
    set_places(m, p_.layout);
    m.p_at = {0, 1, m.parameters};
  }
  const T* parameters(int64_t r, int64_t c) { return line(p_.output, r).at(c); }
  static constexpr int kType = int(std::is_same_v<T, double> ? FloatType::kF64 : FloatType::kF32);

  bool draw_mixture(int64_t r, int64_t c) {
    const int64_t pixel = r * p_.width + c;
    MixtureSampleArgs m{};
    static_cast<MixtureArgs&>(m) = mixture_;
    m.p = parameters(r, c);
    m.stream = stream_at(pixel, 0, p_.draws());
    m.noise = args_.noise ? args_.noise + first_ * p_.draws() * area_ + pixel : nullptr;
    m.noise_type = FloatType::kF64;
    m.noise_at = {0, area_, p_.draws() * area_};
    m.coldness = float(std::min(1 / double(args_.temperature), 3e38));
    m.scale_temperature = args_.temperature;
    m.quantized = true;
    values_.resize(size_t(count_ * p_.channels));
    m.x = values_.data();
    m.x_at = {0, 1, p_.channels};
    mixture_kernels.sample[kType](m, 0, (count_ + kMixtureTask - 1) / kMixtureTask);
    bool fine = true;
    for (int64_t i = 0; i < count_ * p_.channels; ++i) {
      const float v = float(values_[size_t(i)]), last = float(p_.levels - 1);
      fine &= v == v || known(i / p_.channels, 0, r, c);
      const float level = std::floor((v + 1.0f) * (last / 2) + 0.5f);
      drawn_[size_t(i)] = v == v ? int64_t(std::min(std::max(level, 0.0f), last)) : 0;
    }
    return fine;
  }

  SamplerEnd add_log_prob(int64_t group, int64_t r, int64_t c) {
    if (p_.draws_from() == program::Head::kMixture) {
      MixtureNllArgs m{};
      static_cast<MixtureArgs&>(m) = mixture_;
      for (int64_t i = 0; i < count_; ++i) {
        for (int64_t k = 0; k < p_.channels; ++k) drawn_[size_t(i * p_.channels + k)] = args_.x[index(i, k, r, c)];
      }
      m.p = parameters(r, c);
      m.x = drawn_.data();
      m.integers = true, m.x_type = int(IntType::kI64), m.x_at = {0, 1, p_.channels};
      m.nll = nll_.data();
      if (!mixture_kernels.nll[kType](m, 0, (count_ + kMixtureTask - 1) / kMixtureTask)) return SamplerEnd::kBadMixture;
      for (int64_t i = 0; i < count_; ++i) {
        if (!known(i, 0, r, c)) args_.log_prob[first_ + i] -= double(nll_[size_t(i)]);
      }
      return SamplerEnd::kDone;
    }
    const T* z = parameters(r, c);
    for (int64_t i = 0; i < count_; ++i, z += p_.levels) {
      if (known(i, group, r, c)) continue;
      const T top = largest(z, p_.levels);
      const T sum = sum_of_exponentials(z, p_.levels, top);
      args_.log_prob[first_ + i] += double(z[args_.x[index(i, group, r, c)]] - top) - std::log(double(sum));
    }
    return SamplerEnd::kDone;
  }

  const SamplerArgs& args_;
  const Program& p_;
  const int64_t first_, count_, area_;
  int64_t last_ = -1, reach_ = 0;
  std::vector<int64_t> rows_, offsets_;  // of planes
  std::vector<int64_t> lags_;            // of stages
  struct {
    int64_t row;
    std::vector<InRow> stages;
    std::vector<int64_t> ends;
  } ahead_;  // of who holds busy_
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
  // Pixels and columns, counted through the rows: pixels that are done; from how many on there is something to compute
  // ahead; columns for which that is done.
  std::atomic<int64_t> done_{0}, next_{0}, ready_{0};
  Scratch<T> planes_{0};
  Scratch<float> logits_{0};
  std::vector<const Stage*> of_row_, of_known_;                // the latter: of pixels, in the program's order
  std::vector<std::vector<const Stage*>> of_pixel_, of_head_;  // by group
  std::vector<uint32_t> words_;
  std::vector<float> sorted_;
  std::vector<std::pair<uint32_t, int64_t>> order_;
  std::vector<T> values_, nll_;
  std::vector<int64_t> drawn_;
  MixtureArgs mixture_{};
};

template <class T, class W>
SamplerEnd run(const SamplerArgs& args, int64_t first, int64_t count, SamplerPair* pair) {
  std::optional<Sampler<T, W>> sampler;
  struct Leave {  // however it ends, the sampler stays until nobody uses it
    SamplerPair* pair;
    ~Leave() {
      if (!pair) return;
      pair->over = true;
      for (Patience wait; pair->helped && !pair->left;) wait();
    }
  } leave{pair};
  sampler.emplace(args, first, count, pair != nullptr);
  if (pair) pair->sampler = &*sampler;
  return sampler->run();
}

template <class T, class W>
void help(SamplerPair& pair) {
  pair.helped = true;
  for (Patience wait; !pair.over && !pair.sampler;) wait();
  if (!pair.over) static_cast<Sampler<T, W>*>(pair.sampler.load())->help(pair.over);
  pair.left = true;
}

}  // namespace sampler
}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
