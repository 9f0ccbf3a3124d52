// Steps of diffusion samplers on the CPU: what is admitted, layouts, threads.
#include <ATen/Parallel.h>
#include <c10/util/SmallVector.h>
#include <torch/library.h>

#include <algorithm>
#include <string_view>
#include <vector>

#include "diffusion_step_args.h"
#include "glue.h"
#include "options.h"
#include "place.h"
#include "table.h"
#include "table_rows.h"

namespace pygen {
namespace {

using at::Tensor;
using at::TensorList;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kBlock = 1024;                             // elements to a task
constexpr int64_t kLine = 64;                                // elements: multiples of it begin where lines of memory do
constexpr int64_t kParallel = 16384, kParallelDrawn = 4096;  // elements that are worth a thread

// StepOptions of pygen/ops/diffusion_step.py
struct StepOptions {
  bool ok = true, draws = false;
  int64_t rows = 1, copies = 0;
  std::vector<at::ScalarType> dtypes;

  bool set(std::string_view name, OptionValue value) {
    if (name == "rows") return rows = value, true;
    if (name == "copies") return copies = value, true;
    if (name == "draws") return draws = value, true;
    if (name != "dtypes") return false;
    const std::string listed = value;
    for (size_t start = 0; start <= listed.size();) {
      const size_t end = std::min(listed.find(',', start), listed.size());
      const auto one = std::string_view(listed).substr(start, end - start);
      constexpr at::ScalarType kTypes[] = {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf};
      dtypes.push_back(kTypes[OptionValue(one, ok).among({"float32", "float64", "bfloat16", "float16"})]);
      start = end + 1;
    }
    return true;
  }

  size_t results() const { return size_t(rows + (copies > 0)); }
};

// The step's tensors as the kernels take them: dense, all in one layout.
class Step {
 public:
  Step(const Tensor& x, at::MemoryFormat format) : x_(x), format_(format) {}

  // Whether a tensor is as the op asks.
  bool admits(const Tensor& t, bool bytes = false) const {
    return t.is_cpu() && (float_type(t.scalar_type()) || (bytes && t.scalar_type() == at::kByte)) &&
           t.sizes() == x_.sizes();
  }
  bool admits(const OptionalTensor& t, bool bytes = false) const { return !t || admits(*t, bytes); }
  bool admits_numbers(const OptionalTensor& t) const {
    return !t || (t->is_cpu() && float_type(t->scalar_type()) && t->dim() == 1 && t->size(0) == x_.size(0));
  }

  Stored input(const Tensor& t) {
    const Tensor* dense = &t;
    if (!t.is_contiguous(format_)) dense = &owned_.emplace_back(t.contiguous(format_));
    bytes += int64_t(t.nbytes());
    return stored(*dense);
  }
  Stored input(const OptionalTensor& t) { return t ? input(*t) : Stored{}; }

  template <class T>
  const T* numbers(const Tensor& t, at::ScalarType type) {
    if (t.is_contiguous() && t.scalar_type() == type) return t.const_data_ptr<T>();
    return owned_.emplace_back(t.to(type).contiguous()).template const_data_ptr<T>();
  }

  Written result(at::ScalarType type, int64_t copies = 1) {
    c10::SmallVector<int64_t, 6> sizes(x_.sizes().begin(), x_.sizes().end());
    sizes[0] *= copies;
    const Tensor& t = results.emplace_back(empty(sizes, type, format_));
    bytes += int64_t(t.nbytes());
    return {t.mutable_data_ptr(), *float_type(type)};
  }

  std::vector<Tensor> results;
  int64_t bytes = 0;

 private:
  const Tensor& x_;
  at::MemoryFormat format_;
  c10::SmallVector<Tensor, 16> owned_;
};

std::vector<Tensor> diffusion_step(const Tensor& x, TensorList outputs, TensorList history, const Tensor& table,
                                   const OptionalTensor& index, int64_t row, const OptionalTensor& noise,
                                   const OptionalTensor& rescale, const OptionalTensor& threshold,
                                   const OptionalTensor& log_std, const OptionalTensor& known,
                                   const OptionalTensor& known_mask, const OptionalTensor& known_noise,
                                   const OptionalTensor& ids, Seed seed, int64_t first_sample, int64_t step,
                                   std::string_view options) {
  const auto refused = [&] {
    return refuse("pygen::diffusion_step", &diffusion_step, x, outputs, history, table, index, row, noise, rescale,
                  threshold, log_std, known, known_mask, known_noise, ids, seed, first_sample, step, options);
  };
  const auto& o = parse_options<StepOptions>(options);
  const auto wanted = layout(x);
  // tokens lie together, and elements in the order of the stream, in contiguous memory alone
  const auto format = o.draws || (index && index->dim() > 1) ? at::MemoryFormat::Contiguous : wanted;
  Step s(x, format);
  const auto all = [&](TensorList list) {
    return std::all_of(list.begin(), list.end(), [&](const Tensor& t) { return s.admits(t); });
  };
  OptionalTensor mask = known_mask;
  if (mask && mask->is_cpu() && mask->scalar_type() == at::kBool) mask = mask->to(at::kFloat);
  if (!o.ok || o.rows < 1 || o.rows > kStepResults || o.copies < 0 || outputs.size() > kStepOutputs ||
      history.size() > kStepHistory || !(o.dtypes.empty() || o.dtypes.size() == o.results()) || x.dim() < 1 ||
      !s.admits(x, true) || !all(outputs) || !all(history) || !s.admits(noise) || !s.admits(log_std) ||
      !s.admits(known, true) || !s.admits(mask) || !s.admits(known_noise) || !s.admits_numbers(rescale) ||
      !s.admits_numbers(threshold) || known.has_value() != mask.has_value() || (known_noise && !known) ||
      (noise && o.draws)) {
    return refused();
  }
  StepArgs a{};
  a.outputs = int(outputs.size()), a.history = int(history.size());
  a.results = int(o.rows), a.copies = int(o.copies);
  a.columns = a.outputs + 8 + a.results * (4 + a.history);
  a.wide = table.scalar_type() == at::kDouble;
  const TableRows rows(x, table, index, row, a.columns);
  if (!rows.ok || table.size(1) != a.columns) return refused();
  const bool whole = rows.whole();
  a.row = whole ? rows.at(0) : 0, a.index = rows.indices();
  const int64_t runs = !whole ? rows.count : rescale || threshold ? x.size(0) : 1;
  a.elements = x.numel();
  a.run = std::max<int64_t>(1, a.elements / std::max<int64_t>(1, runs));
  a.sample_runs = std::max<int64_t>(1, runs / std::max<int64_t>(1, x.size(0)));

  std::optional<Place> place;
  if (o.draws) {
    place.emplace(ids ? *ids : empty({0}, at::kLong), first_sample, step + (whole ? a.row : 0), 0, x.sizes());
    if (!place->ok || step + (whole ? table.size(0) - 1 : 0) >= int64_t(1) << 24) return refused();
    place->draw(seed);
    a.draws = true;
    a.place = place->stream;
  }
  if (a.wide) {
    a.table = s.numbers<double>(table, at::kDouble);
  } else {
    a.table = s.numbers<float>(table, at::kFloat);
  }
  if (rescale) a.rescale = s.numbers<double>(*rescale, at::kDouble);
  if (threshold) a.threshold = s.numbers<double>(*threshold, at::kDouble);
  a.x = s.input(x);
  for (size_t j = 0; j < outputs.size(); ++j) a.output[j] = s.input(outputs[j]);
  for (size_t i = 0; i < history.size(); ++i) a.past[i] = s.input(history[i]);
  a.noise = s.input(noise);
  a.log_std = s.input(log_std);
  a.known = s.input(known);
  a.mask = s.input(mask);
  a.known_noise = s.input(known_noise);
  const auto usual = x.scalar_type() == at::kByte ? at::kFloat : x.scalar_type();
  const auto type = [&](size_t i) { return o.dtypes.empty() ? usual : o.dtypes[i]; };
  for (int k = 0; k < a.results; ++k) a.result[k] = s.result(type(size_t(k)));
  if (o.copies) a.next = s.result(type(size_t(o.rows)), o.copies);

  const auto is_double = [](const Tensor& t) { return t.scalar_type() == at::kDouble; };
  const bool wide = is_double(x) || std::any_of(outputs.begin(), outputs.end(), is_double) ||
                    std::any_of(s.results.begin(), s.results.end(), is_double);
  a.stream = s.bytes > last_level_cache() && (a.run == a.elements || a.run % kLine == 0);
  const auto kernel = kernels<StepKernels>().step[wide];
  const int64_t tasks = (a.elements + kBlock - 1) / kBlock;
  at::parallel_for(0, tasks, (o.draws ? kParallelDrawn : kParallel) / kBlock,
                   [&](int64_t begin, int64_t end) { kernel(a, begin * kBlock, std::min(end * kBlock, a.elements)); });
  if (format != wanted) {
    for (Tensor& t : s.results) t = t.contiguous(wanted);
  }
  return std::move(s.results);
}

TORCH_LIBRARY_IMPL(pygen, CPU, m) { m.impl("diffusion_step", &diffusion_step); }
TORCH_LIBRARY_IMPL(pygen, AutogradCPU, m) {
  m.impl("diffusion_step", torch::CppFunction::makeFromBoxedFunction<&autograd_if_recorded>());
}

}  // namespace
}  // namespace pygen
