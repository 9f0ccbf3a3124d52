#include "../causal_sampler.h"

#include "tier.h"

namespace pygen {
inline namespace CPU_CAPABILITY {

const SamplerKernels sampler_kernels{
    {sampler::run<float, float>, sampler::run<double, double>, sampler::run<float, c10::BFloat16>},
    {sampler::help<float, float>, sampler::help<double, double>, sampler::help<float, c10::BFloat16>}};

}  // namespace CPU_CAPABILITY
}  // namespace pygen
