// CUDA's vector types, with their sizes, alignments and make_ functions.
#pragma once

#define CUDA_EMULATION_VECTORS(name, T, align2, align4)                                     \
  struct name##1 { T x; };                                                                  \
  struct alignas(align2) name##2 { T x, y; };                                               \
  struct name##3 { T x, y, z; };                                                            \
  struct alignas(align4) name##4 { T x, y, z, w; };                                         \
  static inline name##1 make_##name##1(T x) { return {x}; }                                 \
  static inline name##2 make_##name##2(T x, T y) { return {x, y}; }                         \
  static inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                 \
  static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

CUDA_EMULATION_VECTORS(char, signed char, 2, 4)
CUDA_EMULATION_VECTORS(uchar, unsigned char, 2, 4)
CUDA_EMULATION_VECTORS(short, short, 4, 8)
CUDA_EMULATION_VECTORS(ushort, unsigned short, 4, 8)
CUDA_EMULATION_VECTORS(int, int, 8, 16)
CUDA_EMULATION_VECTORS(uint, unsigned int, 8, 16)
CUDA_EMULATION_VECTORS(long, long, 16, 16)
CUDA_EMULATION_VECTORS(ulong, unsigned long, 16, 16)
CUDA_EMULATION_VECTORS(longlong, long long, 16, 16)
CUDA_EMULATION_VECTORS(ulonglong, unsigned long long, 16, 16)
CUDA_EMULATION_VECTORS(float, float, 8, 16)
CUDA_EMULATION_VECTORS(double, double, 16, 16)

#undef CUDA_EMULATION_VECTORS

struct dim3 {
  unsigned x, y, z;
};
