// A draw from a discretised logistic mixture: the steps of pygen/reference/logistic_mixture.py, which explains them,
// for numbers or packs of them; `zero` is a pack of zeros. Rounds as philox.h does: the same bits on every backend.
#pragma once
#include "philox.h"

namespace pygen {
namespace philox {
namespace {

// x within [low, high]
template <class F>
PYGEN_HD F clamp(F x, F low, F high) {
  return select(less(x, low), low, select(less(high, x), high, x));
}

// log u - log(1 - u) of u, first brought within [1e-5, 1 - 1e-5]
template <class F>
PYGEN_HD F logit(F u, F zero) {
  u = clamp(u, zero + 1e-5f, zero + 0.99999f);
  const auto a = split(u, 0), b = split(zero + 1.0f - u, 0);
  return join(a.x, from_signed(a.e)) - join(b.x, from_signed(b.e));
}

template <class F>
PYGEN_HD F tanh(F x, F zero) {
  const auto negative = less(x, zero);
  const F minus = select(negative, x, x * -1.0f) * 2.0f;  // -2 |x|
  const F e = exp(select(less(minus, zero - 80.0f), zero - 80.0f, minus));
  return select(negative, e - 1.0f, zero + 1.0f - e) / (e + 1.0f);
}

// The weight of a component whose logit is this much below the largest, times 1 / temperature
template <class F>
PYGEN_HD F weight(F cold, F zero) {
  const auto none = less(cold, zero - 80.0f);
  return select(none, zero, exp(select(none, zero - 80.0f, cold)));
}

// mean + scale temperature logit(u), clipped
template <class F>
PYGEN_HD F draw(F mean, F log_scale, F u, float temperature, F zero) {
  const F scale = exp(clamp(log_scale, zero - 7.0f, zero + 80.0f));
  return clamp(mean + scale * (logit(u, zero) * temperature), zero - 1.0f, zero + 1.0f);
}

// The level next to x within [-1, 1]
template <class F>
PYGEN_HD F quantize(F x, float last, F zero) {
  const F level = ((x + 1.0f) * (last * 0.5f) + 12582912.0f) - 12582912.0f;
  return (level * 2.0f - last) / (zero + last);
}

}  // namespace
}  // namespace philox
}  // namespace pygen
