// Atomic operations on global and shared memory; blocks run on several threads of the host.
#pragma once

template <typename T, typename Change>
static inline T cuda_emulation_atomic(T* address, Change change) {
  using Bits = std::conditional_t<sizeof(T) == 8, std::uint64_t,
                                  std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint16_t>>;
  static_assert(sizeof(T) == sizeof(Bits), "an atomic operation on 2, 4 or 8 bytes");
  auto* place = reinterpret_cast<Bits*>(address);
  Bits before = __atomic_load_n(place, __ATOMIC_RELAXED), after;
  T old;
  do {
    std::memcpy(static_cast<void*>(&old), &before, sizeof(T));
    const T made = change(old);
    std::memcpy(&after, static_cast<const void*>(&made), sizeof(T));
  } while (!__atomic_compare_exchange_n(place, &before, after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}

template <typename T>
static inline T atomicAdd(T* address, std::common_type_t<T> value) {
  return cuda_emulation_atomic(address, [=](T old) { return T(old + value); });
}
template <typename T>
static inline T atomicSub(T* address, std::common_type_t<T> value) {
  return cuda_emulation_atomic(address, [=](T old) { return T(old - value); });
}
template <typename T>
static inline T atomicMax(T* address, std::common_type_t<T> value) {
  return cuda_emulation_atomic(address, [=](T old) { return old < value ? value : old; });
}
template <typename T>
static inline T atomicMin(T* address, std::common_type_t<T> value) {
  return cuda_emulation_atomic(address, [=](T old) { return value < old ? value : old; });
}
template <typename T>
static inline T atomicExch(T* address, std::common_type_t<T> value) {
  return cuda_emulation_atomic(address, [=](T) { return value; });
}
template <typename T>
static inline T atomicCAS(T* address, std::common_type_t<T> expected, std::common_type_t<T> value) {
  return cuda_emulation_atomic(address, [=](T old) { return old == expected ? value : old; });
}
