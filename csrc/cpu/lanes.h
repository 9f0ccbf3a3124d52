// Channels of pixels as blocks [channels][lanes]: a lane to a pixel, whatever the layout, one ISA tier.
#pragma once
#include <optional>

#include "scratch.h"
#include "vmath.h"

namespace pygen {
inline namespace CPU_CAPABILITY {
namespace {

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

// --- between rows and lanes ------------------------------------------------------------------------------------------

// So many channels, 16 bytes of a row, are transposed at once: each row's lie in 128 bits of a register, where loads
// and stores put them and fetch them. Half the shuffles of a square of registers, and no square has to be full.
template <class T>
constexpr int kQuad = 16 / sizeof(T);

#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
// Register i of kQuad<float> has rows i, 4 + i, ...; of kQuad<double> rows i, 2 + i, ...
#if defined(CPU_CAPABILITY_AVX512)
template <class Row>
PYGEN_INLINE Vec<float> load_rows(const Row& row, int i, float) {
  __m512 r = _mm512_castps128_ps512(_mm_loadu_ps(row(i)));
  r = _mm512_insertf32x4(r, _mm_loadu_ps(row(4 + i)), 1);
  r = _mm512_insertf32x4(r, _mm_loadu_ps(row(8 + i)), 2);
  return _mm512_insertf32x4(r, _mm_loadu_ps(row(12 + i)), 3);
}
template <class Row>
PYGEN_INLINE Vec<double> load_rows(const Row& row, int i, double) {
  __m512d r = _mm512_castpd128_pd512(_mm_loadu_pd(row(i)));
  r = _mm512_insertf64x2(r, _mm_loadu_pd(row(2 + i)), 1);
  r = _mm512_insertf64x2(r, _mm_loadu_pd(row(4 + i)), 2);
  return _mm512_insertf64x2(r, _mm_loadu_pd(row(6 + i)), 3);
}
template <class Put>
PYGEN_INLINE void store_rows(const Put& put, int i, const Vec<float>& r) {
  put(i, [&](float* to) { _mm_storeu_ps(to, _mm512_castps512_ps128(r)); });
  put(4 + i, [&](float* to) { _mm_storeu_ps(to, _mm512_extractf32x4_ps(r, 1)); });
  put(8 + i, [&](float* to) { _mm_storeu_ps(to, _mm512_extractf32x4_ps(r, 2)); });
  put(12 + i, [&](float* to) { _mm_storeu_ps(to, _mm512_extractf32x4_ps(r, 3)); });
}
template <class Put>
PYGEN_INLINE void store_rows(const Put& put, int i, const Vec<double>& r) {
  put(i, [&](double* to) { _mm_storeu_pd(to, _mm512_castpd512_pd128(r)); });
  put(2 + i, [&](double* to) { _mm_storeu_pd(to, _mm512_extractf64x2_pd(r, 1)); });
  put(4 + i, [&](double* to) { _mm_storeu_pd(to, _mm512_extractf64x2_pd(r, 2)); });
  put(6 + i, [&](double* to) { _mm_storeu_pd(to, _mm512_extractf64x2_pd(r, 3)); });
}
PYGEN_INLINE void transpose_quad(Vec<float>* r) {
  const __m512 a = _mm512_unpacklo_ps(r[0], r[1]), b = _mm512_unpackhi_ps(r[0], r[1]);
  const __m512 c = _mm512_unpacklo_ps(r[2], r[3]), d = _mm512_unpackhi_ps(r[2], r[3]);
  r[0] = _mm512_shuffle_ps(a, c, 0x44), r[1] = _mm512_shuffle_ps(a, c, 0xee);
  r[2] = _mm512_shuffle_ps(b, d, 0x44), r[3] = _mm512_shuffle_ps(b, d, 0xee);
}
PYGEN_INLINE void transpose_quad(Vec<double>* r) {
  const __m512d a = r[0], b = r[1];
  r[0] = _mm512_unpacklo_pd(a, b), r[1] = _mm512_unpackhi_pd(a, b);
}
#else
template <class Row>
PYGEN_INLINE Vec<float> load_rows(const Row& row, int i, float) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row(i))), _mm_loadu_ps(row(4 + i)), 1);
}
template <class Row>
PYGEN_INLINE Vec<double> load_rows(const Row& row, int i, double) {
  return _mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(row(i))), _mm_loadu_pd(row(2 + i)), 1);
}
template <class Put>
PYGEN_INLINE void store_rows(const Put& put, int i, const Vec<float>& r) {
  put(i, [&](float* to) { _mm_storeu_ps(to, _mm256_castps256_ps128(r)); });
  put(4 + i, [&](float* to) { _mm_storeu_ps(to, _mm256_extractf128_ps(r, 1)); });
}
template <class Put>
PYGEN_INLINE void store_rows(const Put& put, int i, const Vec<double>& r) {
  put(i, [&](double* to) { _mm_storeu_pd(to, _mm256_castpd256_pd128(r)); });
  put(2 + i, [&](double* to) { _mm_storeu_pd(to, _mm256_extractf128_pd(r, 1)); });
}
PYGEN_INLINE void transpose_quad(Vec<float>* r) {
  const __m256 a = _mm256_unpacklo_ps(r[0], r[1]), b = _mm256_unpackhi_ps(r[0], r[1]);
  const __m256 c = _mm256_unpacklo_ps(r[2], r[3]), d = _mm256_unpackhi_ps(r[2], r[3]);
  r[0] = _mm256_shuffle_ps(a, c, 0x44), r[1] = _mm256_shuffle_ps(a, c, 0xee);
  r[2] = _mm256_shuffle_ps(b, d, 0x44), r[3] = _mm256_shuffle_ps(b, d, 0xee);
}
PYGEN_INLINE void transpose_quad(Vec<double>* r) {
  const __m256d a = r[0], b = r[1];
  r[0] = _mm256_unpacklo_pd(a, b), r[1] = _mm256_unpackhi_pd(a, b);
}
#endif

// block[c] = channel c of every row, for kQuad channels; row(i) points to the first of row i.
template <class T, class Row>
PYGEN_INLINE void rows_to_lanes(const Row& row, T* block) {
  Vec<T> r[kQuad<T>];
#pragma GCC unroll 4
  for (int i = 0; i < kQuad<T>; ++i) r[i] = load_rows(row, i, T());
  transpose_quad(r);
#pragma GCC unroll 4
  for (int i = 0; i < kQuad<T>; ++i) r[i].store(block + i * Vec<T>::size());
}

// The inverse, for the first n rows.
template <class T, class Row>
PYGEN_INLINE void lanes_to_rows(const T* block, const Row& row, int64_t n) {
  Vec<T> r[kQuad<T>];
#pragma GCC unroll 4
  for (int i = 0; i < kQuad<T>; ++i) r[i] = Vec<T>::loadu(block + i * Vec<T>::size());
  transpose_quad(r);
  const auto all = [&](int i, const auto& store) { store(row(i)); };
  const auto some = [&](int i, const auto& store) {
    if (i < n) store(row(i));
  };
#pragma GCC unroll 4
  for (int i = 0; i < kQuad<T>; ++i) n == Vec<T>::size() ? store_rows(all, i, r[i]) : store_rows(some, i, r[i]);
}
#else
template <class T, class Row>
PYGEN_INLINE void rows_to_lanes(const Row& row, T* block) {
  for (int i = 0; i < Vec<T>::size(); ++i) {
    const T* from = row(i);
    for (int c = 0; c < kQuad<T>; ++c) block[c * Vec<T>::size() + i] = from[c];
  }
}

template <class T, class Row>
PYGEN_INLINE void lanes_to_rows(const T* block, const Row& row, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    T* to = row(i);
    for (int c = 0; c < kQuad<T>; ++c) to[c] = block[c * Vec<T>::size() + i];
  }
}
#endif

// Channels of up to Vec<T>::size() pixels, in storage S, to and from blocks. Lanes beyond the pixels repeat the last.
// Strides count elements; that of channels is 1, or else that of pixels.
template <class T, class S>
class Lanes {
 public:
  static constexpr int64_t kLanes = Vec<T>::size();

  Lanes(int64_t channels, int64_t channel, int64_t pixel) : channels_(channels), channel_(channel), pixel_(pixel) {
    if (channel == 1 && !std::is_same_v<T, S>) rows_.emplace(kLanes * channels);
  }

  // Of the pixels behind a full block, in a tensor that is read and one that is written, asked for in so many turns.
  Ahead ahead(const S* read, const S* write, int64_t turns) const {
    const int64_t block = kLanes * pixel_;
    const bool planes = channel_ != 1;
    const int64_t step = planes ? channel_ * int64_t(sizeof(S)) : kLine;
    return {read + block, write + block, planes ? channels_ : kLanes * channels_ * int64_t(sizeof(S)) / kLine, step,
            turns};
  }

  PYGEN_INLINE void load(const S* src, int64_t pixels, T* block) const {
    if (channel_ != 1) {
      for (int64_t c = 0; c < channels_; ++c, src += channel_, block += kLanes) {
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
    if constexpr (std::is_same_v<T, S>) {
      if (pixels == kLanes) return from_rows([&](int64_t i) { return src + i * pixel_; }, block);
      from_rows([&](int64_t i) { return src + std::min(i, pixels - 1) * pixel_; }, block);
    } else {
      for (int64_t i = 0; i < pixels; ++i) load_run<T>(*rows_ + i * channels_, src + i * pixel_, channels_);
      from_rows([&](int64_t i) { return *rows_ + std::min(i, pixels - 1) * channels_; }, block);
    }
  }

  PYGEN_INLINE void store(S* dst, int64_t pixels, const T* block) const {
    if (channel_ != 1) {
      for (int64_t c = 0; c < channels_; ++c) {
        if (std::is_same_v<T, S> && pixels == kLanes) {
          Vec<T>::loadu(block + c * kLanes).store(dst + c * channel_);
        } else {
          store_run(dst + c * channel_, block + c * kLanes, pixels, false);
        }
      }
      return;
    }
    if constexpr (std::is_same_v<T, S>) {
      to_rows([&](int64_t i) { return dst + i * pixel_; }, pixels, block);
    } else {
      to_rows([&](int64_t i) { return *rows_ + i * channels_; }, pixels, block);
      for (int64_t i = 0; i < pixels; ++i) store_run<S, T>(dst + i * pixel_, *rows_ + i * channels_, channels_, false);
    }
  }

 private:
  // The last quad overlaps the one before.
  template <class Quad, class One>
  PYGEN_INLINE void quads(const Quad& quad, const One& one) const {
    if (channels_ < kQuad<T>) {
      for (int64_t c = 0; c < channels_; ++c) one(c);
      return;
    }
    for (int64_t c = 0; c + kQuad<T> <= channels_; c += kQuad<T>) quad(c);
    if (channels_ % kQuad<T>) quad(channels_ - kQuad<T>);
  }

  template <class Row>
  PYGEN_INLINE void from_rows(const Row& row, T* block) const {
    quads([&](int64_t c) { rows_to_lanes<T>([&](int64_t i) { return row(i) + c; }, block + c * kLanes); },
          [&](int64_t c) {
            for (int64_t i = 0; i < kLanes; ++i) block[c * kLanes + i] = row(i)[c];
          });
  }

  template <class Row>
  PYGEN_INLINE void to_rows(const Row& row, int64_t pixels, const T* block) const {
    quads([&](int64_t c) { lanes_to_rows<T>(block + c * kLanes, [&](int64_t i) { return row(i) + c; }, pixels); },
          [&](int64_t c) {
            for (int64_t i = 0; i < pixels; ++i) row(i)[c] = block[c * kLanes + i];
          });
  }

  int64_t channels_, channel_, pixel_;
  std::optional<Scratch<T>> rows_;
};

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace pygen
