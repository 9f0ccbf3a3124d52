// The polar factor of a square matrix and its nuclear norm, one ISA tier, by products of matrices alone.
//
// x <- a x (3 - a^2 x'x) / 2 takes a singular value s of x to p(s) = a s (3 - a^2 s^2) / 2. Where all are from l to 1,
// a^2 = 3 / (1 + l + l^2) makes p(l) = p(1), the least there, and as large as can be (Chen and Chow 2014, section 3).
// p turns negative soon after 1: before each such step x is divided by 1.01, so that no rounding gets there.
#pragma once
#include <numeric>

#include "frechet.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

// A step as factors: x <- x (linear I - cubic x'x).
struct PolarStep {
  double linear, cubic;
};

// Steps after which a singular value that was eps is 1, to rounding, and any smaller one at most 1.
template <class T>
inline std::vector<PolarStep> polar_steps() {
  constexpr double kMargin = 1.01, kEps = std::numeric_limits<T>::epsilon();
  std::vector<PolarStep> steps;
  double l = kEps;
  const auto step = [&](double a) {  // a: of x as it is
    steps.push_back({1.5 * a, 0.5 * a * a * a});
    l = l * (1.5 * a - 0.5 * a * a * a * l * l);
  };
  while (l < 0.9) {
    const double damped = l / kMargin;
    step(std::sqrt(3 / (1 + damped + damped * damped)) / kMargin);
  }
  while (1 - l > kEps / 2) step(1);
  return steps;
}

template <class T>
void polar(const Workers& workers, const PolarArgs& a) {
  static const std::vector<PolarStep> steps = polar_steps<T>();
  constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();
  const int64_t n = a.n, stride = (tiles(n, 16) | 1) * 16;
  const auto* b = static_cast<const T*>(a.b);
  auto* out = static_cast<T*>(a.polar);
  T& norm = *static_cast<T*>(a.norm);

  double largest = 0;
  for (int64_t i = 0; i < n * n; ++i) {
    const double size = std::abs(double(b[i]));
    largest = largest > size || std::isnan(largest) ? largest : size;
  }
  if (!(largest > 0 && std::isfinite(largest))) {
    norm = largest == 0 ? T(0) : kNaN;
    std::fill_n(out, n * n, norm);
    return;
  }

  // x = b / bound: a bound of the largest singular value, where elements are at most 1
  const int exponent = std::ilogb(largest) + 1;
  const double factor = std::ldexp(1.0, -exponent / 2), and_factor = std::ldexp(1.0, -exponent - -exponent / 2);
  std::vector<double> columns(static_cast<size_t>(n));
  double squares = 0, most_in_row = 0;
  for (int64_t i = 0; i < n; ++i) {
    double row = 0;
    for (int64_t j = 0; j < n; ++j) {
      const double size = std::abs(double(b[i * n + j])) * factor * and_factor;
      row += size;
      squares += size * size;
      columns[size_t(j)] += size;
    }
    most_in_row = std::max(most_in_row, row);
  }
  const double most_in_column = *std::max_element(columns.begin(), columns.end());
  const double bound = std::sqrt(std::min(squares, most_in_row * most_in_column));
  Scratch<T> memory(3 * n * stride + pack_size<T>(n, n, n));
  T *x = memory, *next = x + n * stride, *const gram = next + n * stride, *const packed = gram + n * stride;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) x[i * stride + j] = T(double(b[i * n + j]) * factor * and_factor / bound);
  }

  for (const PolarStep& step : steps) {
    const Operand<T> columns_of_x{x, 1, stride}, rows_of_x{x, stride, 1};
    multiply(workers, {n, n, n, true, false}, -step.cubic, columns_of_x, columns_of_x, gram, stride, packed);
    for (int64_t i = 0; i < n; ++i) {
      gram[i * stride + i] += T(step.linear);
      for (int64_t j = 0; j < i; ++j) gram[j * stride + i] = gram[i * stride + j];
    }
    multiply(workers, {n, n, n, false, false}, 1, rows_of_x, Operand<T>{gram, 1, stride}, next, stride, packed);
    std::swap(x, next);
  }

  std::fill(columns.begin(), columns.end(), 0.0);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) columns[size_t(j)] += double(x[i * stride + j]) * double(b[i * n + j]);
  }
  norm = T(std::accumulate(columns.begin(), columns.end(), 0.0));
  for (int64_t i = 0; i < n; ++i) std::copy_n(x + i * stride, n, out + i * n);
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
