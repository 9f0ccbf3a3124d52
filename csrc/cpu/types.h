// Storage types of tensors, as kernels' tables count them.
#pragma once

namespace pygen {

enum class FloatType : int { kF32, kF64, kBF16, kF16 };
enum class IntType : int { kU8, kI8, kI16, kI32, kI64 };
enum class Storage : int { kF32, kF64, kBF16, kF16, kU8 };  // as FloatType; and bytes, of (v - 127.5) / 127.5

// Of data and of the parameters beside it: the same, or 16-bit parameters beside float.
enum class PairedTypes : int { kF32, kF64, kBF16, kF16, kF32BF16, kF32F16 };
constexpr int kPairedTypes = 6;

// Dense tensors; null: there is none.
struct Stored {
  const void* data;
  Storage type;
};
struct Written {
  void* data;
  FloatType type;
};

}  // namespace pygen
