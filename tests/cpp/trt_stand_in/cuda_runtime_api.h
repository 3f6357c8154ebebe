// A stand-in of the CUDA runtime for tests, of the names that we use and no others. There is no GPU behind it.
//
// Device memory is memory of the host's. Streams are queues of which nothing is run before somebody waits, and then no
// more than must have been run: what lacks an order shows as a wrong answer. Each call is logged, and any can be made to
// fail.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <vector>

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2, cudaErrorNoDevice = 100 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor = 75, cudaDevAttrComputeCapabilityMinor = 76 };
inline constexpr unsigned cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2, cudaHostAllocDefault = 0;

struct CUstream_st {
  int device = 0;
  bool gone = false;
  std::deque<std::function<void()>> queued;
  std::size_t put = 0;   // operations ever put in
  std::size_t done = 0;  // operations ever run
};
struct CUevent_st {
  CUstream_st* stream = nullptr;
  std::size_t position = 0;  // reached when so many operations of the stream are done
};
using cudaStream_t = CUstream_st*;
using cudaEvent_t = CUevent_st*;
inline cudaStream_t const cudaStreamLegacy = reinterpret_cast<cudaStream_t>(1);

namespace stand_in {

struct World {
  int devices = 1;
  int device = 0;  // the thread's; tests have one thread
  std::string generation = "89";
  std::vector<std::string> calls;
  std::vector<std::string> violations;      // what real hardware would answer with undefined behaviour
  std::map<std::string, int> fail_at;       // call -> how many more of it succeed before one fails
  std::map<std::string, int> live;          // kind -> how many exist
  std::map<const void*, std::size_t> memory;  // of the device's
  CUstream_st legacy;
  std::deque<CUstream_st> streams;  // all there ever were: an event may outlive its stream
};

inline World& world() {
  static World the_world;
  return the_world;
}

/// Log a call; false if it is to fail.
inline bool called(const std::string& name) {
  world().calls.push_back(name);
  const auto found = world().fail_at.find(name);
  return found == world().fail_at.end() || found->second-- != 0;
}

inline CUstream_st& stream_of(cudaStream_t stream) {
  if (stream == nullptr || stream == cudaStreamLegacy) return world().legacy;
  if (stream->gone) world().violations.emplace_back("a stream that is destroyed");
  return *stream;
}

/// Run what is in a stream, up to a position.
inline void drain(CUstream_st& stream, std::size_t position) {
  while (stream.done < position) {
    const auto operation = std::move(stream.queued.front());
    stream.queued.pop_front();
    operation();
    ++stream.done;
  }
}

/// Run everything there is.
inline void drain_all() {
  drain(world().legacy, world().legacy.put);
  for (CUstream_st& stream : world().streams) drain(stream, stream.put);
}

inline void put(cudaStream_t stream, std::function<void()> operation) {
  stream_of(stream).queued.push_back(std::move(operation));
  ++stream_of(stream).put;
}

/// Whether the bytes lie in one piece of device memory.
inline bool is_on_device(const void* pointer, std::size_t nbytes) {
  const auto* byte = static_cast<const char*>(pointer);
  for (const auto& [start, size] : world().memory) {
    const auto* begin = static_cast<const char*>(start);
    if (begin <= byte && byte + nbytes <= begin + size) return true;
  }
  return false;
}

}  // namespace stand_in

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory" : error == cudaErrorNoDevice ? "no device" : "stand-in error";
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

inline cudaError_t cudaGetDeviceCount(int* count) {
  if (!stand_in::called("cudaGetDeviceCount")) return cudaErrorNoDevice;
  *count = stand_in::world().devices;
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  if (!stand_in::called("cudaGetDevice")) return cudaErrorInvalidValue;
  *device = stand_in::world().device;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  if (!stand_in::called("cudaSetDevice")) return cudaErrorInvalidValue;
  stand_in::world().device = device;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  if (!stand_in::called("cudaDeviceGetAttribute")) return cudaErrorInvalidValue;
  *value = stand_in::world().generation[attribute == cudaDevAttrComputeCapabilityMajor ? 0 : 1] - '0';
  return cudaSuccess;
}

inline cudaError_t cudaMalloc(void** memory, std::size_t nbytes) {
  if (!stand_in::called("cudaMalloc")) return cudaErrorMemoryAllocation;
  *memory = std::malloc(nbytes);
  stand_in::world().memory[*memory] = nbytes;
  ++stand_in::world().live["device memory"];
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* memory) {
  stand_in::called("cudaFree");
  stand_in::world().memory.erase(memory);
  --stand_in::world().live["device memory"];
  std::free(memory);
  return cudaSuccess;
}
inline cudaError_t cudaHostAlloc(void** memory, std::size_t nbytes, unsigned) {
  if (!stand_in::called("cudaHostAlloc")) return cudaErrorMemoryAllocation;
  *memory = std::malloc(nbytes);
  ++stand_in::world().live["pinned memory"];
  return cudaSuccess;
}
inline cudaError_t cudaFreeHost(void* memory) {
  stand_in::called("cudaFreeHost");
  --stand_in::world().live["pinned memory"];
  std::free(memory);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t nbytes, cudaMemcpyKind kind, cudaStream_t stream) {
  if (!stand_in::called("cudaMemcpyAsync")) return cudaErrorInvalidValue;
  if (!stand_in::is_on_device(kind == cudaMemcpyHostToDevice ? to : from, nbytes)) {
    stand_in::world().violations.emplace_back("a copy that is not from or to the device");
  }
  stand_in::put(stream, [=] { std::memcpy(to, from, nbytes); });
  return cudaSuccess;
}

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  if (!stand_in::called("cudaStreamCreateWithFlags") || flags != cudaStreamNonBlocking) return cudaErrorInvalidValue;
  *stream = &stand_in::world().streams.emplace_back();
  (*stream)->device = stand_in::world().device;
  ++stand_in::world().live["streams"];
  return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  stand_in::called("cudaStreamDestroy");
  stand_in::drain(*stream, stream->put);  // as CUDA: what is in it is still run
  --stand_in::world().live["streams"];
  stream->gone = true;
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (!stand_in::called("cudaStreamSynchronize")) return cudaErrorInvalidValue;
  stand_in::drain(stand_in::stream_of(stream), stand_in::stream_of(stream).put);
  return cudaSuccess;
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (!stand_in::called("cudaStreamWaitEvent")) return cudaErrorInvalidValue;
  if (CUstream_st* other = event->stream; other != nullptr && other != &stand_in::stream_of(stream)) {
    stand_in::put(stream, [other, position = event->position] { stand_in::drain(*other, position); });
  }
  return cudaSuccess;
}

inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  if (!stand_in::called("cudaEventCreateWithFlags")) return cudaErrorInvalidValue;
  *event = new CUevent_st;
  ++stand_in::world().live["events"];
  return cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
  stand_in::called("cudaEventDestroy");
  --stand_in::world().live["events"];
  delete event;
  return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (!stand_in::called("cudaEventRecord")) return cudaErrorInvalidValue;
  *event = {&stand_in::stream_of(stream), stand_in::stream_of(stream).put};
  return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (!stand_in::called("cudaEventSynchronize")) return cudaErrorInvalidValue;
  if (event->stream != nullptr) stand_in::drain(*event->stream, event->position);
  return cudaSuccess;
}
