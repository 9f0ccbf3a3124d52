// Cached sampling on a GPU: products of what lies in shared memory. Sums are those of a lane; where they belong,
// `Multiplier` says. Every sum is over the depth in order.
#pragma once
#include "causal_sampler_device.h"
#include "causal_sampler_layout.h"

namespace pygen {
namespace cuda_sampler {
namespace {

// How buffers are laid out for weights W and arithmetic T; depths count numbers.
template <class T, class W>
struct Buffers {
  // Of a pixel: weights [kStretch][32] of a warp; inputs [image][kInputRow], of which the last few are against
  // conflicts of banks.
  static constexpr int kStretch = kSlotBytes / (32 * int(sizeof(W)));
  static constexpr int kInputDepth = kInputDepthBytes / int(sizeof(T)), kInputRow = kInputRowBytes / int(sizeof(T));
  static_assert(kInputDepth % (kStretch * kWarps) == 0);
  // Of a tile of a row: weights [4][kRowDepth][32], inputs [kRowDepth][kSiteRow]
  static constexpr int kRowDepth = 64 / int(sizeof(T)), kSiteRow = kSites + 16 / int(sizeof(T));
  static constexpr int kRowInputs = kRowDepth * kSiteRow * int(sizeof(T));
  static constexpr int kRowBuffer = kRowInputs + kRowDepth * kRowColumns * int(sizeof(W)), kRowBuffers = 3;
  static_assert(kRowBuffers * kRowBuffer <= kRing + kInputs);
};

constexpr int kPixelSums = kImages, kRowSums = 4 * kImages;  // of a lane, for 32 and 128 columns of all images

// By fused multiply-adds, in the type of arithmetic.
template <class T, class W>
struct Multiplier {
  using B = Buffers<T, W>;

  // Where a byte of weights [...][32] lies.
  PYGEN_DEVICE static int place(int byte) { return byte; }

  PYGEN_DEVICE static int pixel_image(int e, int) { return e; }
  PYGEN_DEVICE static int pixel_column(int, int lane) { return lane; }
  PYGEN_DEVICE static void pixel(const W* weights, const T* x, int lane, T (&sum)[kPixelSums]) {
    constexpr int kCount = Quad<T>::kCount;
#pragma unroll
    for (int k = 0; k < B::kStretch; k += kCount) {
      T w[kCount];
#pragma unroll
      for (int v = 0; v < kCount; ++v) w[v] = widen(weights[(k + v) * 32 + lane]);
#pragma unroll
      for (int image = 0; image < kImages; ++image) {
        const Quad<T> own = load_quad(x + image * B::kInputRow + k);
#pragma unroll
        for (int v = 0; v < kCount; ++v) sum[image] = multiply_add(own.v[v], w[v], sum[image]);
      }
    }
  }

  PYGEN_DEVICE static int row_image(int e, int) { return e / 4; }
  PYGEN_DEVICE static int row_column(int e, int lane) { return lane * 4 + e % 4; }
  // x points to the first image of a place
  PYGEN_DEVICE static void row(const W* weights, const T* x, int depth, int lane, T (&sum)[kRowSums]) {
    const W* w = weights + lane / 8 * (B::kRowDepth * 32) + lane % 8 * 4;
#pragma unroll 2
    for (int k = 0; k < depth; ++k, x += B::kSiteRow, w += 32) {
      T columns[4], own[kImages];
#pragma unroll
      for (int v = 0; v < 4; ++v) columns[v] = widen(w[v]);
#pragma unroll
      for (int image = 0; image < kImages; ++image) own[image] = x[image];
#pragma unroll
      for (int e = 0; e < kRowSums; ++e) sum[e] = multiply_add(own[e / 4], columns[e % 4], sum[e]);
    }
  }
};

// On tensor cores: a tile is 16 columns, of 8 images, 16 deep. Inputs are cut into three numbers of 8 bits of
// significand each, whose sum they are: nothing is rounded but the sums, which tensor cores keep in float32 and round
// their own way.
template <>
struct Multiplier<float, BFloat16> {
  using B = Buffers<float, BFloat16>;
  static_assert(B::kStretch == 16 && B::kRowDepth == 16);

  // The four quarters of a row trade places, so that eight rows' same quarters lie in different banks.
  PYGEN_DEVICE static int place(int byte) { return byte ^ ((byte >> 7 & 3) << 4); }

  // sum [4] of 16 columns from column `first` on
  struct Inputs {
    uint32_t pairs[3][2];
  };
  PYGEN_DEVICE static Inputs cut(float a, float b, float c, float d) {
    constexpr uint32_t kHigh = 0xffff0000u;
    Inputs x;
#pragma unroll
    for (int part = 0; part < 3; ++part) {
      const uint32_t bits[4] = {philox::as_bits(a), philox::as_bits(b), philox::as_bits(c), philox::as_bits(d)};
      x.pairs[part][0] = (bits[1] & kHigh) | bits[0] >> 16;
      x.pairs[part][1] = (bits[3] & kHigh) | bits[2] >> 16;
      a -= philox::as_float(bits[0] & kHigh), b -= philox::as_float(bits[1] & kHigh);
      c -= philox::as_float(bits[2] & kHigh), d -= philox::as_float(bits[3] & kHigh);
    }
    return x;
  }
  PYGEN_DEVICE static void tile(const BFloat16* weights, int first, const Inputs& x, int lane, float* sum) {
    // of the four 8 x 8 matrices of a tile, a lane has the address of a row of the stored one
    const int k = lane / 16 * 8 + lane % 8, column = first + lane / 8 % 2 * 8;
    uint32_t w[4];
    load_transposed(w, reinterpret_cast<const char*>(weights) + place((k * 32 + column) * 2));
#pragma unroll
    for (int part = 0; part < 3; ++part) multiply_tile(sum, w, x.pairs[part]);
  }

  // the places of sum e of a tile
  PYGEN_DEVICE static int image_of(int e, int lane) { return lane % 4 * 2 + e % 2; }
  PYGEN_DEVICE static int column_of(int e, int lane) { return e / 4 * 16 + e % 4 / 2 * 8 + lane / 4; }

  PYGEN_DEVICE static int pixel_image(int e, int lane) { return image_of(e, lane); }
  PYGEN_DEVICE static int pixel_column(int e, int lane) { return column_of(e, lane); }
  PYGEN_DEVICE static void pixel(const BFloat16* weights, const float* x, int lane, float (&sum)[kPixelSums]) {
    const float* const own = x + lane / 4 * B::kInputRow + lane % 4 * 2;
    const Inputs cuts = cut(own[0], own[1], own[8], own[9]);
#pragma unroll
    for (int i = 0; i < 2; ++i) tile(weights, i * 16, cuts, lane, sum + 4 * i);
  }

  PYGEN_DEVICE static int row_image(int e, int lane) { return image_of(e, lane); }
  PYGEN_DEVICE static int row_column(int e, int lane) { return column_of(e, lane); }
  PYGEN_DEVICE static void row(const BFloat16* weights, const float* x, int, int lane, float (&sum)[kRowSums]) {
    const float* const own = x + lane % 4 * 2 * B::kSiteRow + lane / 4;
    const Inputs cuts = cut(own[0], own[B::kSiteRow], own[8 * B::kSiteRow], own[9 * B::kSiteRow]);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      tile(weights + i / 2 * (B::kRowDepth * 32), i % 2 * 16, cuts, lane, sum + 4 * i);
    }
  }
};

}  // namespace
}  // namespace cuda_sampler
}  // namespace pygen
