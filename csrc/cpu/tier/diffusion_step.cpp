#include "../diffusion_step.h"

#include "tier.h"

namespace pygen {
inline namespace CPU_CAPABILITY {

const StepKernels step_kernels{{diffusion_step<float>, diffusion_step<double>}};

}  // namespace CPU_CAPABILITY
}  // namespace pygen
