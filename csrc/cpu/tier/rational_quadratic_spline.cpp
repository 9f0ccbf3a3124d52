#include "../rational_quadratic_spline.h"

#include "tier.h"

namespace pygen {
inline namespace CPU_CAPABILITY {

using BF16 = c10::BFloat16;
using F16 = c10::Half;

const SplineKernels spline_kernels{
    {spline<float, float>, spline<double, double>, spline<BF16, BF16>, spline<F16, F16>, spline<float, BF16>,
     spline<float, F16>},
    {spline_backward<float, float>, spline_backward<double, double>, spline_backward<BF16, BF16>,
     spline_backward<F16, F16>, spline_backward<float, BF16>, spline_backward<float, F16>}};

}  // namespace CPU_CAPABILITY
}  // namespace pygen
