// Sums and a quantile of each sample on the CPU: what is admitted, threads.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "glue.h"
#include "sample_stats_args.h"
#include "table.h"
#include "table_rows.h"

namespace pygen {
namespace {

using at::Tensor;
using at::TensorList;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kParallel = 16384;  // elements that are worth a thread

bool is_float(const Tensor& t) { return t.is_cpu() && float_type(t.scalar_type()); }

Tensor sample_stats(const Tensor& a, const OptionalTensor& b) {
  if (!is_float(a) || a.dim() < 1 || (b && !(is_float(*b) && b->sizes() == a.sizes()))) {
    return refuse("pygen::sample_stats", &sample_stats, a, b);
  }
  const auto format = layout(a);
  const Tensor first = a.contiguous(format), second = b ? b->contiguous(format) : Tensor();
  const int64_t batch = a.size(0), size = batch ? a.numel() / batch : 0, columns = b ? kStats : 2;
  Tensor out = empty({batch, columns}, at::kDouble).zero_();
  StatsArgs args{};
  args.a = stored(first);
  if (b) args.b = stored(second);
  args.size = size, args.chunks = (size + kStatsTask - 1) / kStatsTask;
  std::vector<double> sums(size_t(batch * args.chunks * kStats));
  args.sums = sums.data();
  const bool wide = a.scalar_type() == at::kDouble || (b && b->scalar_type() == at::kDouble);
  const auto kernel = kernels<StatsKernels>().sums[wide];
  at::parallel_for(0, batch * args.chunks, std::max<int64_t>(1, kParallel / std::min(kStatsTask, size + 1)),
                   [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  constexpr int kPlaces[] = {0, 2};  // of the sums of one tensor
  auto* total = out.mutable_data_ptr<double>();
  for (int64_t task = 0; task < batch * args.chunks; ++task) {
    for (int64_t k = 0; k < columns; ++k) {
      total[task / args.chunks * columns + k] += sums[size_t(task * kStats + (b ? k : kPlaces[k]))];
    }
  }
  return out;
}

Tensor quantile_abs(const Tensor& x, TensorList outputs, const Tensor& table, const OptionalTensor& index, int64_t row,
                    double q, const OptionalTensor& rescale) {
  const auto refused = [&] {
    return refuse("pygen::quantile_abs", &quantile_abs, x, outputs, table, index, row, q, rescale);
  };
  const auto fits = [&](const Tensor& t) { return is_float(t) && t.sizes() == x.sizes(); };
  const int64_t count = int64_t(outputs.size()), batch = x.dim() ? x.size(0) : 0;
  const bool shaped = rescale && rescale->dim() == 1 && rescale->size(0) == batch;
  if (x.dim() < 1 || !x.is_cpu() || !(is_float(x) || x.scalar_type() == at::kByte) || count >= kPredicted ||
      !std::all_of(outputs.begin(), outputs.end(), fits) || (rescale && !(is_float(*rescale) && shaped)) ||
      !(q >= 0 && q <= 1) || c10::multiply_integers(x.sizes().slice(1)) == 0) {
    return refused();
  }
  const TableRows rows(x, table, index, row, count + 2);
  if (!rows.ok) return refused();

  const auto is_double = [](const Tensor& t) { return t.scalar_type() == at::kDouble; };
  const bool wide = is_double(x) || std::any_of(outputs.begin(), outputs.end(), is_double);
  Tensor out = empty({batch}, wide ? at::kDouble : at::kFloat);
  if (batch == 0) return out;
  QuantileArgs args{};
  args.count = int(count) + 1;
  args.size = x.numel() / batch;
  args.runs = rescale ? std::max<int64_t>(1, rows.tokens) : rows.tokens;
  args.run = args.size / std::max<int64_t>(1, args.runs);
  const double rank = q * double(args.size - 1);
  args.rank = int64_t(std::floor(rank)), args.weight = rank - std::floor(rank);

  // tokens lie together in contiguous memory alone
  const auto format = rows.tokens > 1 ? at::MemoryFormat::Contiguous : layout(x);
  std::vector<Tensor> dense{x.contiguous(format)};
  for (const Tensor& t : outputs) dense.push_back(t.contiguous(format));
  for (size_t i = 0; i < dense.size(); ++i) args.tensor[i] = stored(dense[i]);
  const Tensor factors = rescale ? rescale->to(at::kDouble).contiguous() : Tensor();
  const int64_t runs = args.runs ? batch * args.runs : 1;
  std::vector<double> coefficients;  // p; then q r w_j for each output
  coefficients.reserve(size_t(runs * args.count));
  for (int64_t i = 0; i < runs; ++i) {
    const int64_t at = rows.whole() ? 0 : i;
    const double r = rescale ? factors.const_data_ptr<double>()[i / args.runs] : 1;
    coefficients.push_back(rows(at, count));
    for (int64_t j = 0; j < count; ++j) coefficients.push_back(rows(at, count + 1) * r * rows(at, j));
  }
  args.coefficients = coefficients.data();

  // a thread for each sample where there are as many, else all for one after the other: the same bits
  const auto kernel = kernels<StatsKernels>().quantile[wide];
  void* to = out.mutable_data_ptr();
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) kernel(torch_threads, args, i, to);
  };
  if (batch < at::get_num_threads()) {
    run(0, batch);
  } else {
    at::parallel_for(0, batch, std::max<int64_t>(1, kParallel / args.size),
                     run);  // within which workers are one thread
  }
  return out;
}

TORCH_LIBRARY_IMPL(pygen, CPU, m) {
  m.impl("sample_stats", &sample_stats);
  m.impl("quantile_abs", &quantile_abs);
}
TORCH_LIBRARY_IMPL(pygen, AutogradCPU, m) {
  m.impl("sample_stats", torch::CppFunction::makeFromBoxedFunction<&autograd_if_recorded>());
}

}  // namespace
}  // namespace pygen
