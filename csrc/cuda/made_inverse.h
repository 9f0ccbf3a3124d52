// Inverses of autoregressive transforms on a GPU: what the glue tells the kernels, plain data. No torch headers.
#pragma once
#include <cstdint>

#include "cpu/made_inverse_args.h"

namespace pygen {
namespace cuda_made {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kLanes = 32;       // samples of a block, a lane to each
constexpr int kTileRows = 4;     // of weights that are multiplied together
constexpr int kMostShares = 64;  // blocks that pack the weights of a layer at a step

// Bytes of shared memory: partial sums [warp][row of a tile][lane]; at the end sums in double [warp][lane].
constexpr int shared_size(int arithmetic) { return kWarps * kTileRows * kLanes * arithmetic; }
static_assert(shared_size(4) >= kWarps * kLanes * 8);

// --- transforms, in the type of the arithmetic -----------------------------------------------------------------------

// CouplingArgs of an inverse.
template <class T>
struct AffineNumbers {
  Activation activation;
  Squash squash;
  bool multiply_last;    // x = (y + tau t) / S, else y / S + tau t
  int32_t scale, shift;  // which parameter is S's, and which is t
  T offset, eps, max_scale, log_max, gain, inverse_width, tau;
};

// SplineArgs.
template <class T>
struct AxisNumbers {
  T first, last, least, rest;  // least: size of a bin of no share; rest: what the shares are of
  T lowest, highest;           // what is admitted
};
template <class T>
struct SplineNumbers {
  SplineStyle style;
  SplineEnds ends;
  bool bounded;
  int32_t bins;
  AxisNumbers<T> x, y;
  T min_derivative, beta, boundary_slope, clip;
};

// --- the net ---------------------------------------------------------------------------------------------------------

// As MadeUnits, with places in `Launch::numbers`.
struct Units {
  int32_t count, order, ends;
};

// As MadeLayer, with what belongs to the units that it computes: rows of scratch, -1 for none.
template <class T>
struct Layer {
  const T *weights, *bias;
  int64_t bias_sample;
  int32_t skip;  // in `Launch::numbers`, or -1
  bool f_follows;
  int64_t before, after, grad, grad_added;  // before and after the nonlinearity; as the CPU's `Sweep` has them
};

template <class T>
struct Launch {
  // the net, in device memory
  const Units* units;      // [hidden + 1]: features, units of each hidden layer
  const Layer<T>* layers;  // [hidden + 1]: of each hidden layer, of the parameters
  const int32_t* numbers;
  const int64_t* places;  // [hidden + 1][steps]: where packed weights begin
  int32_t features, hidden, steps, parameters;
  Nonlinearity nonlinearity;
  AffineNumbers<T> affine;  // the one of the two that is asked for
  SplineNumbers<T> spline;
  T* packed;
  // the samples
  int64_t batch;
  const T* y;
  T *x, *logabsdet;                          // forward
  const T *found, *grad_x, *grad_logabsdet;  // backward
  T *grad_y, *grad_total;
  // memory of a block: rows of kLanes numbers
  T* scratch;
  int64_t scratch_rows, x_row, grad_x_row, parameter_row;
  int64_t first_grad_row;  // from there on, rows of gradients that are summed: they begin with 0
};

}  // namespace cuda_made
}  // namespace pygen
