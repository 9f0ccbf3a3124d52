#include "../probe.h"

#include "tier.h"

namespace pygen {
inline namespace CPU_CAPABILITY {

const ProbeKernels probe_kernels{fma_chains<float>, fma_chains<double>};

}  // namespace CPU_CAPABILITY
}  // namespace pygen
