// Streams and graphs: one queue, in the order of submission, worked off when the program waits for any of it.
#include <deque>
#include <set>

#include "device.h"

namespace emulation {

struct Stream {
  Graph* captured = nullptr;
};

namespace {

std::deque<Work> waiting;
std::set<Stream*> streams;

// 1 and 2 are the names of the default streams.
bool is_default(Stream* stream) { return reinterpret_cast<std::uintptr_t>(stream) <= 2; }

}  // namespace

bool is_stream(Stream* stream) { return is_default(stream) || streams.count(stream); }

bool is_capturing(Stream* stream) { return !is_default(stream) && streams.count(stream) && stream->captured; }

bool is_anything_captured() {
  for (Stream* stream : streams)
    if (stream->captured) return true;
  return false;
}

int submit(Stream* stream, Work work) {
  if (!is_stream(stream)) return kInvalidHandle;
  if (is_capturing(stream)) {
    stream->captured->work.push_back(std::move(work));
  } else {
    if (is_default(stream) && is_anything_captured()) return kCaptureUnsupported;
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

Stream* create_stream() { return *streams.insert(new Stream).first; }

int destroy_stream(Stream* stream) {
  if (is_default(stream) || !streams.count(stream)) return kInvalidHandle;
  const int code = finish();
  streams.erase(stream);
  delete stream->captured;
  delete stream;
  return code;
}

int begin_capture(Stream* stream) {
  if (is_default(stream)) return kCaptureUnsupported;
  if (!streams.count(stream)) return kInvalidHandle;
  if (stream->captured) return kCaptureInvalidated;
  stream->captured = new Graph;
  return kSuccess;
}

int end_capture(Stream* stream, Graph** graph) {
  if (!is_capturing(stream)) return kInvalidValue;
  *graph = stream->captured;
  stream->captured = nullptr;
  return kSuccess;
}

}  // namespace emulation
