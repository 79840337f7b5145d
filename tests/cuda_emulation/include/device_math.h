// CUDA's functions of numbers that C's <cmath> does not have, or has under another meaning.
#pragma once

#define CUDA_EMULATION_EXTREMES(T)                               \
  static inline T min(T a, T b) { return b < a ? b : a; }        \
  static inline T max(T a, T b) { return a < b ? b : a; }
CUDA_EMULATION_EXTREMES(int)
CUDA_EMULATION_EXTREMES(unsigned int)
CUDA_EMULATION_EXTREMES(long)
CUDA_EMULATION_EXTREMES(unsigned long)
CUDA_EMULATION_EXTREMES(long long)
CUDA_EMULATION_EXTREMES(unsigned long long)
#undef CUDA_EMULATION_EXTREMES
static inline unsigned min(int a, unsigned b) { return min(unsigned(a), b); }
static inline unsigned min(unsigned a, int b) { return min(a, unsigned(b)); }
static inline unsigned max(int a, unsigned b) { return max(unsigned(a), b); }
static inline unsigned max(unsigned a, int b) { return max(a, unsigned(b)); }
// As fmin and fmax: of a number and a NaN, the number.
static inline float min(float a, float b) { return a < b || b != b ? a : b; }
static inline float max(float a, float b) { return a > b || b != b ? a : b; }
static inline double min(double a, double b) { return a < b || b != b ? a : b; }
static inline double max(double a, double b) { return a > b || b != b ? a : b; }
static inline double min(float a, double b) { return min(double(a), b); }
static inline double min(double a, float b) { return min(a, double(b)); }
static inline double max(float a, double b) { return max(double(a), b); }
static inline double max(double a, float b) { return max(a, double(b)); }

static inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
static inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
static inline float rsqrt(float x) { return rsqrtf(x); }
static inline float __frsqrt_rn(float x) { return rsqrtf(x); }
static inline float __fdividef(float x, float y) { return x / y; }
static inline float __fdiv_rn(float x, float y) { return x / y; }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fsqrt_rn(float x) { return std::sqrt(x); }
static inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
static inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
// The C library declares some of these names for itself.
#define __expf(x) ::expf(x)
#define __exp10f(x) ::powf(10.0f, x)
#define __logf(x) ::logf(x)
#define __log2f(x) ::log2f(x)
#define __log10f(x) ::log10f(x)
#define __sinf(x) ::sinf(x)
#define __cosf(x) ::cosf(x)
#define __tanf(x) ::tanf(x)
#define __powf(x, y) ::powf(x, y)
#define exp10f(x) ::powf(10.0f, x)
#define exp10(x) std::pow(decltype(x)(10), x)

static inline int __float2int_rn(float x) { return int(std::nearbyint(x)); }
static inline int __float2int_rz(float x) { return int(x); }
static inline int __float2int_rd(float x) { return int(std::floor(x)); }
static inline int __float2int_ru(float x) { return int(std::ceil(x)); }
template <typename To, typename From>
static inline To cuda_emulation_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same number of bits");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}
static inline float __int_as_float(int x) { return cuda_emulation_bits<float>(x); }
static inline float __uint_as_float(unsigned x) { return cuda_emulation_bits<float>(x); }
static inline int __float_as_int(float x) { return cuda_emulation_bits<int>(x); }
static inline unsigned __float_as_uint(float x) { return cuda_emulation_bits<unsigned>(x); }
static inline double __longlong_as_double(long long x) { return cuda_emulation_bits<double>(x); }
static inline long long __double_as_longlong(double x) { return cuda_emulation_bits<long long>(x); }

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __mulhi(int x, int y) { return int((long long)x * y >> 32); }
static inline unsigned __umulhi(unsigned x, unsigned y) { return unsigned((unsigned long long)x * y >> 32); }

// Four products of bytes, summed: the sign of each side is its type's.
template <typename A, typename B>
static inline int cuda_emulation_dp4a(const A* a, const B* b, int sum) {
  for (int i = 0; i < 4; ++i) sum += int(a[i]) * int(b[i]);
  return sum;
}
static inline int __dp4a(int a, int b, int sum) {
  return cuda_emulation_dp4a((signed char*)&a, (signed char*)&b, sum);
}
static inline unsigned __dp4a(unsigned a, unsigned b, unsigned sum) {
  return unsigned(cuda_emulation_dp4a((unsigned char*)&a, (unsigned char*)&b, int(sum)));
}
