// The CUDA runtime, every status checked; what it gives is owned.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <string>

#include "resnet_deploy/errors.hpp"

namespace resnet_deploy::detail {

/// Raises: Code::memory where the device or pinned memory is full, Code::backend for all else.
inline void check_cuda(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  const bool is_full = status == cudaErrorMemoryAllocation;
  if (is_full) cudaGetLastError();  // else the next check of anybody's would find it
  throw Error(is_full ? Code::memory : Code::backend, std::string(call) + " failed: " + cudaGetErrorString(status),
              is_full ? "open fewer engines or requests, or build for smaller batches" : "");
}

// What a destructor cannot say is dropped: a lost device has lost all of these too.
struct DestroyStream {
  void operator()(cudaStream_t stream) const noexcept { cudaStreamDestroy(stream); }
};
struct DestroyEvent {
  void operator()(cudaEvent_t event) const noexcept { cudaEventDestroy(event); }
};
struct FreeDevice {
  void operator()(void* memory) const noexcept { cudaFree(memory); }
};
struct FreePinned {
  void operator()(void* memory) const noexcept { cudaFreeHost(memory); }
};
using CudaStream = std::unique_ptr<CUstream_st, DestroyStream>;
using CudaEvent = std::unique_ptr<CUevent_st, DestroyEvent>;
using DeviceMemory = std::unique_ptr<void, FreeDevice>;
using PinnedMemory = std::unique_ptr<void, FreePinned>;

/// A stream that does not wait for the legacy default stream.
inline CudaStream new_stream() {
  cudaStream_t stream = nullptr;
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  return CudaStream(stream);
}

inline CudaEvent new_event() {
  cudaEvent_t event = nullptr;
  check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  return CudaEvent(event);
}

inline DeviceMemory new_device_memory(std::size_t nbytes) {
  void* memory = nullptr;
  check_cuda(cudaMalloc(&memory, nbytes), "cudaMalloc");
  return DeviceMemory(memory);
}

inline PinnedMemory new_pinned_memory(std::size_t nbytes) {
  void* memory = nullptr;
  check_cuda(cudaHostAlloc(&memory, nbytes, cudaHostAllocDefault), "cudaHostAlloc");
  return PinnedMemory(memory);
}

/// Has one device as the thread's own for as long as it lives; an application's thread may have another one.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check_cuda(cudaGetDevice(&before_), "cudaGetDevice");
    if (before_ != device) check_cuda(cudaSetDevice(device), "cudaSetDevice");
    changed_ = before_ != device;
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }

 private:
  int before_ = 0;
  bool changed_ = false;
};

/// The thread's device.
///
/// Raises: Code::backend, if there is none.
inline int current_device() {
  int count = 0, device = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    throw Error(Code::backend,
                std::string("no NVIDIA GPU: ") +
                    (status == cudaSuccess ? "none is listed" : cudaGetErrorString(status)),
                "resnet-deploy doctor says what is missing");
  }
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  return device;
}

/// Such as "8.9".
inline std::string compute_capability(int device) {
  int major = 0, minor = 0;
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
  check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "cudaDeviceGetAttribute");
  return std::to_string(major) + "." + std::to_string(minor);
}

}  // namespace resnet_deploy::detail
