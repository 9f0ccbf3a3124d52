// Convolutions over live taps, one ISA tier.
//
// Whatever the stride, the direction or the border, a tap joins runs of input pixels to runs of output pixels: borders
// are shorter runs, and nothing is padded or copied to be so. A tile of up to a dozen pixels and a few vectors of
// output channels stays in registers while one tap's input channels are summed, from zero; then it is added to the
// output. One sum over all taps would be a chain so long that it rounds worse than the library's. With few input
// channels one sum takes several taps.
//
// The gradient of x is the same with negated taps and transposed weights. The gradient of the weight is the same tile
// with pixels and channels exchanged: up to 256 pixels are summed from zero, then added.
#pragma once
#include <array>
#include <optional>
#include <utility>
#include <vector>

#include "gate_math.h"
#include "masked_conv_args.h"
#include "pixels.h"
#include "scratch.h"
#include "tile.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {
namespace conv {

// --- where taps lead -------------------------------------------------------------------------------------------------

// Along an axis: output out + j out_step meets input in + j in_step, for j < count.
struct Run {
  int64_t out, out_step, in, in_step, count;
};

inline int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }

// What one tap joins of the outputs [begin, end): in = stride out + offset, transposed stride in = out + offset.
inline Run run_of(int64_t n_in, int64_t offset, int64_t stride, bool transposed, int64_t begin, int64_t end) {
  if (transposed) {
    const int64_t first = std::max<int64_t>(0, -floor_div(-(begin + offset), stride));
    const int64_t last = std::min(n_in, floor_div(end - 1 + offset, stride) + 1);
    return {stride * first - offset, stride, first, 1, std::max<int64_t>(0, last - first)};
  }
  const int64_t first = std::max(begin, -floor_div(offset, stride));
  const int64_t last = std::min(end, floor_div(n_in - 1 - offset, stride) + 1);
  return {first, 1, stride * first + offset, stride, std::max<int64_t>(0, last - first)};
}

struct Rect {
  int64_t top, bottom, left, right;
  int64_t width() const { return right - left; }
  int64_t pixels() const { return (bottom - top) * width(); }
};

// An image cut into rectangles of whole rows, or of parts of one row, of about so many pixels.
inline std::vector<Rect> cut(int64_t height, int64_t width, int64_t pixels) {
  std::vector<Rect> rects;
  const int64_t rows = std::max<int64_t>(1, pixels / std::max<int64_t>(1, width)), parts = tiles(width, pixels);
  for (int64_t top = 0; top < height; top += rows) {
    for (int64_t i = 0; i < parts; ++i) {
      rects.push_back({top, std::min(height, top + rows), width * i / parts, width * (i + 1) / parts});
    }
  }
  return rects;
}

// --- images into and out of scratch memory ---------------------------------------------------------------------------

// Calls f(first element, pixels, pixels before) for runs of evenly spaced pixels of a rectangle: all of it, or its
// rows.
template <class S, class F>
inline void for_runs(const ConvImages& x, int64_t sample, const Rect& rect, F&& f) {
  S* const data = static_cast<S*>(const_cast<void*>(x.data)) + sample * x.sample + rect.left * x.pixel;
  const bool even = rect.width() == x.width && x.row == x.width * x.pixel;
  const int64_t n = even ? rect.pixels() : rect.width();
  for (int64_t r = rect.top, done = 0; r < rect.bottom && n > 0; r += even ? rect.bottom - rect.top : 1, done += n) {
    f(data + r * x.row, n, done);
  }
}

template <class S, class T>
void load_rect(const ConvImages& x, int64_t sample, const Rect& rect, T* out, int64_t stride) {
  for_runs<S>(x, sample, rect, [&](const S* from, int64_t n, int64_t done) {
    load_pixels(from, x.channel, x.pixel, x.channels, n, out + done * stride, stride);
  });
}

template <class S, class T>
void store_rect(const ConvImages& x, int64_t sample, const Rect& rect, const T* in, int64_t stride) {
  for_runs<S>(x, sample, rect, [&](S* to, int64_t n, int64_t done) {
    store_pixels(to, x.channel, x.pixel, x.channels, n, in + done * stride, stride);
  });
}

// An image whose channels lie side by side.
template <class T>
struct View {
  const T* data;
  int64_t row, pixel;
};

template <class S, class T>
constexpr bool readable(const ConvImages& x) {
  return std::is_same_v<S, T> && (x.channel == 1 || x.channels == 1);
}

// As it lies, if that will do; else the rows [top, bottom) in scratch memory.
template <class S, class T>
View<T> view(const ConvImages& x, int64_t sample, int64_t top, int64_t bottom, T* scratch) {
  if constexpr (std::is_same_v<S, T>) {
    if (readable<S, T>(x)) return {static_cast<const T*>(x.data) + sample * x.sample, x.row, x.pixel};
  }
  load_rect<S>(x, sample, {top, bottom, 0, x.width}, scratch, x.channels);
  return {scratch - top * x.width * x.channels, x.width * x.channels, x.channels};
}

// --- a convolution without what follows it ---------------------------------------------------------------------------

inline int64_t group_of(const ConvArgs& a, int64_t channel, int64_t channels) {
  return a.interleaved ? channel % a.groups : channel / (channels / a.groups);
}
inline bool reaches(const ConvArgs& a, int64_t in, int64_t out) { return a.strict ? in < out : in <= out; }

// Weights in the order in which tiles read them, for the convolution itself or for the gradient of its input.
template <class T>
class Convolution {
 public:
  // weight: of T, [taps, channels_in, channels of pre]
  Convolution(const ConvArgs& a, const T* weight, bool gradient)
      : stride_(a.stride),
        transposed_(a.transposed != gradient),
        height_(gradient ? a.pre.height : a.x.height),
        width_(gradient ? a.pre.width : a.x.width),
        channels_(gradient ? a.pre.channels : a.channels_in),
        out_(gradient ? a.channels_in : a.pre.channels),
        vectors_(tiles(out_, Vec<T>::size())),
        panels_(tiles(vectors_, kMaxVectors)) {
    for (int64_t t = 0; t < a.taps; ++t) {
      const int64_t sign = gradient ? -1 : 1, dy = sign * a.offsets[2 * t], dx = sign * a.offsets[2 * t + 1];
      if (t != a.masked) {
        add({t, dy, dx, 0, 1, channels_, -1});
        continue;
      }
      const int64_t halves = gradient && a.gated() ? 2 : 1, half = channels_ / halves, size = half / a.groups;
      for (int64_t group = 0; group < a.groups; ++group) {
        const int64_t row = int64_t(live_.size());
        live_.resize(live_.size() + size_t(columns()));
        bool any = false;
        for (int64_t c = 0; c < out_; ++c) {
          const int64_t period = !gradient && a.gated() ? out_ / 2 : out_, other = group_of(a, c % period, period);
          const bool live = gradient ? reaches(a, other, group) : reaches(a, group, other);
          live_[size_t(row + c)] = T(live);
          any |= live;
        }
        for (int64_t h = 0; h < halves && any; ++h) {
          add({t, dy, dx, h * half + (a.interleaved ? group : group * size), a.interleaved ? a.groups : 1, size, row});
        }
      }
    }
    pack(weight, gradient ? 1 : out_, gradient ? channels_ : 1);
    if (channels_ < kFewChannels && !transposed_) find_segments(gradient ? a.x.width : a.pre.width);
  }

  int64_t columns() const { return vectors_ * Vec<T>::size(); }

  // The rows of the input that a rectangle of the output reads.
  std::pair<int64_t, int64_t> rows_of(const Rect& rect) const {
    int64_t top = height_, bottom = 0;
    for (const auto& term : terms_) {
      const Run rows = run_of(height_, term.dy, stride_, transposed_, rect.top, rect.bottom);
      if (rows.count == 0) continue;
      top = std::min(top, rows.in);
      bottom = std::max(bottom, rows.in + (rows.count - 1) * rows.in_step + 1);
    }
    return {std::min(top, bottom), bottom};
  }

  // out [pixels of rect, step] = the convolution, columns() of each pixel
  void operator()(const View<T>& x, const Rect& rect, T* out, int64_t step) const {
    for (int64_t q = 0; q < rect.pixels(); ++q) std::fill_n(out + q * step, columns(), T(0));
    for (int64_t panel = 0; panel < panels_; ++panel) {
      const int64_t first = vectors_ * panel / panels_, vectors = vectors_ * (panel + 1) / panels_ - first;
      const int64_t column = first * Vec<T>::size();
      Tile<T> t{};
      t.b = packed_ + depth_ * column;
      t.b_step = vectors * Vec<T>::size();
      t.a_start = t.b_start = &kZero;
      t.parts = 1;
      if (!segments_.empty()) few_channels(x, rect, t, vectors, out + column, step);
      for (const auto& term : terms_) {
        if (term.live < 0 && !segments_.empty()) continue;
        Tile<T> of_term = t;
        if (term.live >= 0) {
          of_term.live = live_.data() + term.live + column;
          if (std::all_of(of_term.live, of_term.live + t.b_step, [](T live) { return live == 0; })) continue;
        }
        of_term.b += term.packed * t.b_step;
        of_term.a_step = term.step;
        of_term.depth = term.depth;
        add_term(x, rect, term, of_term, vectors, out + column, step);
      }
    }
  }

 private:
  static constexpr int64_t kFewChannels = 16;
  static constexpr int64_t kZero = 0;

  // A tap, of the channels first + k step, k < depth; and the output's columns that they reach
  struct Term {
    int64_t tap, dy, dx, first, step, depth, live, packed = 0;
  };
  // Columns of an image that the same taps reach.
  struct Segment {
    int64_t left, right;
    std::vector<size_t> terms;
  };

  void add(Term term) {
    term.packed = depth_;
    depth_ += term.depth;
    terms_.push_back(term);
  }

  // [panels][terms][depth][columns of the panel]
  void pack(const T* weight, int64_t channel_step, int64_t out_step) {
    packed_ = Scratch<T>(depth_ * columns());
    T* to = packed_;
    for (int64_t panel = 0; panel < panels_; ++panel) {
      const int64_t begin = vectors_ * panel / panels_ * Vec<T>::size();
      const int64_t end = vectors_ * (panel + 1) / panels_ * Vec<T>::size();
      for (const auto& term : terms_) {
        for (int64_t k = 0; k < term.depth; ++k) {
          const T* from = weight + term.tap * channels_ * out_ + (term.first + k * term.step) * channel_step;
          for (int64_t o = begin; o < end; ++o) *to++ = o < out_ ? from[o * out_step] : T(0);
        }
      }
    }
  }

  void find_segments(int64_t width) {
    std::vector<int64_t> ends{0, width};
    for (const auto& term : terms_) {
      const Run run = run_of(width_, term.dx, stride_, false, 0, width);
      if (term.live < 0 && run.count > 0) ends.insert(ends.end(), {run.out, run.out + run.count});
    }
    std::sort(ends.begin(), ends.end());
    ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
    for (size_t i = 0; i + 1 < ends.size(); ++i) {
      Segment segment{ends[i], ends[i + 1], {}};
      for (size_t j = 0; j < terms_.size(); ++j) {
        const Run run = run_of(width_, terms_[j].dx, stride_, false, segment.left, segment.right);
        if (terms_[j].live < 0 && run.count == segment.right - segment.left) segment.terms.push_back(j);
      }
      segments_.push_back(segment);
    }
  }

  void add_term(const View<T>& x, const Rect& rect, const Term& term, Tile<T> t, int64_t vectors, T* out,
                int64_t step) const {
    const Run rows = run_of(height_, term.dy, stride_, transposed_, rect.top, rect.bottom);
    const Run columns = run_of(width_, term.dx, stride_, transposed_, rect.left, rect.right);
    if (columns.count == 0) return;
    t.a_row = columns.in_step * x.pixel;
    t.c_row = columns.out_step * step;
    for (int64_t j = 0; j < rows.count; ++j) {
      t.a = x.data + (rows.in + j * rows.in_step) * x.row + columns.in * x.pixel + term.first;
      t.c = out + ((rows.out + j * rows.out_step - rect.top) * rect.width() + columns.out - rect.left) * step;
      multiply_rows<false>(t, vectors, columns.count);
    }
  }

  // All taps of a segment in one sum.
  void few_channels(const View<T>& x, const Rect& rect, Tile<T> t, int64_t vectors, T* out, int64_t step) const {
    std::vector<int64_t> a_start(terms_.size()), b_start(terms_.size());
    t.a_start = a_start.data();
    t.b_start = b_start.data();
    t.a_step = 1;
    t.depth = channels_;
    t.a_row = stride_ * x.pixel;
    t.c_row = step;
    for (const auto& segment : segments_) {
      const int64_t left = std::max(rect.left, segment.left), right = std::min(rect.right, segment.right);
      if (left >= right) continue;
      for (int64_t r = rect.top; r < rect.bottom; ++r) {
        t.parts = 0;
        for (const size_t j : segment.terms) {
          const int64_t row = stride_ * r + terms_[j].dy;
          if (row < 0 || row >= height_) continue;
          a_start[size_t(t.parts)] = row * x.row + terms_[j].dx * x.pixel;
          b_start[size_t(t.parts++)] = terms_[j].packed * t.b_step;
        }
        t.a = x.data + stride_ * left * x.pixel;
        t.c = out + ((r - rect.top) * rect.width() + left - rect.left) * step;
        if (t.parts) multiply_rows<false>(t, vectors, right - left);
      }
    }
  }

  int64_t stride_;
  bool transposed_;
  int64_t height_, width_, channels_, out_;  // of the input; channels of the output
  int64_t vectors_, panels_, depth_ = 0;
  std::vector<Term> terms_;
  std::vector<Segment> segments_;  // only with few channels
  Scratch<T> packed_{0};
  std::vector<T> live_;
};

// --- activations -----------------------------------------------------------------------------------------------------

// y [n, y_step] from pre [n, step]; both may be read and written to the end of a vector
template <class T>
void activate(ConvActivation activation, const T* pre, int64_t step, int64_t half, int64_t channels, int64_t n, T* y,
              int64_t y_step) {
  using V = Vec<T>;
  const auto each = [&](auto&& f) {
    for (int64_t q = 0; q < n; ++q, pre += step, y += y_step) {
      for (int64_t c = 0; c < channels; c += V::size()) f(pre + c).store(y + c);
    }
  };
  switch (activation) {
    case ConvActivation::kRelu:
      return each([&](const T* p) { return relu(V::loadu(p)); });
    case ConvActivation::kElu:
      return each([&](const T* p) { return elu(V::loadu(p)); });
    case ConvActivation::kGate:
      return each([&](const T* p) { return gate<Gate::kTanh>(V::loadu(p), V::loadu(p + half)); });
    case ConvActivation::kGlu:
      return each([&](const T* p) { return gate<Gate::kLinear>(V::loadu(p), V::loadu(p + half)); });
    case ConvActivation::kNone:
      return;
  }
}

// grad [n, step] from the gradient of y [n, y_step] and pre [n, step]; second: [half], for a moment
template <class T>
void activate_backward(ConvActivation activation, const T* grad_y, int64_t y_step, const T* pre, int64_t step,
                       int64_t half, int64_t channels, int64_t n, T* grad, T* second) {
  using V = Vec<T>;
  const V zero(T(0));
  const bool gated = activation == ConvActivation::kGate || activation == ConvActivation::kGlu;
  for (int64_t q = 0; q < n; ++q, grad_y += y_step, pre += step, grad += step) {
    for (int64_t c = 0; c < channels; c += V::size()) {
      const V g = V::loadu(grad_y + c), x = V::loadu(pre + c);
      if (activation == ConvActivation::kRelu) {
        select(less(zero, x), g, zero).store(grad + c);
      } else if (activation == ConvActivation::kElu) {
        const Exp<T> e = exp_parts<true>(at::vec::clamp_max(x, zero));
        select(less(x, zero), scale2(g * e.m, e.n), g).store(grad + c);
      } else {
        const V b = V::loadu(pre + half + c);
        const GateGradient<T> both = activation == ConvActivation::kGate ? gate_backward<Gate::kTanh>(x, b, g)
                                                                         : gate_backward<Gate::kLinear>(x, b, g);
        both.a.store(grad + c);
        both.b.store(second + c);
      }
    }
    if (gated) std::copy_n(second, half, grad + half);  // over what the first half's last vector left there
  }
}

// --- forward ---------------------------------------------------------------------------------------------------------

template <class S>
const S* values(const void* data, int64_t offset = 0) {
  return static_cast<const S*>(data) + offset;
}

template <class S, class T>
std::vector<T> weights(const ConvArgs& a) {
  std::vector<T> w(size_t(a.taps * a.channels_in * a.pre.channels));
  load_run(w.data(), values<S>(a.weight), int64_t(w.size()));
  return w;
}

// Calls f(code, row of the tap's output) for each pixel of a rectangle that a tap reaches.
template <class F>
void for_codes(const ConvArgs& a, int64_t tap, int64_t sample, const Rect& rect, F&& f) {
  const Run rows = run_of(a.x.height, a.offsets[2 * tap], a.stride, a.transposed, rect.top, rect.bottom);
  const Run columns = run_of(a.x.width, a.offsets[2 * tap + 1], a.stride, a.transposed, rect.left, rect.right);
  for (int64_t j = 0; j < rows.count; ++j) {
    const int64_t* code = values<int64_t>(a.x.data, sample * a.x.sample) + (rows.in + j * rows.in_step) * a.x.row;
    const int64_t first = (rows.out + j * rows.out_step - rect.top) * rect.width() - rect.left;
    for (int64_t i = 0; i < columns.count; ++i) {
      f(code[(columns.in + i * columns.in_step) * a.x.pixel], first + columns.out + i * columns.out_step);
    }
  }
}

constexpr int64_t kBlockPixels = 128;

template <class S>
void forward(const Workers& workers, const ConvArgs& a) {
  using T = Arithmetic<S>;
  using V = Vec<T>;
  const int64_t channels = a.pre.channels, step = padded<T>(channels), y_step = padded<T>(a.y.channels);
  const std::vector<T> weight = weights<S, T>(a);
  const Convolution<T> convolution(a, weight.data(), false);
  std::vector<T> bias(size_t(a.bias ? (a.bias_of_samples ? a.batch : 1) * step : 0));
  for (int64_t i = 0; i * step < int64_t(bias.size()); ++i) {
    load_run(bias.data() + i * step, values<S>(a.bias, i * channels), channels);
  }
  const std::vector<Rect> rects = cut(a.y.height, a.y.width, kBlockPixels);
  int64_t most = 0;
  for (const auto& rect : rects) most = std::max(most, rect.pixels());
  const bool direct = a.codes || readable<S, T>(a.x);
  // Where x has to be converted, a task takes several rectangles, since their taps read the same rows.
  const int64_t parts = direct ? int64_t(rects.size()) : std::min<int64_t>(int64_t(rects.size()), tiles(16, a.batch));
  const bool in_place = std::is_same_v<S, T> && a.activation == ConvActivation::kNone && a.y.channel == 1 &&
                        a.y.pixel == step && step == channels;
  workers(a.batch * parts, [&](int64_t task) {
    const int64_t sample = task / parts, part = task % parts, count = int64_t(rects.size());
    const int64_t begin = count * part / parts, end = count * (part + 1) / parts;
    const Scratch<T> block_memory(in_place ? 0 : most * step + V::size());
    const Scratch<T> other_memory(most * step + V::size());
    T *const block = block_memory, *const other = other_memory;
    View<T> x{};
    const Rect whole{rects[size_t(begin)].top, rects[size_t(end - 1)].bottom, 0, a.y.width};
    const auto [top, bottom] = a.codes ? std::pair<int64_t, int64_t>{} : convolution.rows_of(whole);
    Scratch<T> converted(direct ? 0 : (bottom - top) * a.x.width * a.x.channels);
    if (!a.codes) x = view<S, T>(a.x, sample, top, bottom, converted);
    const T* of_sample = bias.empty() ? nullptr : bias.data() + (a.bias_of_samples ? sample * step : 0);
    for (int64_t i = begin; i < end; ++i) {
      const Rect& rect = rects[size_t(i)];
      const int64_t n = rect.pixels();
      T* sums = block;
      if constexpr (std::is_same_v<S, T>) {
        if (in_place) {
          sums = static_cast<T*>(const_cast<void*>(a.y.data)) + sample * a.y.sample + rect.top * a.y.row +
                 rect.left * a.y.pixel;
        }
      }
      if (a.codes) {
        std::fill_n(sums, n * step, T(0));
        for (int64_t t = 0; t < a.taps; ++t) {
          for_codes(a, t, sample, rect, [&](int64_t code, int64_t pixel) {
            const T* from = weight.data() + (t * a.channels_in + code) * channels;
            T* to = sums + pixel * step;
            for (int64_t c = 0; c < channels; ++c) to[c] += from[c];
          });
        }
      } else {
        convolution(x, rect, sums, step);
      }
      if (a.condition.data) load_rect<S>(a.condition, sample, rect, other, step);
      if (of_sample || a.condition.data) {
        for (int64_t q = 0; q < n; ++q) {
          for (int64_t c = 0; c < step; c += V::size()) {
            V sum = V::loadu(sums + q * step + c);
            if (of_sample) sum = sum + V::loadu(of_sample + c);
            if (a.condition.data) sum = sum + V::loadu(other + q * step + c);
            sum.store(sums + q * step + c);
          }
        }
      }
      T* y = sums;
      int64_t stride = step;
      if (a.activation != ConvActivation::kNone) {
        store_rect<S>(a.pre, sample, rect, sums, step);
        y = a.gated() ? other : sums;
        stride = a.gated() ? y_step : step;
        activate<T>(a.activation, sums, step, channels / 2, a.y.channels, n, y, stride);
      }
      if (a.residual.data) {
        T* const rest = y == sums ? other : block;
        load_rect<S>(a.residual, sample, rect, rest, stride);
        for (int64_t c = 0; c < n * stride; c += V::size()) (V::loadu(y + c) + V::loadu(rest + c)).store(y + c);
      }
      if (!in_place) store_rect<S>(a.y, sample, rect, y, stride);
    }
  });
}

// --- backward --------------------------------------------------------------------------------------------------------

// sums [channels] += grad over the pixels of a rectangle
template <class T>
void add_pixels(const View<T>& grad, const Rect& rect, int64_t channels, double* sums) {
  for (int64_t r = rect.top; r < rect.bottom; ++r) {
    for (int64_t q = rect.left; q < rect.right; ++q) {
      const T* from = grad.data + r * grad.row + q * grad.pixel;
      for (int64_t c = 0; c < channels; ++c) sums[c] += double(from[c]);
    }
  }
}

template <class S, class T>
void input_gradient(const ConvArgs& a, const Convolution<T>& convolution, const View<T>& grad, int64_t sample,
                    const std::vector<Rect>& rects, T* block, int64_t step) {
  const auto& x = a.grad_x;
  const bool in_place = std::is_same_v<S, T> && x.channel == 1 && x.pixel == step && step == x.channels;
  for (const auto& rect : rects) {
    if constexpr (std::is_same_v<S, T>) {
      if (in_place) {
        T* const data = static_cast<T*>(const_cast<void*>(x.data)) + sample * x.sample;
        convolution(grad, rect, data + rect.top * x.row + rect.left * x.pixel, step);
        continue;
      }
    }
    convolution(grad, rect, block, step);
    store_rect<S>(x, sample, rect, block, step);
  }
}

// Zeros where the channel mask cuts the weight of one input channel.
template <class T>
void mask_gradient(const ConvArgs& a, int64_t in, T* gradient) {
  const int64_t period = a.gated() ? a.pre.channels / 2 : a.pre.channels;
  for (int64_t c = 0; c < a.pre.channels; ++c) {
    if (!reaches(a, group_of(a, in, a.channels_in), group_of(a, c % period, period))) gradient[c] = T(0);
  }
}

// sums [taps, channels_in, step] += the gradient of the weight from one sample
template <class T>
void add_weight_gradient(const ConvArgs& a, const View<T>& x, const View<T>& grad, T* sums, int64_t step) {
  constexpr int64_t kChain = 256;  // pixels in one sum
  const int64_t vectors = step / Vec<T>::size(), panels = tiles(vectors, kMaxVectors);
  std::vector<int64_t> a_start(kChain), b_start(kChain);
  Tile<T> t{};
  t.a_row = 1;
  t.c_row = step;
  t.a_start = a_start.data();
  t.b_start = b_start.data();
  for (const Rect& rect : cut(a.pre.height, a.pre.width, kChain)) {
    for (int64_t tap = 0; tap < a.taps; ++tap) {
      const Run rows = run_of(a.x.height, a.offsets[2 * tap], a.stride, a.transposed, rect.top, rect.bottom);
      const Run columns = run_of(a.x.width, a.offsets[2 * tap + 1], a.stride, a.transposed, rect.left, rect.right);
      if (columns.count == 0 || rows.count == 0) continue;
      t.a_step = columns.in_step * x.pixel;
      t.b_step = columns.out_step * grad.pixel;
      t.depth = columns.count;
      t.parts = rows.count;
      for (int64_t j = 0; j < rows.count; ++j) {
        a_start[size_t(j)] = (rows.in + j * rows.in_step) * x.row + columns.in * x.pixel;
        b_start[size_t(j)] = (rows.out + j * rows.out_step) * grad.row + columns.out * grad.pixel;
      }
      for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t first = vectors * panel / panels, column = first * Vec<T>::size();
        t.a = x.data;
        t.b = grad.data + column;
        t.c = sums + tap * a.channels_in * step + column;
        multiply_rows<true>(t, vectors * (panel + 1) / panels - first, a.channels_in);
      }
    }
  }
}

template <class S>
void backward(const Workers& workers, const ConvArgs& a) {
  using T = Arithmetic<S>;
  using V = Vec<T>;
  const int64_t channels = a.pre.channels, step = padded<T>(channels), y_step = padded<T>(a.y.channels);
  const int64_t pixels = a.pre.height * a.pre.width, rows = a.taps * a.channels_in;
  const std::vector<T> weight = a.grad_x.data ? weights<S, T>(a) : std::vector<T>();
  const std::optional<Convolution<T>> convolution =
      a.grad_x.data ? std::optional<Convolution<T>>(std::in_place, a, weight.data(), true) : std::nullopt;
  const int64_t x_step = padded<T>(a.channels_in);
  const bool direct = a.activation == ConvActivation::kNone && readable<S, T>(a.y) && step == channels;
  const std::vector<Rect> rects = cut(a.pre.height, a.pre.width, kBlockPixels);
  const std::vector<Rect> x_rects = cut(a.x.height, a.x.width, kBlockPixels);
  int64_t most = 1;
  for (const auto* cuts : {&rects, &x_rects}) {
    for (const auto& rect : *cuts) most = std::max(most, rect.pixels());
  }
  // Weights' gradients are summed over groups of samples, cut by shape alone, then over the groups; those of codes in
  // double, since a code that is everywhere would make long chains.
  const int64_t groups = std::min<int64_t>(a.batch, a.codes ? 4 : 16);
  const int64_t bytes = a.grad_weight ? groups * rows * step : 0;
  Scratch<T> sums(a.codes ? 0 : bytes);
  Scratch<double> sums_of_codes(a.codes ? bytes : 0);
  std::vector<double> bias_sums(size_t(a.grad_bias ? a.batch * step : 0));

  workers(groups, [&](int64_t group) {
    T* const group_sums = sums + group * rows * step;
    double* const group_codes = sums_of_codes + group * rows * step;
    if (a.grad_weight && a.codes) std::fill_n(group_codes, rows * step, 0.0);
    if (a.grad_weight && !a.codes) std::fill_n(group_sums, rows * step, T(0));
    const bool converts = a.grad_weight && !a.codes && !readable<S, T>(a.x);
    Scratch<T> x_scratch(converts ? a.x.height * a.x.width * a.x.channels : 0);
    Scratch<T> grad_scratch(direct ? 0 : pixels * step + V::size());
    const Scratch<T> block_memory(most * std::max(x_step, y_step) + V::size());
    const Scratch<T> pre_memory(most * step + V::size()), second(y_step);
    T *const block = block_memory, *const pre = pre_memory;
    for (int64_t sample = a.batch * group / groups; sample < a.batch * (group + 1) / groups; ++sample) {
      View<T> grad{grad_scratch, a.pre.width * step, step};
      if constexpr (std::is_same_v<S, T>) {
        if (direct) grad = {values<T>(a.y.data, sample * a.y.sample), a.y.row, a.y.pixel};
      }
      for (const auto& rect : rects) {
        T* const at = direct ? nullptr : grad_scratch + rect.top * grad.row + rect.left * step;
        if (!direct && a.activation == ConvActivation::kNone) {
          load_rect<S>(a.y, sample, rect, at, step);
        } else if (!direct) {
          load_rect<S>(a.y, sample, rect, block, y_step);
          load_rect<S>(a.pre, sample, rect, pre, step);
          activate_backward<T>(a.activation, block, y_step, pre, step, channels / 2, a.y.channels, rect.pixels(), at,
                               second);
        }
        if (a.grad_pre.data) {
          for (int64_t r = rect.top; r < rect.bottom; ++r) {
            const T* row = grad.data + r * grad.row + rect.left * grad.pixel;
            store_rect<S>(a.grad_pre, sample, {r, r + 1, rect.left, rect.right}, row, grad.pixel);
          }
        }
        if (a.grad_bias) add_pixels(grad, rect, channels, bias_sums.data() + sample * step);
      }
      if (a.grad_x.data) input_gradient<S>(a, *convolution, grad, sample, x_rects, block, x_step);
      if (a.grad_weight && a.codes) {
        for (int64_t t = 0; t < a.taps; ++t) {
          for_codes(a, t, sample, {0, a.pre.height, 0, a.pre.width}, [&](int64_t code, int64_t pixel) {
            const T* from = grad.data + pixel / a.pre.width * grad.row + pixel % a.pre.width * grad.pixel;
            double* to = group_codes + (t * a.channels_in + code) * step;
            for (int64_t c = 0; c < channels; ++c) to[c] += double(from[c]);
          });
        }
      } else if (a.grad_weight) {
        add_weight_gradient<T>(a, view<S, T>(a.x, sample, 0, a.x.height, x_scratch), grad, group_sums, step);
      }
    }
  });

  if (a.grad_weight) {
    workers(tiles(rows, 64), [&](int64_t task) {
      const Scratch<T> memory(step);
      T* const total = memory;
      for (int64_t row = task * 64; row < std::min(rows, (task + 1) * 64); ++row) {
        for (int64_t c = 0; c < channels; ++c) {
          double sum = 0;
          for (int64_t g = 0; g < groups; ++g) {
            const int64_t at = (g * rows + row) * step + c;
            sum += a.codes ? sums_of_codes[at] : double(sums[at]);
          }
          total[c] = T(sum);
        }
        if (row / a.channels_in == a.masked) mask_gradient<T>(a, row % a.channels_in, total);
        store_run(static_cast<S*>(a.grad_weight) + row * channels, total, channels, false);
      }
    });
  }
  if (a.grad_bias) {
    S* const out = static_cast<S*>(a.grad_bias);
    for (int64_t c = 0; c < channels; ++c) {
      double total = 0;
      for (int64_t sample = 0; sample < a.batch; ++sample) {
        const double sum = bias_sums[size_t(sample * step + c)];
        if (a.bias_of_samples) out[sample * channels + c] = S(T(sum));
        total += sum;
      }
      if (!a.bias_of_samples) out[c] = S(T(total));
    }
  }
}

}  // namespace conv
}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
