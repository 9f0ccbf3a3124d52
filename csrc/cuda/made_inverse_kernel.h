// Inverses of autoregressive transforms on a GPU: a sweep through the degrees, for some samples. In PyTorch:
// reference/made_inverse.py.
//
// A block has kLanes samples, a lane of each of its warps to a sample, and nothing to do with any other block. Its
// warps share the rows of what a step computes: the parameters of the features of a degree, then, layer by layer, the
// units of that degree. What is known of the samples lies in scratch memory, a row of kLanes numbers for each unit,
// which the caches hold; units lie in the order of their degrees, so that a step reads the first rows of a layer.
//
// Weights are packed [tile][input][kTileRows] once a call, so that one broadcast of 16 bytes (two for double) brings
// all that a tile takes of an input. Every output is a sum in an order that its step decides alone: samples are the
// same bits alone and among others.
#pragma once
#include "made_inverse_features.h"

namespace pygen {
namespace cuda_made {
namespace {

extern __shared__ __align__(16) char shared_memory[];

// --- tiles of weights ------------------------------------------------------------------------------------------------

template <class T>
struct alignas(16) TileRow {
  T v[kTileRows];  // of one input
};

constexpr int kChain = 256;  // terms of one sum: of more, the rounding shows
constexpr int kUnrolled = 8;

// The sums of a tile over the inputs from `begin` to `end`; `in` points to the lane of the first row of inputs.
template <class T>
PYGEN_DEVICE TileRow<T> multiply(const TileRow<T>* weights, const T* in, int begin, int end) {
  TileRow<T> total = {};
  for (int chain = begin; chain < end; chain += kChain) {
    const int stop = end - chain < kChain ? end : chain + kChain;
    TileRow<T> sum = {};
#pragma unroll kUnrolled
    for (int k = chain; k < stop; ++k) {
      const TileRow<T> w = weights[k];
      const T x = in[int64_t(k) * kLanes];
#pragma unroll
      for (int r = 0; r < kTileRows; ++r) sum.v[r] = multiply_add(w.v[r], x, sum.v[r]);
    }
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) total.v[r] += sum.v[r];
  }
  return total;
}

// --- nonlinearities --------------------------------------------------------------------------------------------------

template <class T>
PYGEN_DEVICE T apply(Nonlinearity f, T h) {
  switch (f) {
    case Nonlinearity::kRelu:
      return h < T(0) ? T(0) : h;
    case Nonlinearity::kLeakyRelu:
      return h < T(0) ? h * T(0.01) : h;
    case Nonlinearity::kElu:
      return elu(h);
    case Nonlinearity::kTanh:
      return tanh(h);
    case Nonlinearity::kSigmoid:
      return sigmoid(h);
    default:
      return h * sigmoid(h);
  }
}

// f'(h)
template <class T>
PYGEN_DEVICE T slope(Nonlinearity f, T h) {
  switch (f) {
    case Nonlinearity::kRelu:
      return h > T(0) ? T(1) : T(0);
    case Nonlinearity::kLeakyRelu:
      return h > T(0) ? T(1) : T(0.01);
    case Nonlinearity::kElu:
      return h > T(0) ? T(1) : exp(h);
    case Nonlinearity::kTanh: {
      const T t = tanh(h);
      return multiply_add(-t, t, T(1));
    }
    case Nonlinearity::kSigmoid:
      return sigmoid(h) * sigmoid(-h);
    default:
      return sigmoid(h) * multiply_add(h, sigmoid(-h), T(1));
  }
}

// --- what a step is --------------------------------------------------------------------------------------------------

// Of layer l at a step: the places of the units (of the last one: features) that it computes, the inputs that they may
// read, and their weights.
template <class T>
struct Part {
  int first, last, inputs;
  const TileRow<T>* weights;

  PYGEN_DEVICE Part(const Launch<T>& a, int l, int step) {
    const int32_t* const below = a.numbers + a.units[l].ends;
    const int32_t* const own = a.numbers + a.units[l < a.hidden ? l + 1 : 0].ends;
    first = step ? own[step - 1] : 0, last = own[step];
    inputs = l < a.hidden ? below[step] : step ? below[step - 1] : 0;
    weights = reinterpret_cast<const TileRow<T>*>(a.packed + a.places[int64_t(l) * a.steps + step]);
  }
};

PYGEN_DEVICE int tiles_of(int rows) { return (rows + kTileRows - 1) / kTileRows; }

// --- the sweep -------------------------------------------------------------------------------------------------------

template <class T, template <class> class Feature>
class Sweep {
 public:
  PYGEN_DEVICE Sweep(const Launch<T>& a, int64_t first)
      : a_(a),
        feature_(a),
        warp_(int(threadIdx.x) / kLanes),
        lane_(int(threadIdx.x) % kLanes),
        exists_(first + lane_ < a.batch),
        sample_(exists_ ? first + lane_ : a.batch - 1),
        scratch_(a.scratch + int64_t(blockIdx.x) * a.scratch_rows * kLanes + lane_) {}

  PYGEN_DEVICE void forward() {
    double total = 0;
    for (int step = 0; step < a_.steps; ++step) {
      const Part<T> part(a_, a_.hidden, step);
      parameters(part);
      for (int j = part.first + warp_; j < part.last; j += kWarps) {
        const int64_t at = sample_ * a_.features + order(0, j);
        T log_slope;
        const T x = feature_.invert(a_.y[at], parameters_of(part, j), log_slope);
        *row(a_.x_row + j) = x;
        if (exists_) a_.x[at] = x;
        total += double(log_slope);
      }
      if (part.last == a_.features) break;
      __syncthreads();
      for (int l = 0; l < a_.hidden; ++l) units(l, step);
    }
    auto* const totals = reinterpret_cast<double*>(shared_memory) + lane_;
    totals[warp_ * kLanes] = total;
    __syncthreads();
    if (warp_ == 0) {
      for (int warp = 1; warp < kWarps; ++warp) total += totals[warp * kLanes];
      if (exists_) a_.logabsdet[sample_] = T(total);
    }
  }

  PYGEN_DEVICE void backward() {
    for (int j = warp_; j < a_.features; j += kWarps) {
      const int64_t at = sample_ * a_.features + order(0, j);
      *row(a_.x_row + j) = a_.found[at];
      *row(a_.grad_x_row + j) = a_.grad_x[at];
    }
    for (int64_t r = a_.first_grad_row + warp_; r < a_.grad_x_row; r += kWarps) *row(r) = T(0);
    __syncthreads();
    int step = 0;
    for (; a_.numbers[a_.units[0].ends + step] < a_.features; ++step) {
      for (int l = 0; l < a_.hidden; ++l) units(l, step);
    }
    features_back(step);
    while (step-- > 0) {
      for (int l = a_.hidden - 1; l >= 0; --l) units_back(l, step);
      features_back(step);
    }
  }

 private:
  PYGEN_DEVICE T* row(int64_t r) const { return scratch_ + r * kLanes; }
  PYGEN_DEVICE int order(int units, int place) const { return a_.numbers[a_.units[units].order + place]; }
  PYGEN_DEVICE T* parameters_of(const Part<T>& part, int j) const {
    return row(a_.parameter_row + int64_t(j - part.first) * a_.parameters);
  }
  // what layer l reads, and the gradient of that
  PYGEN_DEVICE T* read_by(int l) const { return row(l ? a_.layers[l - 1].after : a_.x_row); }
  PYGEN_DEVICE T* grad_below(int l) const { return row(l ? a_.layers[l - 1].grad : a_.grad_x_row); }
  PYGEN_DEVICE T bias(const Layer<T>& layer, int64_t row) const {
    return layer.bias[sample_ * layer.bias_sample + row];
  }

  // Calls finish(row, sum) for the rows of a part, by warps; then all warps see what that wrote. Where there are fewer
  // tiles than warps, several warps share a tile's inputs.
  template <class F>
  PYGEN_DEVICE void multiply_rows(int l, const Part<T>& part, int rows, const F& finish) const {
    const T* const in = read_by(l);
    const int tiles = tiles_of(rows), slices = slices_of(tiles, part.inputs);
    const auto finish_tile = [&](int tile, const TileRow<T>& sums) {
#pragma unroll
      for (int r = 0; r < kTileRows; ++r) {
        if (tile * kTileRows + r < rows) finish(tile * kTileRows + r, sums.v[r]);
      }
    };
    if (slices == 1) {
      for (int tile = warp_; tile < tiles; tile += kWarps) {
        finish_tile(tile, multiply(part.weights + int64_t(tile) * part.inputs, in, 0, part.inputs));
      }
    } else {
      const int tile = warp_ % tiles, slice = warp_ / tiles;
      const auto from = [&](int s) { return int(int64_t(part.inputs) * s / slices); };
      T* const partial = reinterpret_cast<T*>(shared_memory) + lane_;
      TileRow<T> sums = {};
      if (slice < slices) {
        sums = multiply(part.weights + int64_t(tile) * part.inputs, in, from(slice), from(slice + 1));
      }
      if (slice) {
#pragma unroll
        for (int r = 0; r < kTileRows; ++r) partial[(warp_ * kTileRows + r) * kLanes] = sums.v[r];
      }
      __syncthreads();
      if (slice == 0) {
        for (int other = 1; other < slices; ++other) {
#pragma unroll
          for (int r = 0; r < kTileRows; ++r) {
            sums.v[r] += partial[((other * tiles + tile) * kTileRows + r) * kLanes];
          }
        }
        finish_tile(tile, sums);
      }
    }
    __syncthreads();
  }
  // How many warps share a tile's inputs: a matter of the step alone.
  PYGEN_DEVICE static int slices_of(int tiles, int inputs) {
    constexpr int kLeast = 16;  // inputs that are worth a warp
    const int warps = kWarps / tiles, most = inputs / kLeast;
    const int slices = warps < most ? warps : most;
    return slices > 1 ? slices : 1;
  }

  PYGEN_DEVICE void units(int l, int step) const {
    const Part<T> part(a_, l, step);
    if (part.first == part.last) return;
    const Layer<T>& own = a_.layers[l];
    multiply_rows(l, part, part.last - part.first, [&](int r, T sum) {
      const int place = part.first + r;
      T start = bias(own, order(l + 1, place));
      if (own.skip >= 0) start += *row(a_.layers[l - 2].before + a_.numbers[own.skip + place]);
      const T h = start + sum;
      *row(own.before + place) = h;
      if (own.f_follows) *row(own.after + place) = apply(a_.nonlinearity, h);
    });
  }

  // of the features of a step
  PYGEN_DEVICE void parameters(const Part<T>& part) const {
    const int l = a_.hidden, each = a_.parameters;
    if (part.first == part.last) return;
    multiply_rows(l, part, (part.last - part.first) * each, [&](int r, T sum) {
      const int64_t own = int64_t(order(0, part.first + r / each)) * each + r % each;
      *row(a_.parameter_row + r) = bias(a_.layers[l], own) + sum;
    });
  }

  // Adds to the gradients of a part's inputs what the rows, whose gradients begin at `grads`, give them; then all warps
  // see it. A warp has kTileRows inputs at a time.
  PYGEN_DEVICE void multiply_back(int l, const Part<T>& part, const T* grads, int rows) const {
    T* const to = grad_below(l);
    const int tiles = tiles_of(rows);
    for (int first = warp_ * kTileRows; first < part.inputs; first += kWarps * kTileRows) {
      T sums[kTileRows];
#pragma unroll
      for (int i = 0; i < kTileRows; ++i) {
        const int k = first + i < part.inputs ? first + i : part.inputs - 1;
        sums[i] = to[int64_t(k) * kLanes];
      }
      for (int tile = 0; tile < tiles; ++tile) {
        T grad[kTileRows];
#pragma unroll
        for (int r = 0; r < kTileRows; ++r) {
          const int own = tile * kTileRows + r;
          grad[r] = own < rows ? grads[int64_t(own) * kLanes] : T(0);
        }
        const TileRow<T>* const weights = part.weights + int64_t(tile) * part.inputs;
#pragma unroll
        for (int i = 0; i < kTileRows; ++i) {
          const TileRow<T> w = weights[first + i < part.inputs ? first + i : part.inputs - 1];
#pragma unroll
          for (int r = 0; r < kTileRows; ++r) sums[i] = multiply_add(w.v[r], grad[r], sums[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < kTileRows; ++i) {
        if (first + i < part.inputs) to[int64_t(first + i) * kLanes] = sums[i];
      }
    }
    __syncthreads();
  }

  PYGEN_DEVICE void units_back(int l, int step) const {
    const Part<T> part(a_, l, step);
    if (part.first == part.last) return;
    const Layer<T>& own = a_.layers[l];
    for (int i = part.first + warp_; i < part.last; i += kWarps) {
      T grad = *row(own.grad + i);
      if (own.f_follows) grad *= slope(a_.nonlinearity, *row(own.before + i));
      if (own.grad_added >= 0) grad += *row(own.grad_added + i);
      *row(own.grad + i) = grad;
      if (own.skip >= 0) *row(a_.layers[l - 2].grad_added + a_.numbers[own.skip + i]) += grad;
    }
    __syncthreads();
    multiply_back(l, part, row(own.grad + part.first), part.last - part.first);
  }

  PYGEN_DEVICE void features_back(int step) const {
    const Part<T> part(a_, a_.hidden, step);
    if (part.first == part.last) return;
    parameters(part);
    const T grad_log_slope = a_.grad_logabsdet[sample_];
    for (int j = part.first + warp_; j < part.last; j += kWarps) {
      const int64_t at = sample_ * a_.features + order(0, j);
      const T grad_y = feature_.differentiate(a_.y[at], *row(a_.x_row + j), *row(a_.grad_x_row + j), grad_log_slope,
                                              parameters_of(part, j));
      if (exists_) a_.grad_y[at] = grad_y, a_.grad_total[at] = *row(a_.grad_x_row + j);
    }
    __syncthreads();
    multiply_back(a_.hidden, part, row(a_.parameter_row), (part.last - part.first) * a_.parameters);
  }

  const Launch<T>& a_;
  const Feature<T> feature_;
  const int warp_, lane_;
  const bool exists_;
  const int64_t sample_;  // of lanes that have none the last one
  T* const scratch_;      // of the lane
};

// --- kernels ---------------------------------------------------------------------------------------------------------

// Packs the weights that layer l takes at a step, by `shares` blocks: block (l * steps + step) * shares + share.
template <class T>
__global__ void __launch_bounds__(kThreads) pack(const __grid_constant__ Launch<T> a, int shares) {
  const int64_t place = int64_t(blockIdx.x) / shares;
  const int share = int(blockIdx.x % unsigned(shares));
  const int l = int(place / a.steps), step = int(place % a.steps);
  const Part<T> part(a, l, step);
  const bool last = l == a.hidden;
  const int each = last ? a.parameters : 1, rows = (part.last - part.first) * each;
  const Units below = a.units[l];
  const int32_t* const own = a.numbers + a.units[last ? 0 : l + 1].order;
  T* const to = a.packed + a.places[place];
  for (int tile = share; tile < tiles_of(rows); tile += shares) {
    for (int i = int(threadIdx.x); i < part.inputs * kTileRows; i += kThreads) {
      const int r = tile * kTileRows + i % kTileRows, k = i / kTileRows;
      T w = T(0);
      if (r < rows) {
        const int64_t row = int64_t(own[part.first + r / each]) * each + r % each;
        w = a.layers[l].weights[row * below.count + a.numbers[below.order + k]];
      }
      to[int64_t(tile) * part.inputs * kTileRows + i] = w;
    }
  }
}

// As many blocks as have memory, which take turns. Blocks that a multiprocessor is to hold bound the registers.
template <class T, template <class> class Feature, bool kBackward>
__global__ void __launch_bounds__(kThreads, (sizeof(T) == 4 ? 2 : 1) + !kBackward)
    sweep(const __grid_constant__ Launch<T> a) {
  for (int64_t first = int64_t(blockIdx.x) * kLanes; first < a.batch; first += int64_t(gridDim.x) * kLanes) {
    Sweep<T, Feature> own(a, first);
    if constexpr (kBackward) {
      own.backward();
    } else {
      own.forward();
    }
    __syncthreads();
  }
}

}  // namespace
}  // namespace cuda_made
}  // namespace pygen
