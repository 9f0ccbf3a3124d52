#include "../diffusion_loss.h"

#include "tier.h"

namespace pygen {
inline namespace CPU_CAPABILITY {

const LossKernels loss_kernels{{loss<float>, loss<double>}, {loss_backward<float>, loss_backward<double>}};

}  // namespace CPU_CAPABILITY
}  // namespace pygen
