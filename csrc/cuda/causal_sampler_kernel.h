// Cached sampling on a GPU: runs a pixel program for some images. In PyTorch: reference/causal_sampler.py.
//
// A block has kImages images and nothing to do with any other: it synchronises with itself alone, so that any number of
// them runs on any GPU. A plane is [row of a ring][column][image][channel] as on the CPU. Planes that only stages of
// the same pixel read lie in shared memory as long as there is some, the others in global memory, which the caches
// hold.
//
// Stages of a pixel have a site for each image. A warp has 32 columns and every n-th stretch of the depth, whose
// weights it copies for itself, some stretches ahead, across the barriers between stages: they do not depend on what is
// computed. Stages of a row have thousands of sites: the block multiplies tiles of them.
//
// Every output is a sum in an order that its stage decides alone: images are the same bits alone and among others.
#pragma once
#include "causal_sampler_device.h"
#include "causal_sampler_draw.h"
#include "causal_sampler_layout.h"
#include "causal_sampler_multiply.h"
#include "common/pixel_program.h"

namespace pygen {
namespace cuda_sampler {
namespace {

using program::Activation;

extern __shared__ __align__(16) char shared_memory[];

// --- what follows a product ------------------------------------------------------------------------------------------

// y [written] = activation(pre) + residual of a site, by a warp
template <class T>
PYGEN_DEVICE void finish(const Stage& s, const T* pre, const T* residual, T* y, int lane) {
  const Activation activation = Activation(s.activation);
  const bool gated = activation == Activation::kGate || activation == Activation::kGlu;
  const int n = gated ? s.written : s.outputs;
  for (int j = lane; j < n; j += 32) {
    T v = pre[j];
    if (gated) {
      v = (activation == Activation::kGate ? tanh(v) : v) * sigmoid(pre[n + j]);
    } else if (activation == Activation::kRelu) {
      v = v < T(0) ? T(0) : v;
    } else if (activation == Activation::kElu) {
      v = elu(v);
    } else if (activation == Activation::kConcatElu) {
      const T second = elu(-v);
      y[n + j] = residual ? second + residual[n + j] : second;
      v = elu(v);
    }
    y[j] = residual ? v + residual[j] : v;
  }
}

// --- a program, for some images --------------------------------------------------------------------------------------

template <class T, class W>
class Sampler {
 public:
  PYGEN_DEVICE Sampler(const Launch& a, int64_t first)
      : a_(a),
        first_(first),
        count_(int(a.batch - first_ < kImages ? a.batch - first_ : kImages)),
        thread_(int(threadIdx.x)),
        warp_(thread_ / 32),
        lane_(thread_ % 32),
        global_(a.scratch + int64_t(blockIdx.x) * a.scratch_size) {}

  PYGEN_DEVICE void run() {
    clear_planes();
    const int64_t last = last_unknown();
    for (int r = 0; int64_t(r) * a_.width <= last; ++r) {
      blank_image_row(r);
      for (int i = 0; i < a_.ends[0]; ++i) {
        if (meets(r, a_.stages[i].row_every, a_.stages[i].row_at)) run_row_stage(a_.stages[i], r);
      }
      __syncthreads();
      for (int c = 0; c < a_.width && int64_t(r) * a_.width + c <= last; ++c) {
        put_known(r, c);
        for (int group = 0; group < a_.groups; ++group) {
          const bool drawn = any_unknown(group, r, c);
#pragma unroll 1
          for (int list = 2 * group; list < 2 * group + (drawn ? 2 : 1); ++list) {
            run_pixel_stages(a_.ends[list], a_.ends[list + 1], r, c);
          }
          if (drawn) draw(group, r, c);
          __syncthreads();
        }
      }
    }
    if (a_.log_prob && warp_ < count_ && lane_ == 0) a_.log_prob[first_ + warp_] = log_prob_;
  }

 private:
  using M = Multiplier<T, W>;
  using B = Buffers<T, W>;
  static constexpr int kChain = 256;  // terms of one sum: of more, the rounding shows

  PYGEN_DEVICE static bool meets(int i, int every, int at) { return every == 1 || i % every == at; }

  // --- memory

  PYGEN_DEVICE W* slot(int i) const {
    return reinterpret_cast<W*>(shared_memory + (warp_ * kSlots + i % kSlots) * kSlotBytes);
  }
  PYGEN_DEVICE T* inputs() const { return reinterpret_cast<T*>(shared_memory + kRing); }
  PYGEN_DEVICE T* partial() const { return reinterpret_cast<T*>(shared_memory + kRing + kInputs); }
  PYGEN_DEVICE T* row_inputs(int i) const {
    return reinterpret_cast<T*>(shared_memory + i % B::kRowBuffers * B::kRowBuffer);
  }
  PYGEN_DEVICE W* row_weights(int i) const {
    return reinterpret_cast<W*>(shared_memory + i % B::kRowBuffers * B::kRowBuffer + B::kRowInputs);
  }
  PYGEN_DEVICE T* row_pre() const { return reinterpret_cast<T*>(global_ + a_.pre_offset); }
  PYGEN_DEVICE T* pixel_pre() const {
    return a_.pre_shared ? reinterpret_cast<T*>(shared_memory + a_.shared_pre) : row_pre();
  }

  // The first image's channels at the place of pixel (r, c), displaced.
  PYGEN_DEVICE T* place(int plane, int r, int c, int dy = 0, int dx = 0) const {
    const Plane& p = a_.planes[plane];
    if (p.scale != 1) r /= p.scale, c /= p.scale;
    const int64_t column = p.transient ? 0 : p.left + c + dx;
    char* base = (p.shared ? shared_memory + a_.shared_planes : global_) + p.offset;
    return reinterpret_cast<T*>(base) + ((r + dy) & p.ring) * p.row_size + column * kImages * p.channels;
  }

  PYGEN_DEVICE void clear_planes() const {
    for (int64_t i = thread_ * int64_t(sizeof(T)); i < a_.pre_offset; i += kThreads * int64_t(sizeof(T))) {
      *reinterpret_cast<T*>(global_ + i) = T(0);
    }
    for (int i = a_.shared_planes + thread_ * int(sizeof(T)); i < a_.shared_size; i += kThreads * int(sizeof(T))) {
      *reinterpret_cast<T*>(shared_memory + i) = T(0);
    }
  }

  // --- stages

  // bias + condition + start of an output; sites of a pixel are its images
  PYGEN_DEVICE T begin(const Stage& s, const T* start, int r, int c, int image, int j) const {
    T sum = s.bias ? static_cast<const T*>(s.bias)[j] : T(0);
    if (s.condition) {
      int64_t index = first_ + (image < count_ ? image : 0);
      if (s.condition_map) {
        const int scale = a_.planes[s.out].scale;
        const int64_t height = (a_.height + scale - 1) / scale, width = (a_.width + scale - 1) / scale;
        index = (index * height + r / scale) * width + c / scale;
      }
      sum += static_cast<const T*>(s.condition)[index * s.outputs + j];
    }
    if (start) sum += start[int64_t(image) * a_.planes[s.start].channels + j];
    return sum;
  }
  PYGEN_DEVICE const T* start_of(const Stage& s, int r, int c) const {
    return s.start < 0 ? nullptr : place(s.start, r, c) + s.start_first;
  }
  PYGEN_DEVICE void finish_site(const Stage& s, const T* pre, int r, int c, int image) const {
    const T* residual = nullptr;
    if (s.residual >= 0) {
      residual = place(s.residual, r, c) + int64_t(image) * a_.planes[s.residual].channels + s.residual_first;
    }
    finish(s, pre, residual, place(s.out, r, c) + int64_t(image) * a_.planes[s.out].channels + s.first, lane_);
  }

  // --- stages of a pixel

  // The next of the stages that concerns the pixel.
  PYGEN_DEVICE int next(int i, int end, int r, int c) const {
    for (; i < end; ++i) {
      const Stage& s = a_.stages[i];
      if (meets(r, s.row_every, s.row_at) && meets(c, s.column_every, s.column_at)) break;
    }
    return i;
  }
  PYGEN_DEVICE void run_pixel_stages(int i, int end, int r, int c) {
    i = next(i, end, r, c);
    if (i < end) expect(a_.stages[i], 0);
    while (i < end) {
      const int after = next(i + 1, end, r, c);
      run_pixel_stage(a_.stages[i], after < end ? &a_.stages[after] : nullptr, r, c);
      i = after;
    }
    __syncthreads();
  }

  // What a warp does of a stage: columns `panel` of those that are computed together, of every `slices`-th stretch.
  struct Share {
    int panels, together, slices, panel, slice, stretches;
  };
  PYGEN_DEVICE Share share(const Stage& s, int block) const {
    Share h;
    h.panels = (s.outputs + kPanel - 1) / kPanel;
    h.together = h.panels >= 4 ? 4 : h.panels >= 2 ? 2 : 1;
    h.slices = kWarps / h.together;
    h.panel = block * h.together + warp_ % h.together;
    h.slice = warp_ / h.together;
    const int all = (s.depth + B::kStretch - 1) / B::kStretch;
    h.stretches = h.panel < h.panels && h.slice < all ? (all - h.slice + h.slices - 1) / h.slices : 0;
    return h;
  }
  // Copies stretch i of a warp's share.
  PYGEN_DEVICE void copy_weights(const Stage& s, const Share& h, int i) const {
    constexpr int kRow = 32 * int(sizeof(W));  // bytes
    if (i < h.stretches) {
      const int depth = (h.slice + i * h.slices) * B::kStretch;
      const char* panel = static_cast<const char*>(s.weight) + int64_t(h.panel) * s.depth * kRow;
#pragma unroll
      for (int at = lane_ * 16; at < kSlotBytes; at += 32 * 16) {
        const bool some = depth + at / kRow < s.depth;
        copy_quad(reinterpret_cast<char*>(slot(i)) + M::place(at), some ? panel + int64_t(depth) * kRow + at : panel,
                  some);
      }
    }
    commit();
  }
  // Has the first weights of a stage on their way.
  PYGEN_DEVICE void expect(const Stage& s, int block) const {
    if (!s.weight) return;
    const Share h = share(s, block);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kSlots - 1; ++i) copy_weights(s, h, i);
  }

  // inputs [image][depth], of so many from `begin` on of all that the stage reads; zeros up to a whole stretch
  PYGEN_DEVICE void gather(const Stage& s, int r, int c, int begin) const {
    T* const to = inputs() + warp_ * B::kInputRow;
    const int most = s.depth - begin < B::kInputDepth ? s.depth - begin : B::kInputDepth;
    int at = -begin;
    for (int i = 0; i < s.reads && at < most; ++i) {
      const Read& read = a_.reads[s.first_read + i];
      if (at + read.count > 0) {
        const T* from = place(read.plane, r, c, read.dy, read.dx) + warp_ * a_.planes[read.plane].channels + read.first;
        const int end = most - at < read.count ? most - at : read.count;
        for (int k = (at < 0 ? -at : 0) + lane_; k < end; k += 32) to[at + k] = from[k];
      }
      at += read.count;
    }
    const int whole = (most + B::kStretch - 1) / B::kStretch * B::kStretch;
    for (int k = most + lane_; k < whole; k += 32) to[k] = T(0);
  }

  // Partial sums of a block of columns. Has the weights of what follows on their way when it ends.
  PYGEN_DEVICE void multiply_pixel(const Stage& s, int block, bool gathered, int r, int c, const Stage* then,
                                   int then_block) const {
    const Share h = share(s, block);
    T total[kPixelSums] = {};
    int i = 0;
    for (int begin = 0; begin < s.depth; begin += B::kInputDepth) {
      if (!gathered) {
        if (begin) __syncthreads();
        gather(s, r, c, begin);
        __syncthreads();
      }
      T sum[kPixelSums] = {};
      for (; i < h.stretches; ++i) {
        const int depth = (h.slice + i * h.slices) * B::kStretch - begin;
        if (depth >= B::kInputDepth) break;
        wait_for_all_but<kSlots - 2>();
        __syncwarp();
        M::pixel(slot(i), inputs() + depth, lane_, sum);
        copy_weights(s, h, i + kSlots - 1);
      }
#pragma unroll
      for (int e = 0; e < kPixelSums; ++e) total[e] += sum[e];
    }
    if (then) expect(*then, then_block);
    if (h.panel < h.panels) {
#pragma unroll
      for (int e = 0; e < kPixelSums; ++e) {
        partial()[(warp_ * kImages + M::pixel_image(e, lane_)) * 32 + M::pixel_column(e, lane_)] = total[e];
      }
    }
  }

  PYGEN_DEVICE void run_pixel_stage(const Stage& s, const Stage* then, int r, int c) const {
    T* const pre = pixel_pre();
    const T* const start = start_of(s, r, c);
    __syncthreads();  // what is read has been written
    if (s.weight) {
      const Share h = share(s, 0);
      const int columns = h.together * 32, blocks = (h.panels + h.together - 1) / h.together;
      for (int block = 0; block < blocks; ++block) {
        const bool last = block + 1 == blocks;
        multiply_pixel(s, block, block && s.depth <= B::kInputDepth, r, c, last ? then : &s, last ? 0 : block + 1);
        __syncthreads();
        for (int e = thread_; e < columns * kImages; e += kThreads) {
          const int image = e / columns, column = e % columns, j = block * columns + column;
          if (j >= s.outputs) continue;
          const T* sums = partial() + ((column / 32) * kImages + image) * 32 + column % 32;
          T sum = sums[0];
          for (int slice = 1; slice < h.slices; ++slice) sum += sums[slice * h.together * kImages * 32];
          pre[int64_t(image) * a_.widest + j] = begin(s, start, r, c, image, j) + sum;
        }
        __syncthreads();
      }
    } else {
      if (then) expect(*then, 0);
      for (int j = lane_; j < s.outputs; j += 32) {
        pre[int64_t(warp_) * a_.widest + j] = begin(s, start, r, c, warp_, j);
      }
      __syncwarp();
    }
    finish_site(s, pre + int64_t(warp_) * a_.widest, r, c, warp_);
  }

  // --- stages of a row

  // A stretch of what a stage reads of one place.
  struct Cursor {
    int read, first, depth;  // the first of the read's channels, and where it stands in the depth of the stage
  };
  PYGEN_DEVICE void advance(const Stage& s, Cursor& at) const {
    const int count = a_.reads[s.first_read + at.read].count;
    const int n = count - at.first < B::kRowDepth ? count - at.first : B::kRowDepth;
    at.depth += n, at.first += n;
    if (at.first == count) at.first = 0, ++at.read;
  }
  // Copies the stretch for `some` places from column c on, and the weights of four panels, to buffer i.
  PYGEN_DEVICE void copy_stretch(const Stage& s, const Cursor& at, int panel, int r, int c, int some, int i) const {
    if (at.read < s.reads) {
      const Read& read = a_.reads[s.first_read + at.read];
      const int n = read.count - at.first;
      const int thread = thread_read_again();
      const int site = thread / 4, k = thread % 4 * (B::kRowDepth / 4), column = site / kImages;
      const bool there = column < some;
      const T* from = place(read.plane, r, c + (there ? column : 0) * s.column_every, read.dy, read.dx) +
                      site % kImages * int64_t(a_.planes[read.plane].channels) + read.first + at.first;
      T* const to = row_inputs(i) + site;
#pragma unroll
      for (int v = 0; v < B::kRowDepth / 4; ++v) {
        const bool found = there && k + v < n;
        copy_one(to + (k + v) * B::kSiteRow, found ? from + k + v : from, found);
      }
      constexpr int kRow = 32 * int(sizeof(W)), kBytes = B::kRowDepth * kRow;  // of a panel
      const int panels = (s.outputs + kPanel - 1) / kPanel;
#pragma unroll
      for (int b = thread * 16; b < 4 * kBytes; b += kThreads * 16) {
        const int own = panel + b / kBytes, within = b % kBytes;
        const bool found = own < panels && within / kRow < n;
        const char* weights = static_cast<const char*>(s.weight);
        if (found) weights += (int64_t(own) * s.depth + at.depth) * kRow + within;
        copy_quad(reinterpret_cast<char*>(row_weights(i)) + M::place(b), weights, found);
      }
    }
    commit();
  }

  // pre [site][outputs] of the columns of four panels
  PYGEN_DEVICE void multiply_row(const Stage& s, int panel, int r, int c, int some) const {
    T sum[kRowSums] = {};
    const int own = c + warp_ * s.column_every;
    const T* const start = warp_ < some ? start_of(s, r, own) : nullptr;
    T* const pre = row_pre() + int64_t(warp_ * kImages) * a_.widest + panel * kPanel;
    const int columns = warp_ < some ? s.outputs - panel * kPanel : 0;
    int lane = thread_read_again() % 32;
#pragma unroll 1
    for (int e = 0; e < kRowSums; ++e) {
      const int image = M::row_image(e, lane), j = M::row_column(e, lane);
      if (j < columns) pre[int64_t(image) * a_.widest + j] = begin(s, start, r, own, image, panel * kPanel + j);
    }
    const auto put = [&] {
      lane = thread_read_again() % 32;
#pragma unroll
      for (int e = 0; e < kRowSums; ++e) {
        const int image = M::row_image(e, lane), j = M::row_column(e, lane);
        if (j < columns) pre[int64_t(image) * a_.widest + j] += sum[e];
        sum[e] = T(0);
      }
    };
    Cursor at{0, 0, 0}, ahead = at;
    __syncthreads();
    for (int i = 0; i < B::kRowBuffers - 1; ++i) {
      copy_stretch(s, ahead, panel, r, c, some, i);
      if (ahead.read < s.reads) advance(s, ahead);
    }
    for (int i = 0, chain = 0; at.read < s.reads; ++i) {
      wait_for_all_but<B::kRowBuffers - 2>();
      __syncthreads();
      const int before = at.depth;
      advance(s, at);
      const int thread = thread_read_again();
      M::row(row_weights(i), row_inputs(i) + thread / 32 * kImages, at.depth - before, thread % 32, sum);
      copy_stretch(s, ahead, panel, r, c, some, i + B::kRowBuffers - 1);
      if (ahead.read < s.reads) advance(s, ahead);
      if ((chain += B::kRowDepth) == kChain) put(), chain = 0;
    }
    put();
  }

  PYGEN_DEVICE void run_row_stage(const Stage& s, int r) const {
    const int end = s.column_at < a_.width ? (a_.width - 1 - s.column_at) / s.column_every + 1 : 0;
    for (int tile = 0; tile < end; tile += kTile) {
      const int some = end - tile < kTile ? end - tile : kTile, c = s.column_at + tile * s.column_every;
      __syncthreads();  // what is read has been written
      for (int panel = 0; panel * kPanel < s.outputs; panel += 4) multiply_row(s, panel, r, c, some);
      __syncthreads();
      for (int site = warp_; site < some * kImages; site += kWarps) {
        finish_site(s, row_pre() + int64_t(site) * a_.widest, r, c + site / kImages * s.column_every, site % kImages);
      }
    }
  }

  // --- the image

  PYGEN_DEVICE int64_t index(int image, int channel, int r, int c) const {
    return (((first_ + image) * a_.channels + channel) * a_.height + r) * a_.width + c;
  }
  PYGEN_DEVICE int first_channel(int group) const { return a_.groups > 1 ? group : 0; }
  PYGEN_DEVICE int end_channel(int group) const { return a_.groups > 1 ? group + 1 : a_.channels; }
  PYGEN_DEVICE bool unknown(int image, int group, int r, int c) const {
    for (int channel = first_channel(group); channel < end_channel(group); ++channel) {
      if (!a_.known[index(image, channel, r, c)]) return true;
    }
    return false;
  }
  PYGEN_DEVICE bool any_unknown(int group, int r, int c) const {
    for (int image = 0; image < count_; ++image) {
      if (unknown(image, group, r, c)) return true;
    }
    return false;
  }
  PYGEN_DEVICE int64_t last_unknown() const {
    const int64_t area = int64_t(a_.height) * a_.width;
    int64_t last = -1;
    for (int64_t i = thread_; i < count_ * int64_t(a_.channels) * area; i += kThreads) {
      if (!a_.known[first_ * a_.channels * area + i] && i % area > last) last = i % area;
    }
    int64_t* const of_warps = reinterpret_cast<int64_t*>(shared_memory);
    last = largest(last);
    if (lane_ == 0) of_warps[warp_] = last;
    __syncthreads();
    for (int i = 0; i < kWarps; ++i) last = of_warps[i] > last ? of_warps[i] : last;
    __syncthreads();
    return last;
  }

  // A row of the ring that held another one; channels beyond the image's are 1.
  PYGEN_DEVICE void blank_image_row(int r) const {
    T* const row = place(0, r, 0);
    const int channels = a_.planes[0].channels;
    for (int64_t i = thread_; i < int64_t(a_.width) * kImages * channels; i += kThreads) {
      row[i] = i % channels < a_.channels ? T(0) : T(1);
    }
  }
  PYGEN_DEVICE void put(int image, int channel, int r, int c, int64_t level) const {
    place(0, r, c)[int64_t(image) * a_.planes[0].channels + channel] = T(level) * T(2.0 / double(a_.levels - 1)) - T(1);
  }
  PYGEN_DEVICE void put_known(int r, int c) const {
    if (warp_ >= count_) return;
    for (int channel = lane_; channel < a_.channels; channel += 32) {
      const int64_t i = index(warp_, channel, r, c);
      if (a_.known[i]) put(warp_, channel, r, c, a_.x[i]);
    }
  }

  // --- draws

  PYGEN_DEVICE void draw(int group, int r, int c) {
    if (warp_ >= count_ || !unknown(warp_, group, r, c)) return;
    const int64_t image = first_ + warp_, pixel = int64_t(r) * a_.width + c;
    const T* const p = place(a_.output, r, c) + int64_t(warp_) * a_.planes[a_.output].channels;
    const int64_t at = index(warp_, first_channel(group), r, c), area = int64_t(a_.height) * a_.width;
    if (program::Head(a_.head) == program::Head::kCategorical) {
      Categorical<T> levels(a_, p, lane_);
      const int level = levels.draw(a_.temperature == 0 ? 0 : word(a_, image, group, pixel));
      if (lane_ == 0) {
        a_.x[at] = level;
        put(warp_, group, r, c, level);
      }
      if (a_.log_prob) log_prob_ += levels.log_prob(level);
      return;
    }
    float* const x = reinterpret_cast<float*>(global_ + a_.drawn_offset) + int64_t(warp_) * a_.channels;
    if (lane_ == 0) draw_mixture(a_, p, image, pixel, x);
    __syncwarp();
    for (int channel = lane_; channel < a_.channels; channel += 32) {
      const float last = float(a_.levels - 1), level = floorf((x[channel] + 1.0f) * (last / 2) + 0.5f);
      if (a_.known[at + channel * area]) continue;
      a_.x[at + channel * area] = level >= 0.0f ? int64_t(level > last ? last : level) : 0;  // NaN: 0
      put(warp_, channel, r, c, a_.x[at + channel * area]);
    }
    __syncwarp();
    if (a_.log_prob) log_prob_ += mixture_log_prob(a_, p, a_.x + at, area, lane_);
  }

  const Launch& a_;
  const int64_t first_;
  const int count_, thread_, warp_, lane_;
  char* const global_;
  double log_prob_ = 0;  // of the warp's image
};

// As many blocks as have memory, which take turns.
template <class T, class W>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? 2 : 1) sample(const __grid_constant__ Launch a) {
  for (int64_t first = int64_t(blockIdx.x) * kImages; first < a.batch; first += int64_t(gridDim.x) * kImages) {
    Sampler<T, W>(a, first).run();
    __syncthreads();
  }
}

}  // namespace
}  // namespace cuda_sampler
}  // namespace pygen
