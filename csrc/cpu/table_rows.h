// The rows of a table of coefficients that a call of an op of diffusion has, and what they are of.
#pragma once
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <optional>

namespace pygen {

// The conditions of `check_table` and `check_index` in pygen/ops/_diffusion.py, without the messages.
class TableRows {
 public:
  TableRows(const at::Tensor& x, const at::Tensor& table, const std::optional<at::Tensor>& index, int64_t row,
            int64_t columns)
      : table_(table), wide_(table.scalar_type() == at::kDouble), row_(row) {
    if (!table.is_cpu() || !(wide_ || table.scalar_type() == at::kFloat) || table.dim() != 2 || table.size(0) < 1 ||
        table.size(1) < columns) {
      return;
    }
    if (index) {
      if (!index->is_cpu() || index->scalar_type() != at::kLong || index->dim() > std::min<int64_t>(2, x.dim()) ||
          index->sizes() != x.sizes().slice(0, size_t(index->dim()))) {
        return;
      }
      index_ = index->contiguous();
      rows_ = index_.const_data_ptr<int64_t>();
      tokens = index->dim() == 2 ? index->size(1) : index->dim();
      if (index->dim() == 0) row_ = *rows_, rows_ = nullptr;
    }
    count = rows_ ? index_.numel() : 1;
    for (int64_t i = 0; i < count; ++i) {
      if (at(i) < 0 || at(i) >= table.size(0)) return;
    }
    ok = true;
  }

  int64_t at(int64_t i) const { return rows_ ? rows_[i] : row_; }
  double operator()(int64_t i, int64_t column) const {
    const int64_t place = at(i) * table_.stride(0) + column * table_.stride(1);
    return wide_ ? table_.const_data_ptr<double>()[place] : double(table_.const_data_ptr<float>()[place]);
  }
  bool whole() const { return rows_ == nullptr; }   // one row for all
  const int64_t* indices() const { return rows_; }  // null if `whole`

  bool ok = false;
  int64_t count = 0;   // of rows: for a call, its samples, or its samples' tokens
  int64_t tokens = 0;  // of a sample, 1 if that has one row; 0 where all have the same

 private:
  const at::Tensor& table_;
  at::Tensor index_;
  const int64_t* rows_ = nullptr;
  bool wide_;
  int64_t row_;
};

}  // namespace pygen
