// Pixels into and out of scratch memory, where they are [pixels, stride] with channels side by side, one ISA tier.
#pragma once
#include "vmath.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

#if defined(CPU_CAPABILITY_AVX512)
// 16 x 16, between registers alone: at::vec's takes 2.5 times as long
inline void transpose_block(const float* from, int64_t from_step, float* to, int64_t to_step) {
  __m512 a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(from + i * from_step);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const __m512d x = _mm512_castps_pd(b[i + j]), y = _mm512_castps_pd(b[i + j + 2]);
      a[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
      a[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
    }
  }
#pragma GCC unroll 2
  for (int h = 0; h < 16; h += 8) {
#pragma GCC unroll 4
    for (int i = h; i < h + 4; ++i) {
      b[i] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0x88);
      b[i + 4] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    _mm512_storeu_ps(to + i * to_step, _mm512_shuffle_f32x4(b[i], b[i + 8], 0x88));
    _mm512_storeu_ps(to + (i + 8) * to_step, _mm512_shuffle_f32x4(b[i], b[i + 8], 0xdd));
  }
}

// By squares of 8 x 8: pairs of rows, whose 128-bit lanes are then exchanged.
inline void transpose_block(const double* from, int64_t from_step, double* to, int64_t to_step) {
  for (int64_t square = 0; square < 4; ++square) {
    const double* in = from + square / 2 * 8 * from_step + square % 2 * 8;
    double* out = to + square % 2 * 8 * to_step + square / 2 * 8;
    __m512d a[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m512d x = _mm512_loadu_pd(in + 2 * i * from_step), y = _mm512_loadu_pd(in + (2 * i + 1) * from_step);
      a[i] = _mm512_unpacklo_pd(x, y);
      a[i + 4] = _mm512_unpackhi_pd(x, y);
    }
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const __m512d* p = a + 4 * j;
      const __m512d even01 = _mm512_shuffle_f64x2(p[0], p[1], 0x88), even23 = _mm512_shuffle_f64x2(p[2], p[3], 0x88);
      const __m512d odd01 = _mm512_shuffle_f64x2(p[0], p[1], 0xdd), odd23 = _mm512_shuffle_f64x2(p[2], p[3], 0xdd);
      _mm512_storeu_pd(out + j * to_step, _mm512_shuffle_f64x2(even01, even23, 0x88));
      _mm512_storeu_pd(out + (j + 2) * to_step, _mm512_shuffle_f64x2(odd01, odd23, 0x88));
      _mm512_storeu_pd(out + (j + 4) * to_step, _mm512_shuffle_f64x2(even01, even23, 0xdd));
      _mm512_storeu_pd(out + (j + 6) * to_step, _mm512_shuffle_f64x2(odd01, odd23, 0xdd));
    }
  }
}
#else
template <class T>
inline void transpose_block(const T* from, int64_t from_step, T* to, int64_t to_step) {
  at::vec::transpose_mxn<T, 16, 16>(from, from_step, to, to_step);
}
#endif

template <class T>
inline void transpose(const T* from, int64_t from_step, T* to, int64_t to_step, int64_t rows, int64_t columns) {
  if (rows == 16 && columns == 16) {
    transpose_block(from, from_step, to, to_step);
  } else {
    at::vec::transpose_mxn<T>(from, from_step, to, to_step, int(rows), int(columns));
  }
}

constexpr int64_t kPlanes = 16, kPlanePixels = 64;  // transposed at once, if they have to be converted too

template <class T, class S>
void load_pixels(const S* x, int64_t channel, int64_t pixel, int64_t channels, int64_t n, T* out, int64_t stride) {
  if (channel == 1 && pixel == channels && stride == channels) return load_run(out, x, n * channels);
  if (channel == 1) {
    for (int64_t q = 0; q < n; ++q) load_run(out + q * stride, x + q * pixel, channels);
  } else if (pixel == 1) {
    [[maybe_unused]] T planes[kPlanes * kPlanePixels];
    for (int64_t c = 0; c < channels; c += kPlanes) {
      const int64_t rows = std::min(kPlanes, channels - c);
      for (int64_t q = 0; q < n; q += kPlanePixels) {
        const int64_t columns = std::min(kPlanePixels, n - q);
        const T* from;
        int64_t step = kPlanePixels;
        if constexpr (std::is_same_v<T, S>) {
          from = x + c * channel + q;
          step = channel;
        } else {
          for (int64_t i = 0; i < rows; ++i) load_run(planes + i * kPlanePixels, x + (c + i) * channel + q, columns);
          from = planes;
        }
        for (int64_t j = 0; j < columns; j += 16) {
          transpose(from + j, step, out + (q + j) * stride + c, stride, rows, std::min<int64_t>(16, columns - j));
        }
      }
    }
  } else {
    for (int64_t q = 0; q < n; ++q) {
      for (int64_t c = 0; c < channels; ++c) out[q * stride + c] = T(x[q * pixel + c * channel]);
    }
  }
}

template <class T, class S>
void store_pixels(S* x, int64_t channel, int64_t pixel, int64_t channels, int64_t n, const T* in, int64_t stride) {
  if (channel == 1 && pixel == channels && stride == channels) return store_run(x, in, n * channels, false);
  if (channel == 1) {
    for (int64_t q = 0; q < n; ++q) store_run(x + q * pixel, in + q * stride, channels, false);
  } else if (pixel == 1) {
    [[maybe_unused]] T planes[kPlanes * kPlanePixels];
    for (int64_t c = 0; c < channels; c += kPlanes) {
      const int64_t rows = std::min(kPlanes, channels - c);
      for (int64_t q = 0; q < n; q += kPlanePixels) {
        const int64_t columns = std::min(kPlanePixels, n - q);
        T* to;
        int64_t step = kPlanePixels;
        if constexpr (std::is_same_v<T, S>) {
          to = x + c * channel + q;
          step = channel;
        } else {
          to = planes;
        }
        for (int64_t j = 0; j < columns; j += 16) {
          transpose(in + (q + j) * stride + c, stride, to + j, step, std::min<int64_t>(16, columns - j), rows);
        }
        if constexpr (!std::is_same_v<T, S>) {
          for (int64_t i = 0; i < rows; ++i)
            store_run(x + (c + i) * channel + q, planes + i * kPlanePixels, columns, false);
        }
      }
    }
  } else {
    for (int64_t q = 0; q < n; ++q) {
      for (int64_t c = 0; c < channels; ++c) x[q * pixel + c * channel] = S(in[q * stride + c]);
    }
  }
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
