/* The C interface of resnet-deploy: engine bundles for whatever can call C.
 *
 * Compile src/resnet_deploy.cpp into a shared library (CMake's target resnet_deploy_c does), and link with it.
 *
 * Errors. Every function that can fail returns a resnet_deploy_code; nothing is written to its results unless that is
 * RESNET_DEPLOY_OK, but where a function says otherwise. The words are resnet_deploy_last_error's.
 *
 * Handles. An engine is a number that is never given twice in a process: 0, a made-up one and one that was closed are
 * refused with RESNET_DEPLOY_ARGUMENT, and are no crash. Pointers are not checked but against NULL.
 *
 * Threads. Every function may be called from any thread at any time, with the same engine too: calls that run it take
 * turns, or run side by side where it was opened with several requests. An engine that is closed while another thread
 * runs it is released when that call is done.
 *
 * Memory. What is passed in is read, and written to, during the call only. Text that is handed out is UTF-8, ends with
 * a zero byte, and belongs to the library; in words of errors, '?' stands for bytes that are none, and for line ends.
 */
#ifndef RESNET_DEPLOY_H
#define RESNET_DEPLOY_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define RESNET_DEPLOY_API
#else
#define RESNET_DEPLOY_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* What went wrong; the numbers never change, and later versions may add some. */
typedef enum {
  RESNET_DEPLOY_OK = 0,
  RESNET_DEPLOY_ARGUMENT = 1,    /* The caller's arguments make no sense, or an engine is not open. */
  RESNET_DEPLOY_FILE = 2,        /* Something is missing or cannot be read. */
  RESNET_DEPLOY_BUNDLE = 3,      /* The bundle is damaged, was altered, or does not fit this machine. */
  RESNET_DEPLOY_DATA = 4,        /* An image has no pixels (a side below 1), too many, or is too elongated. */
  RESNET_DEPLOY_UNSUPPORTED = 5, /* This build of the library has no such backend. */
  RESNET_DEPLOY_BACKEND = 6,     /* The backend refused the engine or a call. */
  RESNET_DEPLOY_MEMORY = 7,      /* There is not enough memory. */
  RESNET_DEPLOY_INTERNAL = 8,    /* A mistake in this library. */
  RESNET_DEPLOY_ACCURACY = 9     /* Answers differ from those that the bundle keeps by more than is allowed. */
} resnet_deploy_code;

/* An open engine; 0 is none. */
typedef uint64_t resnet_deploy_engine;

typedef enum {
  RESNET_DEPLOY_UINT8 = 0,  /* (height, width, 3), R G B */
  RESNET_DEPLOY_FLOAT32 = 1 /* (3, height, width), normalised */
} resnet_deploy_dtype;

/* What an engine takes and gives. This struct never changes. */
typedef struct {
  resnet_deploy_dtype dtype; /* Of a prepared image. */
  int32_t shape[3];          /* Of a prepared image. */
  uint64_t image_bytes;      /* Of a prepared image: all of its values. */
  int32_t num_classes;       /* Logits of an image. */
  int32_t batch_min;         /* Batches that the engine runs at once; other counts are split, or filled up. */
  int32_t batch_opt;         /* The one it is tuned for. */
  int32_t batch_max;
} resnet_deploy_info;

/* Decoded pixels, 8-bit R G B, rows from top to bottom. This struct never changes. */
typedef struct {
  const uint8_t* data; /* (height, width, 3) */
  int32_t width;
  int32_t height;
  ptrdiff_t stride; /* Bytes from one row to the next; 0 for 3 * width. */
} resnet_deploy_pixels;

/* The version of this library, such as "0.1.0"; lives as long as the library. */
RESNET_DEPLOY_API const char* resnet_deploy_version(void);

/* What was wrong with this thread's last call that failed, in one line; empty if none did. Lives until the next one. */
RESNET_DEPLOY_API const char* resnet_deploy_last_error(void);

/* What to do about it, in one line; empty where there is nothing useful to say. Lives as the above. */
RESNET_DEPLOY_API const char* resnet_deploy_last_hint(void);

/* Open a bundle that `resnet-deploy build` made. Everything is checked before a byte reaches the backend: the manifest,
 * what it requires of this machine, and the digest of every file.
 *
 * path:     The bundle's folder.
 * threads:  CPU threads for all that runs at once; 0 for one per physical core within a container's quota.
 * requests: Batches that may be under way at once; 1 where that is the backend's choice.
 * engine:   Where the handle goes; to be closed. 0 where this fails.
 */
RESNET_DEPLOY_API resnet_deploy_code resnet_deploy_open(const char* path, int32_t threads, int32_t requests,
                                                        resnet_deploy_engine* engine);

/* Release an engine. */
RESNET_DEPLOY_API resnet_deploy_code resnet_deploy_close(resnet_deploy_engine engine);

/* Say what an engine takes and gives. */
RESNET_DEPLOY_API resnet_deploy_code resnet_deploy_describe(resnet_deploy_engine engine, resnet_deploy_info* info);

/* Name a class; "class 7" where the model has no labels. Lives until the engine is closed. */
RESNET_DEPLOY_API resnet_deploy_code resnet_deploy_label(resnet_deploy_engine engine, int32_t index,
                                                         const char** label);

/* Say what an engine runs on, in the backend's own words, such as "CPU". Lives until the engine is closed. */
RESNET_DEPLOY_API resnet_deploy_code resnet_deploy_device(resnet_deploy_engine engine, const char** device);

/* Compute the logits of prepared images, any number of them.
 *
 * images:       count * image_bytes bytes, contiguous.
 * images_bytes: How many bytes there are; anything else is refused.
 * logits:       (count, num_classes); where this fails, some may have been written.
 * logits_count: How many floats there is room for; fewer than count * num_classes is refused.
 */
RESNET_DEPLOY_API resnet_deploy_code resnet_deploy_infer(resnet_deploy_engine engine, const void* images,
                                                         uint64_t images_bytes, int32_t count, float* logits,
                                                         uint64_t logits_count);

/* Preprocess decoded pictures of any size by the engine's input contract, and compute their logits.
 *
 * pictures:             `count` of them.
 * logits, logits_count: As above.
 */
RESNET_DEPLOY_API resnet_deploy_code resnet_deploy_infer_pixels(resnet_deploy_engine engine,
                                                                const resnet_deploy_pixels* pictures, int32_t count,
                                                                float* logits, uint64_t logits_count);

/* Preprocess one decoded picture by the engine's input contract.
 *
 * out:       image_bytes bytes, aligned for its dtype; where this fails, some may have been written.
 * out_bytes: How many bytes there is room for; fewer are refused.
 */
RESNET_DEPLOY_API resnet_deploy_code resnet_deploy_preprocess(resnet_deploy_engine engine,
                                                              const resnet_deploy_pixels* picture, void* out,
                                                              uint64_t out_bytes);

/* Replay the few inputs that the bundle keeps, and hold the logits against those that were kept with them.
 *
 * tolerance: The largest absolute difference of a logit that will do: 1e-5 for FP32 on the machine that built it. Another
 *            number of threads, another CPU or GPU may sum up in another order.
 * worst:     Where the largest difference goes, also when it is beyond the tolerance: RESNET_DEPLOY_ACCURACY then.
 */
RESNET_DEPLOY_API resnet_deploy_code resnet_deploy_check_golden(resnet_deploy_engine engine, double tolerance,
                                                                double* worst);

#ifdef __cplusplus
}
#endif

#endif /* RESNET_DEPLOY_H */
