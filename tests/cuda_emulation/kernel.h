// What a compiled CUDA source and the emulated device know of each other: the kernels it holds, the services it calls.
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {

// Bytes between two shared arrays of a kernel (and behind the last) which no thread may write.
struct CudaEmulationRedZone {
  std::size_t offset;
  const char* array;  // the array in front of it
};

struct CudaEmulationArgument {
  std::size_t size;
  bool pointer;
};

struct CudaEmulationKernel {
  const char* name;
  void (*run)(void** arguments);         // as one thread
  unsigned max_threads;                  // its __launch_bounds__; 1024 without
  bool cooperates;                       // whether its threads wait for each other anywhere
  std::size_t shared_bytes;              // static shared memory, as the kernel declares it
  std::size_t shared_storage_bytes;      // the same with its red zones
  const CudaEmulationRedZone* red_zones;
  unsigned red_zone_count;
  const CudaEmulationArgument* arguments;
  unsigned argument_count;
};

// A compiled source defines these two.
extern const CudaEmulationKernel* const cuda_emulation_kernels[];
extern const unsigned cuda_emulation_kernel_count;

constexpr std::size_t kCudaEmulationRedZoneBytes = 64;

// The device defines the rest. Constant for a thread: the compiler may call them once.
__attribute__((const)) std::uint32_t cuda_emulation_thread_index();  // x | y << 10 | z << 20
__attribute__((const)) std::uint64_t cuda_emulation_block_size();    // x | y << 11 | z << 22
__attribute__((const)) std::uint32_t cuda_emulation_block_index(unsigned axis);
__attribute__((const)) std::uint32_t cuda_emulation_grid_size(unsigned axis);
__attribute__((const)) unsigned cuda_emulation_lane();
__attribute__((const)) void* cuda_emulation_static_shared();
__attribute__((const)) void* cuda_emulation_dynamic_shared();

// __syncthreads; how many threads of the block have given a predicate that holds.
unsigned cuda_emulation_sync_block(bool predicate);

// The lanes that a mask names meet; the last to arrive does `collective` for all of them, with what each has brought
// (null for a lane that the mask does not name or that has ended). Every lane must bring the same mask and collective.
using CudaEmulationCollective = void (*)(void* const brought[32], std::uint32_t lanes);
void cuda_emulation_meet(std::uint32_t mask, CudaEmulationCollective collective, void* brought);

// The lanes of this warp that run on together.
std::uint32_t cuda_emulation_active_mask();

// Ends the launch with an error of the device.
[[noreturn]] void cuda_emulation_trap(const char* what);
}
