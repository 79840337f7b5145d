// How a translated kernel is described to the device: its arguments are taken from its own type.
#pragma once
#include <utility>

template <typename Kernel>
struct CudaEmulationSignature;

template <typename... Arguments>
struct CudaEmulationSignature<void(Arguments...)> {
  static constexpr unsigned count = sizeof...(Arguments);
  static constexpr CudaEmulationArgument arguments[count + 1] = {{sizeof(Arguments), std::is_pointer_v<Arguments>}...,
                                                                 {0, false}};
  template <void (*kernel)(Arguments...)>
  static void run(void** values) {
    call<kernel>(values, std::index_sequence_for<Arguments...>{});
  }

 private:
  template <void (*kernel)(Arguments...), std::size_t... index>
  static void call(void** values, std::index_sequence<index...>) {
    kernel(*static_cast<std::remove_reference_t<Arguments>*>(values[index])...);
  }
};

#define CUDA_EMULATION_KERNEL(kernel, max_threads, cooperates)                                                  \
  static_assert(sizeof(kernel##__declared) <= 48 << 10, "error: the kernel uses too much static shared memory"); \
  extern "C" const CudaEmulationKernel cuda_emulation_kernel_##kernel = {                                       \
      #kernel,                                                                                                  \
      CudaEmulationSignature<decltype(kernel)>::run<kernel>,                                                    \
      max_threads,                                                                                              \
      cooperates,                                                                                               \
      kernel##__shared_count ? sizeof(kernel##__declared) : 0,                                                  \
      kernel##__shared_count ? sizeof(kernel##__shared) : 0,                                                    \
      kernel##__red_zones,                                                                                      \
      kernel##__shared_count,                                                                                   \
      CudaEmulationSignature<decltype(kernel)>::arguments,                                                      \
      CudaEmulationSignature<decltype(kernel)>::count};
