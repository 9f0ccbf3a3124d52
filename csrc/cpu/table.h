// What one ISA tier offers. Plain pointers: no torch types cross between the extension modules.
#pragma once
#include <cstdint>
#include <tuple>

namespace pygen {

// Each in its <op>_args.h, which table.h does not include: a change of one recompiles its own family alone.
struct CouplingKernels;
struct RandomKernels;
struct FrechetKernels;
struct MomentsKernels;
struct ConvKernels;

struct ProbeKernels {
  // Runs 20 independent chains of `n` fused multiply-adds on full vectors, in registers; returns the operations done.
  double (*fma32)(int64_t n);
  double (*fma64)(int64_t n);
};

using Table = std::tuple<const CouplingKernels*, const RandomKernels*, const FrechetKernels*, const MomentsKernels*,
                         const ConvKernels*, const ProbeKernels*>;

extern const Table* table;  // the tier in use; lives in _C

template <class K>
const K& kernels() {
  return *std::get<const K*>(*table);
}

}  // namespace pygen
