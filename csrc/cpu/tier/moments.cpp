#include "../moments.h"

#include "tier.h"

namespace pygen {
inline namespace CPU_CAPABILITY {

const MomentsKernels moments_kernels{{accumulate_moments<float>, accumulate_moments<double>,
                                      accumulate_moments<c10::BFloat16>, accumulate_moments<c10::Half>}};

}  // namespace CPU_CAPABILITY
}  // namespace pygen
