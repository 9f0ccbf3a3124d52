// What all kernels take from the hardware. Tests, which run kernels on the host, bring what is there for nvcc alone.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>

#ifdef __CUDACC__
#define PYGEN_DEVICE __device__ __forceinline__
#else
#define PYGEN_DEVICE inline
#endif

namespace pygen {
namespace {

template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();
template <class T>
constexpr T kNan = std::numeric_limits<T>::quiet_NaN();

PYGEN_DEVICE float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
PYGEN_DEVICE double multiply_add(double a, double b, double c) { return fma(a, b, c); }

template <class T>
PYGEN_DEVICE T elu(T x) {
  return x > T(0) ? x : expm1(x);
}
template <class T>
PYGEN_DEVICE T sigmoid(T x) {
  return T(1) / (T(1) + exp(-x));
}

}  // namespace
}  // namespace pygen
