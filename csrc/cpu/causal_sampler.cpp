// Cached sampling on the CPU: what is admitted, images to threads, progress and interruption.
#include <ATen/Parallel.h>
#include <Python.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <string_view>
#include <thread>
#include <tuple>

#include "causal_sampler_args.h"
#include "causal_sampler_glue.h"
#include "glue.h"
#include "place.h"
#include "table.h"

namespace pygen {

extern thread_local PyObject* progress;  // in module.cpp

namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kImages = 16;  // side by side: enough for full tiles, and few enough for the second-level cache

// --- what is admitted ------------------------------------------------------------------------------------------------

// Whether levels are in range where they are known, and channels that are drawn together known together.
bool admits_known(const program::Program& p, const int64_t* x, const bool* known, int64_t batch) {
  const int64_t area = p.height * p.width;
  for (int64_t i = 0; i < batch * p.channels * area; ++i) {
    if (known[i] && (x[i] < 0 || x[i] >= p.levels)) return false;
    const int64_t channel = i / area % p.channels;
    if (p.groups == 1 && known[i] != known[i - channel * area]) return false;
  }
  return true;
}

// --- progress --------------------------------------------------------------------------------------------------------

// Counts rows from any thread. The one that made it looks for signals, and reports, as Python's.
struct Progress {
  explicit Progress(int64_t rows) : total(rows), report(pygen::progress) {}

  bool tick(int64_t rows) {
    done += rows;
    if (!stop && std::this_thread::get_id() == caller && Py_IsInitialized()) {
      const pybind11::gil_scoped_acquire gil;
      if (PyErr_CheckSignals() != 0) fail();
      if (report != nullptr && !stop) {
        PyObject* result =
            PyObject_CallFunction(report, "LL", static_cast<long long>(done), static_cast<long long>(total));
        if (result == nullptr) fail();
        Py_XDECREF(result);
      }
    }
    return !stop;
  }
  void fail() {  // with Python's error set
    error = std::make_exception_ptr(pybind11::error_already_set());
    stop = true;
  }

  const int64_t total;
  PyObject* const report;
  const std::thread::id caller = std::this_thread::get_id();
  std::atomic<int64_t> done{0};
  std::atomic<bool> stop{false};
  std::exception_ptr error;
};

// --- the op ----------------------------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> causal_sampler(const Tensor& x, const Tensor& known, const OptionalTensor& noise,
                                          const Tensor& words, at::TensorList tensors, at::TensorList conditions,
                                          const Tensor& ids, Seed seed, int64_t first_sample, int64_t step,
                                          int64_t offset, std::string_view options) {
  const auto& o = parse_options<SamplerOptions>(options);
  const auto refused = [&] {
    return refuse("pygen::causal_sampler", &causal_sampler, x, known, noise, words, tensors, conditions, ids, seed,
                  first_sample, step, offset, options);
  };
  const auto call = SamplerCall::admit(o, x, known, noise, words, tensors);
  if (!call || !x.is_cpu()) return refused();
  const program::Program& p = call->program;
  const int64_t batch = call->batch;
  Place place(ids, first_sample, step, offset, call->noise_size);
  SamplerTensors taken;
  if (!place.ok || !taken.take(p, tensors, conditions, batch, call->type, at::kCPU)) return refused();
  Tensor out = empty(call->size, at::kLong);
  out.copy_(x);
  const Tensor dense = known.contiguous(), u = noise ? noise->to(at::kDouble).contiguous() : Tensor();
  if (!admits_known(p, out.const_data_ptr<int64_t>(), dense.const_data_ptr<bool>(), batch)) return refused();
  if (noise && u.numel() && !(u.min().item<double>() >= 0 && u.max().item<double>() < 1)) return refused();
  if (!noise) place.draw(seed);
  Tensor log_prob = empty({o.log_prob ? batch : 0}, at::kDouble);

  Progress progress(batch * p.height);
  SamplerArgs a{};
  a.program = &p;
  a.tensors = taken.weights.data(), a.conditions = taken.conditions.data();
  a.is_map = reinterpret_cast<const bool*>(taken.is_map.data());
  a.x = out.mutable_data_ptr<int64_t>();
  a.known = dense.const_data_ptr<bool>();
  a.noise = noise ? u.const_data_ptr<double>() : nullptr;
  a.log_prob = o.log_prob ? log_prob.mutable_data_ptr<double>() : nullptr;
  a.stream = place.stream;
  a.temperature = float(o.temperature), a.top_k = o.top_k, a.top_p = o.top_p;
  a.context = &progress;
  a.tick = [](void* context, int64_t rows) { return static_cast<Progress*>(context)->tick(rows); };

  // As many images side by side as keep all threads busy; if there are two threads to an image, in pairs.
  const int64_t threads = at::get_num_threads(), rounds = (batch + threads * kImages - 1) / (threads * kImages);
  const int64_t groups = std::min(batch, threads * rounds), to_each = 2 * groups <= threads ? 2 : 1;
  std::vector<SamplerPair> pairs(to_each == 2 ? size_t(groups) : 0);
  const auto& tier = kernels<SamplerKernels>();
  const int kind = call->type == at::kFloat ? 0 : call->type == at::kDouble ? 1 : 2;
  std::atomic<int> end{int(SamplerEnd::kDone)};
  at::parallel_for(0, groups * to_each, 1, [&](int64_t first, int64_t last) {
    for (; first < last && end == int(SamplerEnd::kDone); ++first) {
      const int64_t group = first / to_each, begin = batch * group / groups;
      SamplerPair* const pair = pairs.empty() ? nullptr : &pairs[size_t(group)];
      if (first % to_each) {
        tier.help[kind](*pair);
        continue;
      }
      const auto how = tier.run[kind](a, begin, batch * (group + 1) / groups - begin, pair);
      if (how != SamplerEnd::kDone) {
        end = int(how);
        progress.stop = true;
      }
    }
  });
  if (end == int(SamplerEnd::kDone)) progress.tick(progress.total - progress.done);  // rows that nobody needed
  if (progress.error) std::rethrow_exception(progress.error);
  TORCH_CHECK_VALUE(end != int(SamplerEnd::kBadLogits),
                    "causal_sampler: expected logits below infinity, some of each pixel above -inf, got others or NaN");
  TORCH_CHECK_VALUE(end != int(SamplerEnd::kBadMixture),
                    "causal_sampler: expected parameters of a mixture to draw from, got NaN");
  return {out, log_prob};
}

TORCH_LIBRARY_IMPL(pygen, CPU, m) { m.impl("causal_sampler", &causal_sampler); }

}  // namespace
}  // namespace pygen
