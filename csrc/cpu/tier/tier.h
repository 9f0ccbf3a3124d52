// One ISA tier: a translation unit for each family of kernels, and one, module.cpp, that hands their tables over. These
// alone are compiled with ISA flags.
#pragma once
#include "../table.h"

namespace pygen {
inline namespace CPU_CAPABILITY {

extern const CouplingKernels coupling_kernels;
extern const ConvKernels conv_kernels;
extern const FrechetKernels frechet_kernels;
extern const GatesKernels gates_kernels;
extern const HeadsKernels heads_kernels;
extern const LossKernels loss_kernels;
extern const MadeKernels made_kernels;
extern const MixtureKernels mixture_kernels;
extern const MomentsKernels moments_kernels;
extern const RandomKernels random_kernels;
extern const SamplerKernels sampler_kernels;
extern const SplineKernels spline_kernels;
extern const StatsKernels stats_kernels;
extern const StepKernels step_kernels;
extern const ProbeKernels probe_kernels;

}  // namespace CPU_CAPABILITY
}  // namespace pygen
