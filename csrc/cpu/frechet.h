// tr (sigma1 sigma2)^(1/2), one ISA tier, in float64.
//
// With sigma1 = R^T R the product sigma1 sigma2 has the eigenvalues of the symmetric R sigma2 R^T. That is reduced to a
// tridiagonal matrix by Householder reflections, and its eigenvalues are found by the QL iteration without roots.
// Everything is lower triangles in rows and proceeds from the last row to the first: R is lower triangular too, and
// what is left to do begins at element (0, 0), so that all rows stay on cache lines.
#pragma once
#include <cmath>
#include <limits>
#include <vector>

#include "frechet_args.h"
#include "gemm.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

using D = Vec<double>;
constexpr int64_t kLanes = D::size();

// A lower triangle: element (i, j), j <= i, is row(i)[j]. Rows begin on cache lines and hold whole vectors; the length
// of a row is an odd number of cache lines, so that a column's elements do not share a set of the cache.
struct Triangle {
  double* data;
  int64_t n;

  static int64_t stride_of(int64_t n) { return (tiles(n, 8) | 1) * 8; }
  int64_t stride() const { return stride_of(n); }
  double* row(int64_t i) const { return data + i * stride(); }
  // as an operand of a product, and the transpose of one; not to be read above the diagonal
  Operand<double> rows() const { return {data, stride(), 1, Reach::kUpTo}; }
  Operand<double> columns() const { return {data, 1, stride(), Reach::kFrom}; }
};

inline double sum_lanes(const D& x) {
  double lanes[kLanes], sum = 0;
  x.store(lanes);
  for (const double lane : lanes) sum += lane;
  return sum;
}

// Vectors here are zero from their end to the end of the last D.
inline double dot(const double* x, const double* y, int64_t n) {
  D sum(0.0);
  for (int64_t i = 0; i < n; i += kLanes) sum = at::vec::fmadd(D::loadu(x + i), D::loadu(y + i), sum);
  return sum_lanes(sum);
}

// --- scaling ---------------------------------------------------------------------------------------------------------

// Copies a lower triangle from rows of `stride` elements, times 2^(-2 h) such that its largest element is in [1, 4).
// Returns h; sets `largest` to that element, NaN where there is one.
inline int scale(const Workers& workers, const double* from, int64_t stride, const Triangle& to, double& largest) {
  constexpr int64_t kRows = 64;
  const int64_t tasks = tiles(to.n, kRows);
  const auto rows = [&](int64_t task, const auto& f) {
    for (int64_t i = task * kRows; i < std::min(to.n, (task + 1) * kRows); ++i) f(from + i * stride, to.row(i), i + 1);
  };
  std::vector<double> most(static_cast<size_t>(tasks));
  workers(tasks, [&](int64_t task) {
    D lanes(0.0);
    rows(task, [&](const double* x, double*, int64_t n) {
      int64_t j = 0;
      for (; j + kLanes <= n; j += kLanes) lanes = at::vec::maximum(lanes, D::loadu(x + j).abs());
      if (j < n) lanes = at::vec::maximum(lanes, D::loadu(x + j, n - j).abs());
    });
    double each[kLanes], m = 0;
    lanes.store(each);
    for (const double x : each) m = m > x || std::isnan(m) ? m : x;
    most[size_t(task)] = m;
  });
  largest = 0;
  for (const double m : most) largest = largest > m || std::isnan(largest) ? largest : m;
  const int h = largest > 0 && std::isfinite(largest) ? int(std::floor(std::ilogb(largest) * 0.5)) : 0;
  const double factor = std::ldexp(1.0, -h);
  workers(tasks, [&](int64_t task) {
    rows(task, [&](const double* x, double* y, int64_t n) {
      for (int64_t j = 0; j < n; ++j) y[j] = x[j] * factor * factor;  // 2^(-2 h) itself may overflow
    });
  });
  return h;
}

// --- Cholesky --------------------------------------------------------------------------------------------------------

constexpr int64_t kPanel = 64;  // rows that are factored at once
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
constexpr int kStrip = 8;  // vectors of a row in registers
#else
constexpr int kStrip = 4;
#endif
static_assert(kPanel % (kStrip * kLanes) == 0);

// The diagonal block of rows [begin, end), whose rows below are done with.
inline bool factor_block(const Triangle& a, int64_t begin, int64_t end) {
  for (int64_t i = end; i-- > begin;) {
    double* x = a.row(i);
    for (int64_t r = i + 1; r < end; ++r) {
      const double* y = a.row(r);
      const double f = y[i];
      for (int64_t j = begin; j <= i; ++j) x[j] -= f * y[j];
    }
    if (!(x[i] > 0)) return false;
    const double root = std::sqrt(x[i]);
    for (int64_t j = begin; j <= i; ++j) x[j] /= root;
  }
  return true;
}

// The columns [j, j + kStrip vectors) of the rows [begin, end), given their diagonal block.
inline void solve_strip(const Triangle& a, int64_t begin, int64_t end, int64_t j) {
  for (int64_t i = end; i-- > begin;) {
    double* x = a.row(i) + j;
    D c[kStrip];
#pragma GCC unroll 8
    for (int v = 0; v < kStrip; ++v) c[v] = D::loadu(x + v * kLanes);
    for (int64_t r = i + 1; r < end; ++r) {
      const double* y = a.row(r);
      const D f(-y[i]);
#pragma GCC unroll 8
      for (int v = 0; v < kStrip; ++v) c[v] = at::vec::fmadd(f, D::loadu(y + j + v * kLanes), c[v]);
    }
    const D root(a.row(i)[i]);
#pragma GCC unroll 8
    for (int v = 0; v < kStrip; ++v) (c[v] / root).store(x + v * kLanes);
  }
}

// Overwrites a with R, a = R^T R; false if a pivot is not positive.
inline bool cholesky(const Workers& workers, const Triangle& a, double* scratch) {
  for (int64_t end = a.n; end > 0;) {
    const int64_t begin = (end - 1) / kPanel * kPanel;
    if (!factor_block(a, begin, end)) return false;
    workers(begin / (kStrip * kLanes), [&](int64_t strip) { solve_strip(a, begin, end, strip * kStrip * kLanes); });
    const Operand<double> x{a.row(begin), 1, a.stride()};
    multiply(workers, {begin, begin, end - begin, true}, -1, x, x, a.data, a.stride(), scratch);
    end = begin;
  }
  return true;
}

// --- tridiagonal form ------------------------------------------------------------------------------------------------

constexpr int64_t kReflectors = 32;  // that are applied to the matrix at once
constexpr int64_t kMostTasks = 16, kTaskElements = 32768;

// y [0, end) = the product of the symmetric matrix with x as far as its rows [begin, end) tell; begin is a multiple of
// kLanes. An element is read once, for its row and its column.
inline void multiply_rows(const Triangle& a, int64_t begin, int64_t end, const double* x, double* y) {
  std::fill_n(y, tiles(end, kLanes) * kLanes, 0.0);
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) {
    const double* row[kLanes];
    D sum[kLanes], own[kLanes];
#pragma GCC unroll 8
    for (int64_t r = 0; r < kLanes; ++r) {
      row[r] = a.row(i + r);
      sum[r] = D(0.0);
      own[r] = D(x[i + r]);
    }
    for (int64_t j = 0; j < i; j += kLanes) {
      const D other = D::loadu(x + j);
      D column[2] = {D::loadu(y + j), D(0.0)};  // two chains, each half as long
#pragma GCC unroll 8
      for (int64_t r = 0; r < kLanes; ++r) {
        const D element = D::loadu(row[r] + j);
        sum[r] = at::vec::fmadd(element, other, sum[r]);
        column[r % 2] = at::vec::fmadd(element, own[r], column[r % 2]);
      }
      (column[0] + column[1]).store(y + j);
    }
    double sums[kLanes];
#pragma GCC unroll 8
    for (int64_t r = 0; r < kLanes; ++r) sums[r] = sum_lanes(sum[r]);
    for (int64_t r = 0; r < kLanes; ++r) {
      double s = sums[r];
      for (int64_t j = i; j < i + r; ++j) {
        s += row[r][j] * x[j];
        y[j] += row[r][j] * x[i + r];
      }
      y[i + r] += s + row[r][i + r] * x[i + r];
    }
  }
  for (; i < end; ++i) {
    const double* row = a.row(i);
    double s = row[i] * x[i];
    for (int64_t j = 0; j < i; ++j) {
      s += row[j] * x[j];
      y[j] += row[j] * x[i];
    }
    y[i] += s;
  }
}

// y [n] -= sum_q a[q] u[q] + b[q] v[q], with rows u[q], v[q] of `stride` elements
inline void subtract_pairs(double* y, int64_t n, const double* u, const double* v, int64_t stride, int64_t count,
                           const double* a, const double* b) {
  const auto columns = [&](int64_t j, auto vectors) {
    constexpr int kVectors = decltype(vectors)::value;
    D c[kVectors];
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k) c[k] = D::loadu(y + j + k * kLanes);
    for (int64_t q = 0; q < count; ++q) {
      const D f(-a[q]), g(-b[q]);
      const double *from = u + q * stride + j, *and_from = v + q * stride + j;
#pragma GCC unroll 4
      for (int k = 0; k < kVectors; ++k) {
        c[k] = at::vec::fmadd(f, D::loadu(from + k * kLanes), c[k]);
        c[k] = at::vec::fmadd(g, D::loadu(and_from + k * kLanes), c[k]);
      }
    }
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k) c[k].store(y + j + k * kLanes);
  };
  int64_t j = 0;
  for (; j + 4 * kLanes <= n; j += 4 * kLanes) columns(j, std::integral_constant<int, 4>());
  for (; j < n; j += kLanes) columns(j, std::integral_constant<int, 1>());
}

// Reduces the symmetric matrix to tridiagonal form with diagonal [n] and off[i] = (i, i + 1).
//
// Reflections I - tau v v^T remove row after row; A - v w^T - w v^T is what one leaves. A block's v and w are kept and
// applied to the rest of the matrix at once (Dongarra, Sorensen and Hammarling 1989); till then, a row is brought up to
// date when it is its turn, and products with the matrix are corrected.
inline void tridiagonalise(const Workers& workers, const Triangle& a, double* diagonal, double* off, double* scratch) {
  const int64_t stride = a.stride();
  Scratch<double> pairs(3 * kReflectors * stride), parts(kMostTasks * stride);
  for (int64_t m = a.n; m > 1;) {
    const int64_t block = std::min(kReflectors, m - 1);
    double *v = pairs, *w = v + block * stride, *v_again = w + block * stride;  // (v, w) and (w, v) are stacked rows
    for (int64_t k = 0; k < block; ++k) {
      const int64_t i = m - 1 - k, padded = tiles(i, kLanes) * kLanes;
      double a_v[kReflectors], a_w[kReflectors];
      double* row = a.row(i);
      for (int64_t q = 0; q < k; ++q) {
        a_v[q] = w[q * stride + i];
        a_w[q] = v[q * stride + i];
      }
      subtract_pairs(row, i + 1, v, w, stride, k, a_v, a_w);
      diagonal[i] = row[i];

      double *x = v + k * stride, *p = w + k * stride;
      const double last = row[i - 1];
      std::copy_n(row, i - 1, x);
      std::fill(x + i - 1, x + padded, 0.0);
      const double rest = dot(x, x, i);
      double beta = last, tau = 0;
      if (rest > 0) {
        beta = -std::copysign(std::sqrt(last * last + rest), last);
        tau = (beta - last) / beta;
        const double factor = 1 / (last - beta);
        for (int64_t j = 0; j < i - 1; ++j) x[j] *= factor;
      }
      x[i - 1] = 1;
      off[i - 1] = beta;
      std::copy_n(x, padded, v_again + k * stride);

      // the product with the matrix, in parts of like work, and those with the pairs
      const int64_t tasks = std::clamp(i * i / 2 / kTaskElements, int64_t(1), kMostTasks);
      const auto part_end = [&](int64_t task) {
        return task == tasks - 1 ? i : int64_t(double(i) * std::sqrt(double(task + 1) / double(tasks))) / 8 * 8;
      };
      const auto dots = [&](int64_t first, int64_t last) {
        for (int64_t q = first; q < last; ++q) {
          a_v[q] = dot(w + q * stride, x, i);
          a_w[q] = dot(v + q * stride, x, i);
        }
      };
      if (tasks == 1) {  // less work than what threads take to wake
        multiply_rows(a, 0, i, x, parts);
        dots(0, k);
      } else {
        constexpr int64_t kDots = 4;
        workers(tasks + tiles(k, kDots), [&](int64_t task) {
          if (task < tasks) {
            multiply_rows(a, task ? part_end(task - 1) : 0, part_end(task), x, parts + task * stride);
          } else {
            dots((task - tasks) * kDots, std::min(k, (task - tasks + 1) * kDots));
          }
        });
      }
      std::copy_n(parts + (tasks - 1) * stride, padded, p);
      for (int64_t task = 0; task + 1 < tasks; ++task) {
        const double* part = parts + task * stride;
        for (int64_t j = 0; j < part_end(task); ++j) p[j] += part[j];
      }
      subtract_pairs(p, i, v, w, stride, k, a_v, a_w);
      const double half = tau * tau * dot(p, x, i) / 2;
      for (int64_t j = 0; j < padded; ++j) p[j] = tau * p[j] - half * x[j];
    }
    m -= block;
    multiply(workers, {m, m, 2 * block, true}, -1, Operand<double>{v, 1, stride}, Operand<double>{w, 1, stride}, a.data,
             stride, scratch);
  }
  diagonal[0] = a.row(0)[0];
}

// --- eigenvalues -----------------------------------------------------------------------------------------------------

// Overwrites the diagonal [n] of a symmetric tridiagonal matrix with its eigenvalues, in no order, and `off` [n]
// with anything; false if they do not converge. The QL iteration in squares of Pal, Walker and Kahan: Parlett, The
// Symmetric Eigenvalue Problem, section 8.15. Elements are to be of the order of 1.
inline bool eigenvalues(double* diagonal, double* off, int64_t n) {
  constexpr double kEps = std::numeric_limits<double>::epsilon() / 2, kFloor = kEps * kEps * kEps * kEps,
                   kTiny = 1e-140;
  double *d = diagonal, *e = off;
  if (std::abs(d[n - 1]) < std::abs(d[0])) {  // it finds eigenvalues from the top, where small ones should be
    std::reverse(d, d + n);
    std::reverse(e, e + n - 1);
  }
  for (int64_t i = 0; i + 1 < n; ++i) e[i] *= e[i];
  int64_t sweeps = 30 * n;
  for (int64_t l = 0; l + 1 < n;) {
    int64_t m = l;
    while (m + 1 < n && e[m] > kEps * kEps * std::abs(d[m] * d[m + 1]) + kFloor) ++m;
    if (m == l) {
      ++l;
      continue;
    }
    if (sweeps-- == 0) return false;
    // shift: the eigenvalue of the first two rows that is closer to d[l]
    const double root = std::sqrt(e[l]), g = (d[l + 1] - d[l]) / (2 * root);
    const double shift = d[l] - root / (g + std::copysign(std::hypot(g, 1.0), g));
    // In the book's terms c = p / r and s = square / r; gamma and p wait for one division each here, not for three.
    double c = 1, s = 0, gamma = d[m] - shift, p = gamma * gamma;
    for (int64_t i = m - 1; i >= l; --i) {
      const double square = e[i], r = p + square, old_gamma = gamma;
      e[i + 1] = s * r;  // of i = m - 1: 0, which separates what is below
      const double gamma_r = p * (d[i] - shift) - square * gamma, next = gamma_r * gamma_r / (r * p);
      gamma = gamma_r / r;
      d[i + 1] = old_gamma + (d[i] - gamma);
      s = square / r;
      const double old_c = c;
      c = p / r;
      p = p > kTiny ? next : old_c * square;
    }
    e[l] = s * p;
    d[l] = shift + gamma;
  }
  return true;
}

// --- the op ----------------------------------------------------------------------------------------------------------

inline void trace_sqrt_product(const Workers& workers, const double* sigma1, const double* sigma2, int64_t n,
                               double* trace, double* bound) {
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN(), kInf = std::numeric_limits<double>::infinity();
  *trace = *bound = 0;
  if (n == 0) return;
  const int64_t size = n * Triangle::stride_of(n);
  Scratch<double> first(size), second(size), third(size), packed(pack_size<double>(n, n, std::max(n, 2 * kReflectors)));
  Triangle r{first, n}, h{second, n}, w{third, n};
  double largest1, largest2, largest;
  int exponent = scale(workers, sigma1, n, r, largest1) + scale(workers, sigma2, n, h, largest2);
  *trace = *bound = kNaN;
  if (!std::isfinite(largest1) || !std::isfinite(largest2)) return;
  if (!cholesky(workers, r, packed)) {
    scale(workers, sigma1, n, r, largest1);
    std::swap(r, h);
    *bound = kInf;
    if (!cholesky(workers, r, packed)) return;
  }
  // R sigma R^T = W R^T + R W^T, where W = R H and sigma = H + H^T
  for (int64_t i = 0; i < n; ++i) h.row(i)[i] /= 2;
  const int64_t stride = r.stride();
  multiply(workers, {n, n, n, true, false}, 1, r.rows(), h.columns(), w.data, stride, packed);
  multiply(workers, {n, n, n, true, false}, 1, w.rows(), r.rows(), h.data, stride, packed);
  multiply(workers, {n, n, n, true, true}, 1, r.rows(), w.rows(), h.data, stride, packed);
  exponent += scale(workers, h.data, stride, h, largest);

  std::vector<double> lambda(static_cast<size_t>(n)), off(static_cast<size_t>(n));
  tridiagonalise(workers, h, lambda.data(), off.data(), packed);
  *bound = kInf;
  if (!eigenvalues(lambda.data(), off.data(), n)) return;
  double sum = 0, squares = 0, error = 0;
  for (double& x : lambda) {
    x = std::max(x, 0.0);
    sum += std::sqrt(x);
    squares += x * x;
  }
  const double delta = 4 * std::numeric_limits<double>::epsilon() * std::sqrt(squares / double(n));
  if (delta > 0) {
    for (const double x : lambda) error += delta / (std::sqrt(x + delta) + std::sqrt(x));
  }
  *trace = std::ldexp(sum, exponent);
  *bound = std::ldexp(error, exponent);
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
