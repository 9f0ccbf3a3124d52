// What the glue of every op needs: the default kernel to hand over to, outputs, storage types.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/core/stack.h>
#include <ATen/ops/empty_native.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <type_traits>
#include <utility>

#include "types.h"

namespace pygen {

// The default kernel (the Python reference, with the checks and their messages): it serves every backend without a
// kernel of its own, so the key of one that nobody registers for leads to it.
inline const c10::DispatchKeySet kDefaultKernel(c10::DispatchKey::PrivateUse3);

// Calls it, which raises what is to be raised, or computes what the native kernel lacks. `op` is the caller.
template <class R, class... P>
R refuse(const char* name, R (*)(P...), std::type_identity_t<P>... args) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<R(P...)>();
  return op.redispatch(kDefaultKernel, std::forward<P>(args)...);
}

// The autograd kernel, boxed, of an op whose gradient Python registers: goes there only where one is recorded, and is
// some microseconds cheaper elsewhere.
inline void autograd_if_recorded(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const auto records = [](const c10::IValue& value) {
    if (value.isTensor()) return value.toTensor().requires_grad();
    if (!value.isTensorList()) return false;
    const auto items = value.toListRef();
    return std::any_of(items.begin(), items.end(),
                       [](const c10::IValue& item) { return item.toTensor().requires_grad(); });
  };
  keys = keys & c10::after_ADInplaceOrView_keyset;
  if (at::GradMode::is_enabled() && std::any_of(stack->begin(), stack->end(), records)) {
    keys = keys | c10::DispatchKeySet(c10::DispatchKey::AutogradOther);  // where Python's kernel still is
  }
  op.redispatchBoxed(keys, stack);
}

// at::empty without the dispatcher, half a microsecond cheaper
inline at::Tensor empty(at::IntArrayRef sizes, at::ScalarType dtype,
                        at::MemoryFormat format = at::MemoryFormat::Contiguous) {
  return at::native::empty_cpu(sizes, dtype, at::kStrided, at::kCPU, false, format);
}

// As `layout` in pygen/_lib.py.
inline at::MemoryFormat layout(const at::Tensor& x) {
  const bool last = x.dim() == 4 && !x.is_contiguous() && x.is_contiguous(at::MemoryFormat::ChannelsLast);
  return last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

inline int64_t last_level_cache() {
  static const int64_t bytes = [] {
    const long level3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
    return level3 > 0 ? int64_t(level3) : int64_t(32) << 20;
  }();
  return bytes;
}

inline std::optional<FloatType> float_type(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return FloatType::kF32;
    case at::kDouble:
      return FloatType::kF64;
    case at::kBFloat16:
      return FloatType::kBF16;
    case at::kHalf:
      return FloatType::kF16;
    default:
      return std::nullopt;
  }
}

// What a number becomes in a storage type.
inline auto stored_as(at::ScalarType type) {
  return [type](double number) -> double {
    if (type == at::kBFloat16) return c10::BFloat16(float(number));
    if (type == at::kHalf) return c10::Half(float(number));
    return number;
  };
}

inline std::optional<PairedTypes> paired_types(at::ScalarType data, at::ScalarType parameters) {
  const auto type = float_type(data);
  if (type && data == parameters) return PairedTypes(*type);
  if (data == at::kFloat && parameters == at::kBFloat16) return PairedTypes::kF32BF16;
  if (data == at::kFloat && parameters == at::kHalf) return PairedTypes::kF32F16;
  return std::nullopt;
}

// A dense tensor of floats, or of bytes.
inline Stored stored(const at::Tensor& t) {
  const auto type = float_type(t.scalar_type());
  return {t.const_data_ptr(), type ? Storage(*type) : Storage::kU8};
}

inline std::optional<IntType> int_type(at::ScalarType type) {
  switch (type) {
    case at::kByte:
      return IntType::kU8;
    case at::kChar:
      return IntType::kI8;
    case at::kShort:
      return IntType::kI16;
    case at::kInt:
      return IntType::kI32;
    case at::kLong:
      return IntType::kI64;
    default:
      return std::nullopt;
  }
}

}  // namespace pygen
