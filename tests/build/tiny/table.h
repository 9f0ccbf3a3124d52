// Stands in for csrc/cpu/table.h where a test is about the build and not about kernels.
#pragma once

namespace pygen {

struct Table {
  const char* capability;
};

extern const Table* table;

}  // namespace pygen
