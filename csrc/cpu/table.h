// What one ISA tier offers. Plain pointers: no torch types cross between the extension modules.
#pragma once
#include <cstdint>
#include <tuple>

namespace pygen {

struct CouplingKernels;  // each in its <op>_args.h: who needs one is compiled anew when that one changes
struct ConvKernels;
struct FrechetKernels;
struct GatesKernels;
struct HeadsKernels;
struct LossKernels;
struct MadeKernels;
struct MixtureKernels;
struct MomentsKernels;
struct RandomKernels;
struct SamplerKernels;
struct SplineKernels;
struct StatsKernels;
struct StepKernels;

struct ProbeKernels {
  // Runs 20 independent chains of `n` fused multiply-adds on full vectors, in registers; returns the operations done.
  double (*fma32)(int64_t n);
  double (*fma64)(int64_t n);
};

using Table = std::tuple<const CouplingKernels*, const ConvKernels*, const FrechetKernels*, const GatesKernels*,
                         const HeadsKernels*, const LossKernels*, const MadeKernels*, const MixtureKernels*,
                         const MomentsKernels*, const RandomKernels*, const SamplerKernels*, const SplineKernels*,
                         const StatsKernels*, const StepKernels*, const ProbeKernels*>;

extern const Table* table;  // the tier in use; lives in _C

template <class K>
const K& kernels() {
  return *std::get<const K*>(*table);
}

}  // namespace pygen
