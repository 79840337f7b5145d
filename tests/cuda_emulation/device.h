// The emulated device, as its driver and runtime libraries see it: settings, errors, memory, queue, launches.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "kernel.h"

namespace emulation {

// CUDA's numbers, the same in the driver's and the runtime's interface.
enum Code : int {
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kNotInitialized = 3,
  kInvalidDevice = 101,
  kInvalidImage = 200,
  kNoBinaryForDevice = 209,
  kInvalidHandle = 400,
  kNotFound = 500,
  kNotReady = 600,
  kIllegalAddress = 700,
  kOutOfResources = 701,
  kMisalignedAddress = 716,
  kLaunchFailed = 719,
  kNotSupported = 801,
  kCaptureUnsupported = 900,
  kCaptureInvalidated = 901,
  kCaptureImplicit = 906,
  kCaptureWrongThread = 908,
};

const char* code_name(int code);
const char* code_text(int code);

// settings.cpp: what the environment says of the device, read once.
struct Settings {
  int major, minor;            // CUDA_EMULATION_CAPABILITY, "8.0"
  std::size_t memory_bytes;    // CUDA_EMULATION_MEMORY_BYTES
  unsigned workers;            // CUDA_EMULATION_THREADS: threads of the host that run blocks
  std::string order;           // CUDA_EMULATION_ORDER: of the threads of a block: forward, backward, random
  bool trace;                  // CUDA_EMULATION_TRACE=1: a line on standard error for each launch, capture and graph
  bool disturb;                // CUDA_EMULATION_DISTURB=1: another thread allocates whenever a capture has begun
  std::size_t shared_bytes_opt_in;
  int multiprocessors;
};
const Settings& settings();
constexpr const char* kDeviceName = "Emulated CUDA device";
constexpr int kCudaVersion = 13000;
constexpr std::size_t kSharedBytes = 48 << 10;
int attribute_of(int attribute);  // as cudaDeviceGetAttribute numbers them; 0 for what is not emulated

// Says on standard error what a program has done wrong.
void complain(const std::string& what);

// errors that stay: after one, as on a device, every call answers with it. Also of a forked child.
int enter();
int fail(int code, const std::string& what);   // complains, and makes the error stay
extern std::recursive_mutex gate;               // every call of the interface holds it

// memory.cpp
struct Block {
  std::size_t size;
  bool pinned;  // host memory that the device reaches
  std::uint64_t number;  // counts allocations: an address may come again
};
int allocate(void** address, std::size_t size, bool pinned);
int release(void* address, bool pinned);
std::size_t memory_in_use();
// Whether all of it lies in one allocation; found: that allocation, if wanted.
bool is_allocated(const void* address, std::size_t size, Block* found = nullptr);
// The number of the allocation that holds it; 0 for memory of the host.
std::uint64_t allocation_of(const void* address, std::size_t size);

// launch.cpp
struct Launch {
  const CudaEmulationKernel* kernel;
  void** arguments;
  unsigned grid[3];
  unsigned block[3];
  std::size_t dynamic_shared_bytes;
};
// Runs every block; blocks are spread over threads of the host. An empty string, or what went wrong and its code.
struct Outcome {
  int code = kSuccess;
  std::string what;
};
Outcome run(const Launch& launch);

// queue.cpp: work is done when the program waits for it, not before: what is used too early is seen.
using Work = std::function<int()>;
struct Stream;
struct Graph {
  std::vector<Work> work;
};
int submit(Stream* stream, Work work);  // or recorded, where the stream is being captured
int finish();                           // do all that waits
bool is_stream(Stream* stream);
Stream* create_stream(bool waits_for_legacy);
int destroy_stream(Stream* stream);
int begin_capture(Stream* stream, int mode);
int end_capture(Stream* stream, Graph** graph);
bool is_capturing(Stream* stream);
// What CUDA's guide says of stream capture ("Prohibited and Unhandled Operations"): an error, which spoils the capture,
// for a call that is unsafe while one goes on, by its mode and thread; and for a use of the legacy default stream.
int check_unsafe(const char* call);
int check_legacy(Stream* stream);
// An error of a capturing stream, which spoils the capture.
int spoil(Stream* stream, int code);

}  // namespace emulation

#define EMULATION_ENTER()                                       \
  std::lock_guard<std::recursive_mutex> held(emulation::gate);  \
  if (const int stays = emulation::enter()) return stays
