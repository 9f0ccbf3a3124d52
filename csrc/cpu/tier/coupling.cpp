#include "../coupling.h"

#include "tier.h"

namespace pygen {
inline namespace CPU_CAPABILITY {

using BF16 = c10::BFloat16;
using F16 = c10::Half;

const CouplingKernels coupling_kernels{
    {coupling_forward<float, float>, coupling_forward<double, double>, coupling_forward<BF16, BF16>,
     coupling_forward<F16, F16>, coupling_forward<float, BF16>, coupling_forward<float, F16>},
    {coupling_backward<float, float>, coupling_backward<double, double>, coupling_backward<BF16, BF16>,
     coupling_backward<F16, F16>, coupling_backward<float, BF16>, coupling_backward<float, F16>}};

}  // namespace CPU_CAPABILITY
}  // namespace pygen
