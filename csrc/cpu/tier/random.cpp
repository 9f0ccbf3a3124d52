#include "../random.h"

#include "tier.h"

namespace pygen {
inline namespace CPU_CAPABILITY {

const RandomKernels random_kernels{
    random_fill,
    {bernoulli<float>, bernoulli<double>, bernoulli<c10::BFloat16>, bernoulli<c10::Half>},
    {categorical<float>, categorical<double>, categorical<c10::BFloat16>, categorical<c10::Half>},
    {dequantize<uint8_t>, dequantize<int8_t>, dequantize<int16_t>, dequantize<int32_t>, dequantize<int64_t>}};

}  // namespace CPU_CAPABILITY
}  // namespace pygen
