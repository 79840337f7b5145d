// The CUDA C++ language for g++: what NVIDIA's compiler defines without any include. Stands in for its cuda.h, too.
#pragma once
#include <cassert>
#include <math.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <type_traits>

#include "kernel.h"
#include "vector_types.h"

#define __CUDACC__ 1
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0

// Shared arrays are rewritten before the compiler sees them (translate.py).
#define __global__
#define __device__
#define __host__
#define __constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) alignas(bytes)
#define __grid_constant__
// Another thread may write between two barriers what a restricted pointer points to.
#define __restrict__

static inline dim3 cuda_emulation_thread() {
  const std::uint32_t index = cuda_emulation_thread_index();
  return {index & 1023, index >> 10 & 1023, index >> 20};
}

static inline dim3 cuda_emulation_block() {
  const std::uint64_t size = cuda_emulation_block_size();
  return {unsigned(size & 2047), unsigned(size >> 11 & 2047), unsigned(size >> 22)};
}

#define threadIdx (::cuda_emulation_thread())
#define blockDim (::cuda_emulation_block())
#define blockIdx (dim3{cuda_emulation_block_index(0), cuda_emulation_block_index(1), cuda_emulation_block_index(2)})
#define gridDim (dim3{cuda_emulation_grid_size(0), cuda_emulation_grid_size(1), cuda_emulation_grid_size(2)})
#define warpSize 32

static inline void __syncthreads() { cuda_emulation_sync_block(false); }
static inline int __syncthreads_count(int predicate) { return cuda_emulation_sync_block(predicate); }
static inline int __syncthreads_or(int predicate) { return cuda_emulation_sync_block(predicate) != 0; }
static inline int __syncthreads_and(int predicate) { return cuda_emulation_sync_block(!predicate) == 0; }
static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline void __threadfence_system() {}
static inline void __trap() { cuda_emulation_trap("__trap() was called"); }

#include "warp.h"

template <typename T>
static inline T __ldg(const T* address) {
  return *address;
}

#include "atomics.h"
#include "device_math.h"
