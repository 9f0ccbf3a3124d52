#include "../gates.h"

#include "tier.h"

namespace pygen {
inline namespace CPU_CAPABILITY {

using BF16 = c10::BFloat16;
using F16 = c10::Half;

const GatesKernels gates_kernels{
    {gated<float>, gated<double>, gated<BF16>, gated<F16>},
    {gated_backward<float>, gated_backward<double>, gated_backward<BF16>, gated_backward<F16>},
    {concat_elu<float>, concat_elu<double>, concat_elu<BF16>, concat_elu<F16>},
    {concat_elu_backward<float>, concat_elu_backward<double>, concat_elu_backward<BF16>, concat_elu_backward<F16>}};

}  // namespace CPU_CAPABILITY
}  // namespace pygen
