// What the glue tells a tier's kernels of gates. Plain data.
#pragma once

namespace pygen {

enum class Gate : int { kTanh, kLinear };  // tanh(a) sigmoid(b), a sigmoid(b)

}  // namespace pygen
