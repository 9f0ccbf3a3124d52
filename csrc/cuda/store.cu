// From host to device memory, by kernels. No torch headers.
#include <cstring>

#include "store.h"

namespace pygen {
namespace {

constexpr int kPiece = 4000;  // bytes; parameters of a kernel are 4 KB at most on every driver

struct Piece {
  alignas(16) char bytes[kPiece];
};

__global__ void __launch_bounds__(256) store(const __grid_constant__ Piece piece, char* to, int size) {
  for (int i = int(threadIdx.x); i < size; i += 256) to[i] = piece.bytes[i];
}

}  // namespace

cudaError_t store_bytes(const char* from, int64_t size, char* to, cudaStream_t stream) {
  for (int64_t at = 0; at < size; at += kPiece) {
    Piece piece;
    const int some = int(size - at < kPiece ? size - at : kPiece);
    std::memcpy(piece.bytes, from + at, size_t(some));
    store<<<1, 256, 0, stream>>>(piece, to + at, some);
  }
  return cudaGetLastError();
}

}  // namespace pygen
