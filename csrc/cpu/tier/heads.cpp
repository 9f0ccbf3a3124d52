#include "../heads.h"

#include "tier.h"

namespace pygen {
inline namespace CPU_CAPABILITY {

const HeadsKernels heads_kernels{
    {{head_nll<float, categorical_values<float>>, head_nll<double, categorical_values<double>>},
     {head_nll_backward<float, categorical_gradients<float>>,
      head_nll_backward<double, categorical_gradients<double>>}},
    {{head_nll<float, bernoulli_values<float>>, head_nll<double, bernoulli_values<double>>},
     {head_nll_backward<float, bernoulli_gradients<float>>, head_nll_backward<double, bernoulli_gradients<double>>}}};

}  // namespace CPU_CAPABILITY
}  // namespace pygen
