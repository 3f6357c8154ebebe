/* The C interface by a program in C: c_interface_test BUNDLE ALTERED-GOLDEN BAD_ALLOC EXCEPTION NUMBER MISSING, paths
 * of bundles that the stub engine opens, and of none. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "resnet_deploy.h"

#define CHECK(holds)                                                                               \
  do {                                                                                             \
    if (!(holds)) {                                                                                \
      fprintf(stderr, "%s:%d: %s | %s\n", __FILE__, __LINE__, #holds, resnet_deploy_last_error()); \
      exit(1);                                                                                     \
    }                                                                                              \
  } while (0)

enum { SIDE = 4, CLASSES = 3, IMAGE_BYTES = SIDE * SIDE * 3 };

static resnet_deploy_engine opened(const char* path) {
  resnet_deploy_engine engine = 0;
  CHECK(resnet_deploy_open(path, 0, 1, &engine) == RESNET_DEPLOY_OK);
  CHECK(engine != 0);
  return engine;
}

static void test_describes(resnet_deploy_engine engine) {
  resnet_deploy_info info;
  const char* text = NULL;
  CHECK(resnet_deploy_describe(engine, &info) == RESNET_DEPLOY_OK);
  CHECK(info.dtype == RESNET_DEPLOY_UINT8 && info.image_bytes == IMAGE_BYTES && info.num_classes == CLASSES);
  CHECK(info.shape[0] == SIDE && info.shape[1] == SIDE && info.shape[2] == 3);
  CHECK(info.batch_min == 1 && info.batch_opt == 4 && info.batch_max == 16);
  CHECK(resnet_deploy_label(engine, 1, &text) == RESNET_DEPLOY_OK && strcmp(text, "Hund \xf0\x9f\x90\x95") == 0);
  CHECK(resnet_deploy_label(engine, 3, &text) == RESNET_DEPLOY_ARGUMENT);
  CHECK(resnet_deploy_label(engine, -1, &text) == RESNET_DEPLOY_ARGUMENT);
  CHECK(resnet_deploy_device(engine, &text) == RESNET_DEPLOY_OK && strcmp(text, "an abacus") == 0);
}

static void test_infers(resnet_deploy_engine engine) {
  uint8_t images[2 * IMAGE_BYTES];
  float logits[2 * CLASSES + 1] = {0};
  memset(images, 1, sizeof images);
  logits[2 * CLASSES] = -1;
  CHECK(resnet_deploy_infer(engine, images, sizeof images, 2, logits, 2 * CLASSES) == RESNET_DEPLOY_OK);
  CHECK(logits[0] == 16 && logits[2 * CLASSES - 1] == 16 && logits[2 * CLASSES] == -1);
  CHECK(resnet_deploy_infer(engine, NULL, 0, 0, NULL, 0) == RESNET_DEPLOY_OK);
  CHECK(resnet_deploy_infer(engine, images, sizeof images - 1, 2, logits, 6) == RESNET_DEPLOY_ARGUMENT);
  CHECK(resnet_deploy_infer(engine, images, sizeof images, 2, logits, 5) == RESNET_DEPLOY_ARGUMENT);
  CHECK(resnet_deploy_infer(engine, images, sizeof images, -2, logits, 6) == RESNET_DEPLOY_ARGUMENT);
  CHECK(resnet_deploy_infer(engine, NULL, sizeof images, 2, logits, 6) == RESNET_DEPLOY_ARGUMENT);
  CHECK(resnet_deploy_infer(engine, images, sizeof images, 2, NULL, 6) == RESNET_DEPLOY_ARGUMENT);
  CHECK(resnet_deploy_infer(engine, images, sizeof images, INT32_MAX, logits, 6) == RESNET_DEPLOY_ARGUMENT);
}

static void test_preprocesses(resnet_deploy_engine engine) {
  uint8_t photo[9 * 7 * 3], prepared[IMAGE_BYTES];
  float logits[CLASSES];
  resnet_deploy_pixels picture = {photo, 9, 7, 0};
  memset(photo, 5, sizeof photo);
  CHECK(resnet_deploy_preprocess(engine, &picture, prepared, sizeof prepared) == RESNET_DEPLOY_OK);
  CHECK(prepared[0] == 5 && prepared[IMAGE_BYTES - 1] == 5);
  CHECK(resnet_deploy_preprocess(engine, &picture, prepared, sizeof prepared - 1) == RESNET_DEPLOY_ARGUMENT);
  CHECK(resnet_deploy_preprocess(engine, NULL, prepared, sizeof prepared) == RESNET_DEPLOY_ARGUMENT);
  CHECK(resnet_deploy_infer_pixels(engine, &picture, 1, logits, CLASSES) == RESNET_DEPLOY_OK);
  CHECK(logits[0] == 5 * 16);
  CHECK(resnet_deploy_infer_pixels(engine, NULL, 1, logits, CLASSES) == RESNET_DEPLOY_ARGUMENT);
  CHECK(resnet_deploy_infer_pixels(engine, &picture, -1, logits, CLASSES) == RESNET_DEPLOY_ARGUMENT);
  CHECK(resnet_deploy_infer_pixels(engine, &picture, INT32_MAX, logits, CLASSES) == RESNET_DEPLOY_ARGUMENT);
  picture.data = NULL;
  CHECK(resnet_deploy_infer_pixels(engine, &picture, 1, logits, CLASSES) != RESNET_DEPLOY_OK);
  picture.data = photo;
  for (int32_t height = -7; height <= 0; height += 7) {
    picture.height = height;
    CHECK(resnet_deploy_infer_pixels(engine, &picture, 1, logits, CLASSES) == RESNET_DEPLOY_DATA);
  }
}

static void test_replays(const char* sound, const char* altered) {
  double worst = -1;
  resnet_deploy_engine engine = opened(sound);
  CHECK(resnet_deploy_check_golden(engine, 0, &worst) == RESNET_DEPLOY_OK && worst == 0);
  CHECK(resnet_deploy_check_golden(engine, -1, &worst) == RESNET_DEPLOY_ARGUMENT);
  CHECK(resnet_deploy_check_golden(engine, (double)NAN, &worst) == RESNET_DEPLOY_ARGUMENT);
  CHECK(resnet_deploy_check_golden(engine, 0, NULL) == RESNET_DEPLOY_ARGUMENT);
  CHECK(resnet_deploy_close(engine) == RESNET_DEPLOY_OK);
  engine = opened(altered);
  CHECK(resnet_deploy_check_golden(engine, 0.4, &worst) == RESNET_DEPLOY_ACCURACY && worst == 0.5);
  CHECK(strstr(resnet_deploy_last_error(), "a logit differs by 0.5 from") != NULL);
  CHECK(resnet_deploy_check_golden(engine, 0.5, &worst) == RESNET_DEPLOY_OK && worst == 0.5);
  CHECK(resnet_deploy_close(engine) == RESNET_DEPLOY_OK);
}

/* Whatever bytes a path has, its words are one line of UTF-8; the twins are paths whose words stay as they are. */
static void test_words_of_paths(void) {
  static const char* const paths[][2] = {
      {"/nowhere/M\xc3\xbcnchen/\xe2\x82\xac/\xf0\x9f\x90\x95",
       "/nowhere/M\xc3\xbcnchen/\xe2\x82\xac/\xf0\x9f\x90\x95"},
      {"/nowhere/\xff-\xc3-\x80", "/nowhere/?-?-?"},
      {"/nowhere/a\nb\r\x7f\x01", "/nowhere/a?b???"},
      {"/nowhere/\xc0\xaf", "/nowhere/??"},                  /* a slash, overlong */
      {"/nowhere/\xed\xa0\x80", "/nowhere/???"},             /* half of a surrogate pair */
      {"/nowhere/\xe0\x9f\xbf", "/nowhere/???"},             /* overlong */
      {"/nowhere/\xf0\x8f\xbf\xbf", "/nowhere/????"},        /* overlong */
      {"/nowhere/\xf4\x90\x80\x80", "/nowhere/????"},        /* beyond the last character */
      {"/nowhere/\xf4\x8f\xbf\xbf", "/nowhere/\xf4\x8f\xbf\xbf"}, /* the last character */
      {"/nowhere/\xc2\x85", "/nowhere/??"},                  /* the next line, and the two separators */
      {"/nowhere/\xe2\x80\xa8\xe2\x80\xa9", "/nowhere/??????"},
  };
  for (size_t i = 0; i < sizeof paths / sizeof *paths; ++i) {
    resnet_deploy_engine none = 0;
    char words[128];
    snprintf(words, sizeof words, "%s is not an engine bundle", paths[i][1]);
    CHECK(resnet_deploy_open(paths[i][0], 0, 1, &none) == RESNET_DEPLOY_FILE);
    CHECK(strcmp(resnet_deploy_last_error(), words) == 0);
  }
}

/* Golden vectors are found after the working directory has changed. */
static void test_replays_from_elsewhere(const char* path) {
  double worst = -1;
  char folder[4096];
  CHECK(snprintf(folder, sizeof folder, "%s/..", path) < (int)sizeof folder && chdir(folder) == 0);
  const resnet_deploy_engine engine = opened(strrchr(path, '/') + 1);
  CHECK(chdir("/") == 0);
  CHECK(resnet_deploy_check_golden(engine, 0, &worst) == RESNET_DEPLOY_OK && worst == 0);
  CHECK(resnet_deploy_close(engine) == RESNET_DEPLOY_OK);
}

static void test_accident(const char* path, resnet_deploy_code code, const char* words) {
  const resnet_deploy_engine engine = opened(path);
  uint8_t image[IMAGE_BYTES] = {0};
  float logits[CLASSES];
  CHECK(resnet_deploy_infer(engine, image, sizeof image, 1, logits, CLASSES) == code);
  CHECK(strcmp(resnet_deploy_last_error(), words) == 0);
  CHECK(resnet_deploy_close(engine) == RESNET_DEPLOY_OK);
}

static void test_handles(const char* path, const char* missing) {
  resnet_deploy_engine engine = opened(path), other = opened(path), none = 42;
  resnet_deploy_info info;
  CHECK(engine != other);
  CHECK(resnet_deploy_close(engine) == RESNET_DEPLOY_OK);
  CHECK(resnet_deploy_close(engine) == RESNET_DEPLOY_ARGUMENT);
  CHECK(strcmp(resnet_deploy_last_error(), "the engine is not open") == 0 && *resnet_deploy_last_hint() != 0);
  CHECK(resnet_deploy_describe(engine, &info) == RESNET_DEPLOY_ARGUMENT);
  CHECK(resnet_deploy_describe(0, &info) == RESNET_DEPLOY_ARGUMENT);
  CHECK(resnet_deploy_describe(other, NULL) == RESNET_DEPLOY_ARGUMENT);
  CHECK(resnet_deploy_describe(other, &info) == RESNET_DEPLOY_OK);
  CHECK(resnet_deploy_close(other) == RESNET_DEPLOY_OK);
  CHECK(resnet_deploy_open(missing, 0, 1, &none) == RESNET_DEPLOY_FILE && none == 0);
  CHECK(strstr(resnet_deploy_last_error(), missing) != NULL);
  CHECK(resnet_deploy_open(path, -1, 1, &none) == RESNET_DEPLOY_ARGUMENT);
  CHECK(resnet_deploy_open(NULL, 0, 1, &none) == RESNET_DEPLOY_ARGUMENT);
  CHECK(resnet_deploy_open(path, 0, 1, NULL) == RESNET_DEPLOY_ARGUMENT);
}

static void* words_of_a_thread(void* unused) {
  (void)unused;
  return *resnet_deploy_last_error() == 0 ? (void*)1 : NULL;
}

static void test_words_are_a_threads_own(void) {
  pthread_t thread;
  void* is_empty = NULL;
  CHECK(resnet_deploy_close(0) == RESNET_DEPLOY_ARGUMENT && *resnet_deploy_last_error() != 0);
  CHECK(pthread_create(&thread, NULL, words_of_a_thread, NULL) == 0);
  CHECK(pthread_join(thread, &is_empty) == 0 && is_empty != NULL);
}

/* Runs until the engine is closed under it, which must be an error and no crash. */
static void* run_until_closed(void* argument) {
  const resnet_deploy_engine engine = *(const resnet_deploy_engine*)argument;
  uint8_t image[IMAGE_BYTES] = {0};
  float logits[CLASSES];
  resnet_deploy_code code;
  do {
    code = resnet_deploy_infer(engine, image, sizeof image, 1, logits, CLASSES);
  } while (code == RESNET_DEPLOY_OK);
  return code == RESNET_DEPLOY_ARGUMENT ? (void*)1 : NULL;
}

static void test_closing_under_a_thread(const char* path) {
  resnet_deploy_engine engine = opened(path);
  pthread_t threads[3];
  for (int i = 0; i < 3; ++i) CHECK(pthread_create(&threads[i], NULL, run_until_closed, &engine) == 0);
  CHECK(resnet_deploy_close(engine) == RESNET_DEPLOY_OK);
  for (int i = 0; i < 3; ++i) {
    void* was_refused = NULL;
    CHECK(pthread_join(threads[i], &was_refused) == 0 && was_refused != NULL);
  }
}

int main(int count, char** paths) {
  CHECK(count == 7);
  CHECK(*resnet_deploy_last_error() == 0 && *resnet_deploy_last_hint() == 0);
  const resnet_deploy_engine engine = opened(paths[1]);
  test_describes(engine);
  test_infers(engine);
  test_preprocesses(engine);
  CHECK(resnet_deploy_close(engine) == RESNET_DEPLOY_OK);
  test_replays(paths[1], paths[2]);
  test_accident(paths[3], RESNET_DEPLOY_MEMORY, "there is not enough memory");
  test_accident(paths[4], RESNET_DEPLOY_INTERNAL, "an accident");
  test_accident(paths[5], RESNET_DEPLOY_INTERNAL, "something was thrown that is no exception");
  test_handles(paths[1], paths[6]);
  test_words_of_paths();
  test_replays_from_elsewhere(paths[1]);
  test_words_are_a_threads_own();
  test_closing_under_a_thread(paths[1]);
  printf("%s\n", resnet_deploy_version());
  return 0;
}
