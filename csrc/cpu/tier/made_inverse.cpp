#include "../made_inverse.h"

#include "tier.h"

namespace pygen {
inline namespace CPU_CAPABILITY {

const MadeKernels made_kernels{{Vec<float>::size(), Vec<double>::size()},
                               kMadeVectors,
                               {made_pack<float>, made_pack<double>},
                               {made_forward<float>, made_forward<double>},
                               {made_backward<float>, made_backward<double>}};

}  // namespace CPU_CAPABILITY
}  // namespace pygen
