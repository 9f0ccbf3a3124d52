#include "../logistic_mixture.h"

#include "../logistic_mixture_sample.h"
#include "tier.h"

namespace pygen {
inline namespace CPU_CAPABILITY {

using BF16 = c10::BFloat16;
using F16 = c10::Half;

const MixtureKernels mixture_kernels{
    {mixture_nll<float>, mixture_nll<double>, mixture_nll<BF16>, mixture_nll<F16>},
    {mixture_scale<float>, mixture_scale<double>, mixture_scale<BF16>, mixture_scale<F16>},
    {mixture_sample<float>, mixture_sample<double>, mixture_sample<BF16>, mixture_sample<F16>}};

}  // namespace CPU_CAPABILITY
}  // namespace pygen
