// Storage types of tensors, as kernels' tables count them.
#pragma once

namespace pygen {

enum class FloatType : int { kF32, kF64, kBF16, kF16 };
enum class IntType : int { kU8, kI8, kI16, kI32, kI64 };
enum class Storage : int { kF32, kF64, kBF16, kF16, kU8 };  // as FloatType; and bytes, of (v - 127.5) / 127.5

struct Stored {      // a dense tensor
  const void* data;  // null: there is none
  Storage type;
};

}  // namespace pygen
