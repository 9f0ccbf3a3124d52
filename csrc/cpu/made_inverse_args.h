// What the glue tells a tier's kernels of made_inverse. Plain data; strides count elements.
#pragma once
#include <cstdint>

#include "coupling_args.h"
#include "rational_quadratic_spline_args.h"

namespace pygen {

enum class Nonlinearity : int { kRelu, kLeakyRelu, kElu, kTanh, kSigmoid, kSilu };  // the order of MadeOptions'

// What is worked on together: features, or the units of a hidden layer, in the order of their degrees.
struct MadeUnits {
  int64_t count;
  const int64_t* order;  // [count]: the number of the unit at a place
  const int64_t* ends;   // [steps]: how many have the degree of a step, or a lower one
};

// A layer of weights [rows, inputs], dense. Rows are units, or, of the last layer, the parameters of a feature side by
// side.
struct MadeLayer {
  const void *weights, *bias;
  int64_t bias_sample;    // from one sample's bias to the next: 0, or the rows
  const int64_t* skip;    // [units]: the place, two layers below, of the unit that is added; or null
  const int64_t* packed;  // [steps]: where the weights of the units of a step begin in packed memory
};

struct MadeArgs {
  int64_t batch, hidden, steps, parameters;  // hidden: layers; steps: distinct degrees; parameters: of a feature
  const MadeUnits* units;                    // [hidden + 1]: features, units of each hidden layer
  const MadeLayer* layers;                   // [hidden + 1]: of each hidden layer, of the parameters
  bool residual;
  Nonlinearity nonlinearity;
  int64_t vectors;  // of samples that are worked on side by side: 1, 2 or 4
  bool is_spline;
  CouplingArgs affine;
  bool shift_leads;  // affine: parameters are (t, s), else (s, t)
  SplineArgs spline;
  void* packed;
  const void* y;        // [batch, features]
  void *x, *logabsdet;  // forward
  const void* found;    // backward: x
  const void *grad_x, *grad_logabsdet;
  void *grad_y, *grad_total;  // total: of x, with what later features pass on

  // of a hidden layer: whether others read f of it; whether a later one adds it
  bool f_follows(int64_t l) const { return !residual || l + 1 < hidden; }
  bool is_added(int64_t l) const { return residual && l % 2 == 0 && l + 2 < hidden; }
};

// By the type of all tensors, float or double.
struct MadeKernels {
  int64_t lanes[2], vectors;                                         // samples in a vector; most vectors side by side
  void (*pack[2])(const MadeArgs&, int64_t begin, int64_t end);      // of the layers' steps, layer by layer
  void (*forward[2])(const MadeArgs&, int64_t begin, int64_t end);   // of blocks of args.vectors vectors of samples
  void (*backward[2])(const MadeArgs&, int64_t begin, int64_t end);  // the same
};

}  // namespace pygen
