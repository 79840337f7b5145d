// float16, as NVIDIA's cuda_fp16.h names it.
#pragma once
#include "narrow_floats.h"

using __half = CudaEmulationNarrow<CudaEmulationHalf>;
using half = __half;
using __half2 = CudaEmulationNarrow2<CudaEmulationHalf>;
using half2 = __half2;

static inline float __half2float(half x) { return x; }
static inline half __float2half(float x) { return half(x); }
static inline half __float2half_rn(float x) { return half(x); }
static inline half __double2half(double x) { return half(x); }
static inline half __int2half_rn(int x) { return half(x); }
static inline half __ll2half_rn(long long x) { return half(x); }
static inline int __half2int_rz(half x) { return int(float(x)); }
static inline int __half2int_rn(half x) { return __float2int_rn(x); }
static inline half __ushort_as_half(unsigned short bits) { return half::from_bits(bits); }
static inline half __short_as_half(short bits) { return half::from_bits(bits); }
static inline unsigned short __half_as_ushort(half x) { return x.bits; }
static inline short __half_as_short(half x) { return x.bits; }
static inline half2 make_half2(half x, half y) { return {x, y}; }
static inline half2 __halves2half2(half x, half y) { return {x, y}; }
static inline half2 __half2half2(half x) { return {x, x}; }
static inline half2 __float2half2_rn(float x) { return {x, x}; }
static inline half2 __floats2half2_rn(float x, float y) { return {x, y}; }
static inline half2 __float22half2_rn(float2 x) { return {x.x, x.y}; }
static inline float2 __half22float2(half2 x) { return {x.x, x.y}; }
static inline float __low2float(half2 x) { return x.x; }
static inline float __high2float(half2 x) { return x.y; }
