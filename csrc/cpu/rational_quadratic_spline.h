// Rational-quadratic splines of tensors, one ISA tier. In PyTorch: reference/rational_quadratic_spline.py.
#pragma once
#include "spline_lanes.h"
#include "stored_blocks.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

// The steps by what is asked for.
template <class T>
struct SplineSteps {
  void (*find)(const SplineNumbers<T>&, int64_t, const SplineMemory<T>&, const T*, SplineBin<T>*, SplineAhead);
  void (*evaluate)(const SplineNumbers<T>&, int64_t, SplineBin<T>*, T*, T*);
  void (*differentiate)(const SplineNumbers<T>&, int64_t, SplineBin<T>*, const SplineMemory<T>&, T*, const T*,
                        const T*);
};

template <bool kKnots, bool kInverse, class T>
constexpr SplineSteps<T> kSplineSteps = {find_bins<kKnots, kInverse, T>, evaluate_bins<kKnots, kInverse, T>,
                                         differentiate_bins<kKnots, kInverse, T>};

template <class T>
const SplineSteps<T>& steps_for(const SplineArgs& a) {
  if (a.style == SplineStyle::kKnots) return a.inverse ? kSplineSteps<true, true, T> : kSplineSteps<true, false, T>;
  return a.inverse ? kSplineSteps<false, true, T> : kSplineSteps<false, false, T>;
}

// The parameters of up to Vec<T>::size() elements of one run, to and from blocks.
template <class T, class P>
class SplineRows {
 public:
  SplineRows(const SplineArgs& a, const SplinePlaces* places)
      : args_(a),
        places_(places),
        lanes_{of(places[0]), of(places[1]), of(places[2])},
        slopes_(a, places[2].element, places[2].step) {}

  // widths and heights of n elements from number `first` of run r
  PYGEN_INLINE void load(int64_t r, int64_t first, int64_t n, const SplineBlocks<T>& b) const {
    for (int i : {0, 1}) lanes_[i].load(at(i, r, first), n, b.kind(i));
  }
  // and slopes, once their bins are known
  PYGEN_INLINE void load_slopes(int64_t r, int64_t first, int64_t n, SplineBin<T>& bin) const {
    slopes_.load(at(2, r, first), n, bin);
  }

  // n elements from number `first` of run r, in so many turns, where an element's lie side by side
  SplineAhead ahead(int64_t r, int64_t first, int64_t n, int64_t turns) const {
    SplineAhead lines;
    const P* end = nullptr;
    for (int i = 0; i < kSplineKinds && n > 0; ++i) {
      const SplinePlaces& p = places_[i];
      const P* const begin = at(i, r, first);
      if (p.step != 1 || (begin < end && begin >= end - n * p.element)) continue;  // views of one tensor
      lines.add(begin, n * p.element * int64_t(sizeof(P)), turns);
      end = begin + n * p.element;
    }
    return lines;
  }

  PYGEN_INLINE void store(int64_t r, int64_t first, int64_t n, const SplineBlocks<T>& b) const {
    share_ends(args_, b);
    for (int i = 0; i < kSplineKinds; ++i) {
      if (!places_[i].data) continue;
      lanes_[i].store(at(i, r, first), n, b.kind(i) + first_knot(args_, i) * Vec<T>::size());
    }
  }

 private:
  static Lanes<T, P> of(const SplinePlaces& p) { return {p.count, p.step, p.element}; }

  PYGEN_INLINE P* at(int i, int64_t r, int64_t first) const {
    const SplinePlaces& p = places_[i];
    return static_cast<P*>(p.data) + r * p.outer + first * p.element;
  }
  const SplineArgs& args_;
  const SplinePlaces* places_;
  Lanes<T, P> lanes_[kSplineKinds];
  SplineSlopes<T, P> slopes_;
};

// n values, the last of them repeated
template <class T, class X>
PYGEN_INLINE void load_values(T* to, const X* from, int64_t n, int64_t step = 1) {
  constexpr int64_t W = Vec<T>::size();
  if (n == W && step == 1) return load_run(to, from, W);
  for (int64_t i = 0; i < W; ++i) to[i] = static_cast<T>(from[std::min(i, n - 1) * step]);
}

template <class T, class X>
PYGEN_INLINE void store_values(X* to, const T* from, int64_t n) {
  constexpr int64_t W = Vec<T>::size();
  n == W ? store_run(to, from, W, false) : store_run(to, from, n, false);  // a constant size takes no call of memcpy
}

// Up to kVectors vectors of the elements of a run, and how many are next.
template <int64_t W>
struct SplinePart {
  int64_t run, first, count, next;

  int64_t vectors() const { return tiles(count, W); }
  // f(vector, first element of it in the run, how many)
  template <class F>
  PYGEN_INLINE void each(const F& f) const {
    for (int64_t i = 0; i * W < count; ++i) f(i, first + i * W, std::min(W, count - i * W));
  }
};

template <int64_t W, class F>
PYGEN_INLINE void for_parts_of_runs(int64_t run, int64_t begin, int64_t end, const F& f) {
  constexpr int64_t most = kVectors * W;
  for_runs(run, begin, end - begin, [&](int64_t r, int64_t first, int64_t count) {
    for (int64_t at = 0; at < count; at += most) {
      const int64_t n = std::min(most, count - at);
      f(SplinePart<W>{r, first - r * run + at, n, std::min(most, count - at - n)});
    }
  });
}

// Whether all values are within the bounds, or NaN.
template <class T>
inline bool admitted(const SplineNumbers<T>& numbers, const SplineBlocks<T>& b, const T* value) {
  const SplineArgs& a = numbers.args;
  const auto& axis = a.inverse ? numbers.y : numbers.x;
  const T* const knots = a.inverse ? b.heights : b.widths;
  bool fine = true;
  for (int64_t i = 0; i < Vec<T>::size(); ++i) {
    const bool own = a.style == SplineStyle::kKnots;
    fine &= !(value[i] < (own ? knots[i] : axis.lowest)) &&
            !(value[i] > (own ? knots[a.bins * Vec<T>::size() + i] : axis.highest));
  }
  return fine;
}

template <class X, class P>
bool spline(const SplineArgs& a, int64_t begin, int64_t end) {
  using T = Arithmetic<X>;
  constexpr int64_t W = Vec<T>::size();
  const SplineSteps<T>& steps = steps_for<T>(a);
  const SplineNumbers<T> numbers(a);
  const SplineMemory<T> blocks(a.bins);
  const SplineRows<T, P> parameters(a, a.parameters);
  SplineBin<T> bins[kVectors];
  alignas(64) T value[kVectors * W], slope[kVectors * W];
  bool fine = true;
  for_parts_of_runs<W>(a.run, begin, end, [&](const SplinePart<W>& part) {
    const int64_t r = part.run, vectors = part.vectors();
    part.each([&](int64_t i, int64_t first, int64_t n) {
      parameters.load(r, first, n, blocks[i]);
      load_values(value + i * W, static_cast<const X*>(a.x) + r * a.run + first, n);
      if (a.bounded) fine &= admitted(numbers, blocks[i], value + i * W);
    });
    steps.find(numbers, vectors, blocks, value, bins, parameters.ahead(r, part.first + part.count, part.next, vectors));
    part.each([&](int64_t i, int64_t first, int64_t n) { parameters.load_slopes(r, first, n, bins[i]); });
    steps.evaluate(numbers, vectors, bins, value, slope);
    part.each([&](int64_t i, int64_t first, int64_t n) {
      const int64_t e = r * a.run + first;
      store_values(static_cast<X*>(a.y) + e, value + i * W, n);
      store_values(static_cast<T*>(a.logabsdet) + e, slope + i * W, n);
    });
  });
  return fine;
}

template <class X, class P>
void spline_backward(const SplineArgs& a, int64_t begin, int64_t end) {
  using T = Arithmetic<X>;
  constexpr int64_t W = Vec<T>::size();
  const SplineSteps<T>& steps = steps_for<T>(a);
  const SplineNumbers<T> numbers(a);
  const SplineMemory<T> blocks(a.bins);
  const SplineRows<T, P> parameters(a, a.parameters), gradients(a, a.gradients);
  SplineBin<T> bins[kVectors];
  alignas(64) T value[kVectors * W], grad_y[kVectors * W], grad_logabsdet[kVectors * W];
  for_parts_of_runs<W>(a.run, begin, end, [&](const SplinePart<W>& part) {
    const int64_t r = part.run, vectors = part.vectors();
    part.each([&](int64_t i, int64_t first, int64_t n) {
      const int64_t e = r * a.run + first, y_step = a.grad_y_step, l_step = a.grad_logabsdet_step;
      parameters.load(r, first, n, blocks[i]);
      load_values(value + i * W, static_cast<const X*>(a.x) + e, n);
      load_values(grad_y + i * W, static_cast<const X*>(a.grad_y) + e * y_step, n, y_step);
      load_values(grad_logabsdet + i * W, static_cast<const T*>(a.grad_logabsdet) + e * l_step, n, l_step);
    });
    steps.find(numbers, vectors, blocks, value, bins, parameters.ahead(r, part.first + part.count, part.next, vectors));
    part.each([&](int64_t i, int64_t first, int64_t n) { parameters.load_slopes(r, first, n, bins[i]); });
    steps.differentiate(numbers, vectors, bins, blocks, value, grad_y, grad_logabsdet);
    part.each([&](int64_t i, int64_t first, int64_t n) {
      if (a.grad_x) store_values(static_cast<X*>(a.grad_x) + r * a.run + first, value + i * W, n);
      gradients.store(r, first, n, blocks[i]);
    });
  });
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
