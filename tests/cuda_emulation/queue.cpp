// Streams and graphs: one queue, in the order of submission, worked off when the program waits for any of it.
#include <deque>
#include <set>
#include <thread>
#include <utility>

#include "device.h"

namespace emulation {

struct Stream {
  explicit Stream(bool waits) : waits_for_legacy(waits) {}

  const bool waits_for_legacy;
  Graph* captured = nullptr;
  bool spoilt = false;
  int mode = 0;
  std::thread::id thread;
};

namespace {

enum CaptureMode { kGlobal, kThreadLocal, kRelaxed };

std::deque<Work> waiting;
std::set<Stream*> streams;

// 1 and 2 are the names of the default streams.
bool is_default(Stream* stream) { return reinterpret_cast<std::uintptr_t>(stream) <= 2; }

}  // namespace

bool is_stream(Stream* stream) { return is_default(stream) || streams.count(stream); }

bool is_capturing(Stream* stream) { return !is_default(stream) && streams.count(stream) && stream->captured; }

int spoil(Stream* stream, int code) {
  stream->spoilt = true;
  return code;
}

int check_unsafe(const char* call) {
  const auto self = std::this_thread::get_id();
  int code = kSuccess;
  for (Stream* stream : streams) {
    if (!stream->captured || stream->mode == kRelaxed) continue;
    if (stream->mode == kThreadLocal && stream->thread != self) continue;
    complain(std::string(call) + " while a stream is being captured, by " +
             (stream->thread == self ? "the same thread" : "another thread"));
    code = spoil(stream, kCaptureUnsupported);
  }
  return code;
}

int check_legacy(Stream* stream) {
  int code = kSuccess;
  if (reinterpret_cast<std::uintptr_t>(stream) > 1) return code;  // 2 is the thread's own
  for (Stream* other : streams) {
    if (!other->captured || !other->waits_for_legacy) continue;
    complain("the legacy default stream is used while a stream is being captured that waits for it");
    code = spoil(other, kCaptureImplicit);
  }
  return code;
}

int submit(Stream* stream, Work work) {
  if (!is_stream(stream)) return kInvalidHandle;
  if (is_capturing(stream)) {
    if (stream->spoilt) return kCaptureInvalidated;
    stream->captured->work.push_back(std::move(work));
  } else {
    if (const int code = check_legacy(stream)) return code;
    waiting.push_back(std::move(work));
  }
  return kSuccess;
}

int finish() {
  while (!waiting.empty()) {
    const Work work = std::move(waiting.front());
    waiting.pop_front();
    if (const int code = work()) {
      waiting.clear();
      return code;
    }
  }
  return kSuccess;
}

Stream* create_stream(bool waits_for_legacy) { return *streams.insert(new Stream(waits_for_legacy)).first; }

int destroy_stream(Stream* stream) {
  if (is_default(stream) || !streams.count(stream)) return kInvalidHandle;
  const int code = finish();
  streams.erase(stream);
  delete stream->captured;
  delete stream;
  return code;
}

int begin_capture(Stream* stream, int mode) {
  if (mode < kGlobal || mode > kRelaxed) return kInvalidValue;
  if (is_default(stream)) return kCaptureUnsupported;
  if (!streams.count(stream)) return kInvalidHandle;
  if (stream->captured) return kCaptureInvalidated;
  stream->captured = new Graph;
  stream->spoilt = false;
  stream->mode = mode;
  stream->thread = std::this_thread::get_id();
  if (settings().disturb) std::thread(check_unsafe, "cudaMalloc").join();
  return kSuccess;
}

int end_capture(Stream* stream, Graph** graph) {
  *graph = nullptr;
  if (!is_capturing(stream)) return kInvalidValue;
  if (stream->mode != kRelaxed && stream->thread != std::this_thread::get_id())
    return spoil(stream, kCaptureWrongThread);
  std::swap(*graph, stream->captured);
  if (!stream->spoilt) return kSuccess;
  delete *graph;
  *graph = nullptr;
  return kCaptureInvalidated;
}

}  // namespace emulation
