// Cached sampling on a GPU: what the kernel takes from the hardware. Tests, which run the kernel on the host, bring
// what is there for nvcc alone.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/philox.h"
#include "device.h"

namespace pygen {
namespace cuda_sampler {
namespace {

struct BFloat16 {
  uint16_t bits;
};
PYGEN_DEVICE float widen(BFloat16 x) { return philox::as_float(uint32_t(x.bits) << 16); }
PYGEN_DEVICE float widen(float x) { return x; }
PYGEN_DEVICE double widen(double x) { return x; }

// 16 bytes, which are loaded at once.
template <class T>
struct alignas(16) Quad {
  static constexpr int kCount = 16 / int(sizeof(T));
  T v[kCount];
};
template <class T>
PYGEN_DEVICE Quad<T> load_quad(const T* from) {
  return *reinterpret_cast<const Quad<T>*>(from);
}

#ifdef __CUDACC__
// threadIdx.x where the compiler is not to keep, throughout the kernel, what is computed from it: registers are scarce.
PYGEN_DEVICE int thread_read_again() {
  int i;
  asm volatile("mov.u32 %0, %%tid.x;\n" : "=r"(i));
  return i;
}
#endif

// --- copies from global to shared memory that the thread does not wait for -------------------------------------------

#ifdef __CUDACC__
// Zeros where there is none; `from` is an address that may be read also then.
PYGEN_DEVICE void copy_quad(void* to, const void* from, bool some) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(unsigned(__cvta_generic_to_shared(to))),
               "l"(__cvta_generic_to_global(from)), "r"(some ? 16 : 0)
               : "memory");
}
template <class T>
PYGEN_DEVICE void copy_one(T* to, const T* from, bool some) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(unsigned(__cvta_generic_to_shared(to))),
               "l"(__cvta_generic_to_global(from)), "n"(sizeof(T)), "r"(some ? int(sizeof(T)) : 0)
               : "memory");
}
// Ends a batch of copies.
PYGEN_DEVICE void commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Waits until no more than the latest N batches of this thread are on their way.
template <int N>
PYGEN_DEVICE void wait_for_all_but() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}

// --- tensor cores
// ------------------------------------------------------------------------------------------------------

// Four 8 x 8 matrices of 16-bit numbers. The lanes 8 i, ..., 8 i + 7 point to the rows of matrix i, of which every lane
// gets the numbers (2 (lane % 4), lane / 4) and (2 (lane % 4) + 1, lane / 4).
PYGEN_DEVICE void load_transposed(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(unsigned(__cvta_generic_to_shared(row)))
               : "memory");
}
// sum [16][8] += a [16][16] b [16][8] of bfloat16, as PTX distributes them over the lanes for mma.m16n8k16
PYGEN_DEVICE void multiply_tile(float* sum, const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};\n"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

// --- the lanes of a warp together; all of them get the result --------------------------------------------------------

constexpr unsigned kAll = 0xffffffffu;

template <class T, class F>
PYGEN_DEVICE T reduce(T value, const F& join) {
#pragma unroll
  for (int step = 16; step; step /= 2) value = join(value, __shfl_xor_sync(kAll, value, step));
  return value;
}
template <class T>
PYGEN_DEVICE T sum_of(T value) {
  return reduce(value, [](T a, T b) { return a + b; });
}
template <class T>
PYGEN_DEVICE T largest(T value) {
  return reduce(value, [](T a, T b) { return a < b ? b : a; });
}

}  // namespace
}  // namespace cuda_sampler
}  // namespace pygen
