#include "../masked_conv.h"

#include "tier.h"

namespace pygen {
inline namespace CPU_CAPABILITY {

const ConvKernels conv_kernels{
    {conv::forward<float>, conv::forward<double>, conv::forward<c10::BFloat16>, conv::forward<c10::Half>},
    {conv::backward<float>, conv::backward<double>, conv::backward<c10::BFloat16>, conv::backward<c10::Half>}};

}  // namespace CPU_CAPABILITY
}  // namespace pygen
