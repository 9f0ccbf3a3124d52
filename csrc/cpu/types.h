// Storage types of tensors, as kernels' tables count them.
#pragma once

namespace pygen {

enum class FloatType : int { kF32, kF64, kBF16, kF16 };
enum class IntType : int { kU8, kI8, kI16, kI32, kI64 };

}  // namespace pygen
