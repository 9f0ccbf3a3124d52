#include "../polar.h"
#include "tier.h"

namespace pygen {
inline namespace CPU_CAPABILITY {

const FrechetKernels frechet_kernels{trace_sqrt_product, {polar<float>, polar<double>}};

}  // namespace CPU_CAPABILITY
}  // namespace pygen
