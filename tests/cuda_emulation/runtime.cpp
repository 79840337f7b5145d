// libcudart.so.13 as TVM uses it: devices, memory, streams, events, graphs.
#include <chrono>
#include <cstring>
#include <set>

#include "device.h"

using namespace emulation;

namespace {

int last_error = kSuccess;

// What a call answers is also what cudaGetLastError gives.
int note(int code) {
  if (code) last_error = code;
  return code;
}

using Clock = std::chrono::steady_clock;
struct Event {
  bool asked = false, recorded = false;  // asked: waits to be
  Clock::time_point at;
};
std::set<Event*> events;
std::set<Graph*> graphs, instances;

enum CopyKind { kHostToHost, kHostToDevice, kDeviceToHost, kDeviceToDevice, kAny };

// What a copy is asked of and between which allocations, so that a graph does not copy what has been freed since.
struct Copy {
  void* to;
  const void* from;
  std::size_t size;
  std::uint64_t of_to, of_from;
};

int copy_now(const Copy& copy) {
  const auto& [to, from, size, of_to, of_from] = copy;
  if (allocation_of(to, size) != of_to || allocation_of(from, size) != of_from)
    return fail(kIllegalAddress, "a copy of " + std::to_string(size) + " bytes is of memory that has been freed");
  std::memcpy(to, from, size);
  return kSuccess;
}

// The side of a copy that must be the device's lies in one of its allocations.
int check_copy(const void* to, const void* from, std::size_t size, int kind) {
  if (kind < kHostToHost || kind > kAny) return kInvalidValue;
  const bool to_device = kind == kHostToDevice || kind == kDeviceToDevice;
  const bool from_device = kind == kDeviceToHost || kind == kDeviceToDevice;
  if ((to_device && !is_allocated(to, size)) || (from_device && !is_allocated(from, size))) {
    complain("a copy of " + std::to_string(size) + " bytes leaves the device's memory");
    return kInvalidValue;
  }
  return kSuccess;
}

bool is_pageable(const void* address, std::size_t size) { return !is_allocated(address, size); }

// CUDA 13's cudaDeviceProp, as far as it is filled in.
struct alignas(8) DeviceProperties {
  char bytes[1008];
  template <typename T>
  void set(std::size_t offset, T value) {
    std::memcpy(bytes + offset, &value, sizeof value);
  }
};

}  // namespace

extern "C" {

int cudaGetDeviceCount(int* count) {
  EMULATION_ENTER();
  *count = 1;
  return kSuccess;
}

int cudaSetDevice(int device) {
  EMULATION_ENTER();
  return note(device ? kInvalidDevice : kSuccess);
}

int cudaGetDevice(int* device) {
  EMULATION_ENTER();
  *device = 0;
  return kSuccess;
}

int cudaDeviceGetAttribute(int* value, int attribute, int device) {
  EMULATION_ENTER();
  if (device) return note(kInvalidDevice);
  *value = attribute_of(attribute);
  return kSuccess;
}

int cudaGetDeviceProperties(DeviceProperties* made, int device) {
  EMULATION_ENTER();
  if (device) return note(kInvalidDevice);
  *made = {};
  std::snprintf(made->bytes, 256, "%s", kDeviceName);
  made->set<std::size_t>(288, settings().memory_bytes);
  made->set<std::size_t>(296, kSharedBytes);
  made->set<int>(304, attribute_of(12));
  made->set<int>(308, attribute_of(10));
  made->set<int>(320, attribute_of(1));
  for (int axis = 0; axis < 3; ++axis) {
    made->set<int>(324 + 4 * axis, attribute_of(2 + axis));
    made->set<int>(336 + 4 * axis, attribute_of(5 + axis));
  }
  made->set<int>(360, settings().major);
  made->set<int>(364, settings().minor);
  made->set<int>(384, settings().multiprocessors);
  made->set<int>(592, attribute_of(37));
  made->set<int>(596, attribute_of(38));
  made->set<int>(604, attribute_of(39));
  made->set<std::size_t>(624, attribute_of(81));
  made->set<int>(632, attribute_of(82));
  made->set<std::size_t>(672, attribute_of(97));
  made->set<std::size_t>(696, attribute_of(111));
  return kSuccess;
}

int cudaMemGetInfo(std::size_t* available, std::size_t* total) {
  EMULATION_ENTER();
  *total = settings().memory_bytes;
  *available = *total - memory_in_use();
  return kSuccess;
}

int cudaMalloc(void** address, std::size_t size) {
  EMULATION_ENTER();
  if (const int code = check_unsafe("cudaMalloc")) return note(code);
  return note(allocate(address, size, false));
}

int cudaFree(void* address) {
  EMULATION_ENTER();
  if (const int code = check_unsafe("cudaFree")) return note(code);
  if (const int code = finish()) return note(code);
  return note(release(address, false));
}

int cudaMallocHost(void** address, std::size_t size) {
  EMULATION_ENTER();
  if (const int code = check_unsafe("cudaMallocHost")) return note(code);
  return note(allocate(address, size, true));
}

int cudaFreeHost(void* address) {
  EMULATION_ENTER();
  if (const int code = check_unsafe("cudaFreeHost")) return note(code);
  if (const int code = finish()) return note(code);
  return note(release(address, true));
}

int cudaMemcpyAsync(void* to, const void* from, std::size_t size, int kind, Stream* stream) {
  EMULATION_ENTER();
  if (!is_stream(stream)) return note(kInvalidHandle);
  if (const int code = check_copy(to, from, size, kind)) return note(code);
  const bool waits = is_pageable(to, size) || is_pageable(from, size);
  if (waits && is_capturing(stream)) return note(spoil(stream, kCaptureUnsupported));
  const Copy copy{to, from, size, allocation_of(to, size), allocation_of(from, size)};
  if (const int code = submit(stream, [copy] { return copy_now(copy); })) return note(code);
  // Memory that is not pinned is copied before the call returns.
  return waits ? note(finish()) : kSuccess;
}

int cudaMemcpyPeerAsync(void* to, int to_device, const void* from, int from_device, std::size_t size, Stream* stream) {
  if (to_device || from_device) return note(kInvalidDevice);
  return cudaMemcpyAsync(to, from, size, kDeviceToDevice, stream);
}

int cudaStreamCreateWithFlags(Stream** made, unsigned flags) {
  EMULATION_ENTER();
  constexpr unsigned kNonBlocking = 1;
  if (flags > kNonBlocking) return note(kInvalidValue);
  *made = create_stream(flags != kNonBlocking);
  return kSuccess;
}

int cudaStreamCreate(Stream** made) { return cudaStreamCreateWithFlags(made, 0); }

int cudaStreamDestroy(Stream* stream) {
  EMULATION_ENTER();
  return note(destroy_stream(stream));
}

int cudaStreamSynchronize(Stream* stream) {
  EMULATION_ENTER();
  if (!is_stream(stream)) return note(kInvalidHandle);
  if (is_capturing(stream)) return note(spoil(stream, kCaptureUnsupported));
  if (const int code = check_legacy(stream)) return note(code);
  return note(finish());
}

int cudaStreamWaitEvent(Stream* stream, Event* event, unsigned) {
  EMULATION_ENTER();
  return note(is_stream(stream) && events.count(event) ? kSuccess : kInvalidHandle);
}

int cudaStreamBeginCapture(Stream* stream, int mode) {
  EMULATION_ENTER();
  return note(begin_capture(stream, mode));
}

int cudaStreamEndCapture(Stream* stream, Graph** graph) {
  EMULATION_ENTER();
  const int code = end_capture(stream, graph);
  if (!code) graphs.insert(*graph);
  if (!code && settings().trace) std::fprintf(stderr, "CUDA emulation: captured %zu\n", (*graph)->work.size());
  return note(code);
}

int cudaGraphInstantiate(Graph** made, Graph* graph, unsigned long long) {
  EMULATION_ENTER();
  if (!graphs.count(graph)) return note(kInvalidValue);
  *made = *instances.insert(new Graph(*graph)).first;
  return kSuccess;
}

int cudaGraphLaunch(Graph* instance, Stream* stream) {
  EMULATION_ENTER();
  if (!instances.count(instance)) return note(kInvalidValue);
  if (settings().trace) std::fprintf(stderr, "CUDA emulation: a graph of %zu\n", instance->work.size());
  for (const Work& work : instance->work)
    if (const int code = submit(stream, work)) return note(code);
  return kSuccess;
}

int cudaGraphDestroy(Graph* graph) {
  EMULATION_ENTER();
  if (!graphs.erase(graph)) return note(kInvalidValue);
  delete graph;
  return kSuccess;
}

int cudaGraphExecDestroy(Graph* instance) {
  EMULATION_ENTER();
  if (!instances.erase(instance)) return note(kInvalidValue);
  delete instance;
  return kSuccess;
}

int cudaEventCreate(Event** made) {
  EMULATION_ENTER();
  *made = *events.insert(new Event).first;
  return kSuccess;
}

int cudaEventDestroy(Event* event) {
  EMULATION_ENTER();
  if (!events.count(event)) return note(kInvalidHandle);
  const int code = finish();  // it may wait to be recorded
  events.erase(event);
  delete event;
  return note(code);
}

int cudaEventRecord(Event* event, Stream* stream) {
  EMULATION_ENTER();
  if (!events.count(event)) return note(kInvalidHandle);
  event->asked = true;
  event->recorded = false;
  return note(submit(stream, [event] {
    event->recorded = true;
    event->at = Clock::now();
    return int(kSuccess);
  }));
}

int cudaEventSynchronize(Event* event) {
  EMULATION_ENTER();
  return note(events.count(event) ? finish() : int(kInvalidHandle));
}

int cudaEventElapsedTime(float* milliseconds, Event* start, Event* end) {
  EMULATION_ENTER();
  if (!events.count(start) || !events.count(end)) return note(kInvalidHandle);
  if (!start->asked || !end->asked) return note(kInvalidHandle);
  if (!start->recorded || !end->recorded) return note(kNotReady);
  *milliseconds = std::chrono::duration<float, std::milli>(end->at - start->at).count();
  return kSuccess;
}

int cudaGetLastError() {
  const int code = last_error;
  last_error = kSuccess;
  return code;
}

int cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorName(int code) { return code_name(code); }

const char* cudaGetErrorString(int code) { return code_text(code); }

}  // extern "C"
