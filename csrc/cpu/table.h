// What one ISA tier offers. Plain pointers: no torch types cross between the extension modules.
#pragma once
#include <tuple>

#include "coupling_args.h"
#include "frechet_args.h"
#include "gates_args.h"
#include "heads_args.h"
#include "moments_args.h"
#include "random_args.h"

namespace pygen {

struct ProbeKernels {
  // Runs 20 independent chains of `n` fused multiply-adds on full vectors, in registers; returns the operations done.
  double (*fma32)(int64_t n);
  double (*fma64)(int64_t n);
};

using Table = std::tuple<const CouplingKernels*, const RandomKernels*, const FrechetKernels*, const GatesKernels*,
                         const HeadsKernels*, const MomentsKernels*, const ProbeKernels*>;

extern const Table* table;  // the tier in use; lives in _C

template <class K>
const K& kernels() {
  return *std::get<const K*>(*table);
}

}  // namespace pygen
