#include "../sample_stats.h"

#include "tier.h"

namespace pygen {
inline namespace CPU_CAPABILITY {

const StatsKernels stats_kernels{{stats_sums<float>, stats_sums<double>}, {quantile<float>, quantile<double>}};

}  // namespace CPU_CAPABILITY
}  // namespace pygen
