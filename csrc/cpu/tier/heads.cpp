#include "../heads.h"

#include "tier.h"

namespace pygen {
inline namespace CPU_CAPABILITY {

const HeadsKernels heads_kernels{{categorical_nll<float>, categorical_nll<double>},
                                 {categorical_nll_backward<float>, categorical_nll_backward<double>}};

}  // namespace CPU_CAPABILITY
}  // namespace pygen
