/* A stand-in for the part of CANN's C API that torch_npu and torchair call. Device memory is host memory, asynchronous
 * calls are carried out at once. Here is every function whose result somebody looks at; library.py generates the others
 * as "return 0". A computation is never answered with success unless it was done: see the single operators below.
 *
 * DSV3_HOSTNPU_TRACE=1 prints the generated functions as they are called; DSV3_HOSTNPU_SOC and DSV3_HOSTNPU_CANN set the
 * chip and the CANN version that torch_npu is told (they decide branches in it).
 */
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))
#define OK 0
#define BAD_ARGUMENT 107000
#define OUT_OF_MEMORY 207001
#define REPLAY_ERROR 507018  /* what a failing kernel looks like to torch_npu */
#define CAPTURE_ERROR 107030 /* a call that the device refuses while capturing */
#define NOT_SUPPORTED 500002
#define HCCL_ERROR 4

void hostcann_trace(const char *name) {
  if (getenv("DSV3_HOSTNPU_TRACE")) fprintf(stderr, "[cann_host] %s\n", name);
}

/* ---- towards Python: graph capture and replay ---- */
enum { EV_CAPTURE_BEGIN = 1, EV_CAPTURE_END, EV_EXECUTE, EV_DESTROY, EV_GROUP_BEGIN, EV_GROUP_END, EV_UPDATE_BEGIN,
       EV_UPDATE_END, EV_COPY, EV_FILL, EV_WAIT, EV_RECORD, EV_SYNC };
typedef int (*event_cb)(int event, uint64_t a, uint64_t b, uint64_t c);
static event_cb on_event;
API void hostcann_set_callback(event_cb cb) { on_event = cb; }
static int emit(int event, uint64_t a, uint64_t b, uint64_t c) { return on_event ? on_event(event, a, b, c) : OK; }

static uint64_t next_model = 1, capturing, next_group = 1, open_group, updating; /* 0: none */
API int hostcann_pending; /* set from Python: a replay waits for a task update */

/* ---- the text that torch_npu adds to an error code ---- */
static char refused[256];
API void hostcann_set_error(const char *text) { snprintf(refused, sizeof refused, "%s", text); }
API const char *aclGetRecentErrMsg(void) { return refused; }

/* ---- devices ---- */
static uint32_t devices = 1;
static __thread int current_device;
API void hostcann_set_devices(uint32_t n) { devices = n; }
API int aclrtGetDeviceCount(uint32_t *n) { *n = devices; return OK; }
API int aclrtGetDevice(int *d) { *d = current_device; return OK; }
API int aclrtSetDevice(int d) {
  if (d < 0 || (uint32_t)d >= devices) return BAD_ARGUMENT;
  current_device = d;
  return OK;
}
API int aclrtGetCurrentContext(void **c) { *c = (void *)(intptr_t)(1 + current_device); return OK; }
API int aclrtGetPrimaryCtxState(int d, uint32_t *flags, int32_t *active) {
  *active = d >= 0 && (uint32_t)d < devices; /* flags is reserved, and null */
  return OK;
}

/* ---- memory ---- */
static int host_alloc(void **p, size_t n) {
  *p = aligned_alloc(512, (n + 511) / 512 * 512 + 512);
  return *p ? OK : OUT_OF_MEMORY;
}
API int aclrtMalloc(void **p, size_t n, int policy) { return host_alloc(p, n); }
API int aclrtMallocAlign32(void **p, size_t n, int policy) { return host_alloc(p, n); }
API int aclrtMallocHost(void **p, size_t n) { return host_alloc(p, n); }
API int aclrtMallocHostWithCfg(void **p, size_t n, void *cfg) { return host_alloc(p, n); }
API int aclrtFree(void *p) { free(p); return OK; }
API int aclrtFreeHost(void *p) { free(p); return OK; }
/* Virtual memory (expandable segments): not here, and not silently so. */
API int aclrtReserveMemAddress(void **p, size_t n, size_t align, void *want, uint64_t flags) { return NOT_SUPPORTED; }
API int aclrtMallocPhysical(void **handle, size_t n, const void *prop, uint64_t flags) { return NOT_SUPPORTED; }
API int aclrtDeviceCanAccessPeer(int32_t *can, int32_t a, int32_t b) { *can = 1; return OK; }
static int sync_point(void) { /* the host is about to look at results */
  if (capturing) {
    snprintf(refused, sizeof refused, "the host waits for the device while a graph is captured: nothing was computed "
             "that it could read (a hidden synchronisation: .item(), .tolist(), .cpu(), bool(tensor), nonzero)");
    return CAPTURE_ERROR;
  }
  if (hostcann_pending) return emit(EV_SYNC, 0, 0, 0) ? REPLAY_ERROR : OK;
  return OK;
}
API int aclrtMemcpy(void *d, size_t room, const void *s, size_t n, int kind) {
  if (n > room) return BAD_ARGUMENT;
  int failed = sync_point(); /* it waits for the device, which a capture refuses */
  if (failed) return failed;
  memmove(d, s, n);
  return OK;
}
API int aclrtMemcpyAsync(void *d, size_t room, const void *s, size_t n, int kind, void *stream) {
  if (n > room) return BAD_ARGUMENT;
  if (capturing) return emit(EV_COPY, (uint64_t)d, (uint64_t)s, n) ? CAPTURE_ERROR : OK;
  if (hostcann_pending && sync_point()) return REPLAY_ERROR;
  memmove(d, s, n);
  return OK;
}
API int aclrtMemset(void *d, size_t room, int v, size_t n) {
  if (n > room) return BAD_ARGUMENT;
  memset(d, v, n);
  return OK;
}
API int aclrtMemsetAsync(void *d, size_t room, int v, size_t n, void *stream) {
  if (n > room) return BAD_ARGUMENT;
  if (capturing) return emit(EV_FILL, (uint64_t)d, (uint64_t)v, n) ? CAPTURE_ERROR : OK;
  memset(d, v, n);
  return OK;
}

/* ---- streams and events ---- */
API int aclrtSynchronizeStream(void *s) { return sync_point(); }
API int aclrtSynchronizeStreamWithTimeout(void *s, int ms) { return sync_point(); }
API int aclrtSynchronizeDevice(void) { return sync_point(); }
API int aclrtSynchronizeDeviceWithTimeout(int ms) { return sync_point(); }
struct stream { int32_t id; uint32_t cores[2]; }; /* cores: its limits, 0 where there is none (cann_device.c) */
struct event { struct timespec t; uint64_t model; int external; };
static int32_t next_stream;
API int aclrtCreateStreamWithConfig(void **s, uint32_t priority, uint32_t flag) {
  struct stream *x = calloc(1, sizeof *x);
  x->id = ++next_stream; *s = x;
  return OK;
}
API int aclrtCreateStream(void **s) { return aclrtCreateStreamWithConfig(s, 0, 0); }
API int aclrtStreamGetId(void *s, int32_t *id) { *id = s ? ((struct stream *)s)->id : 0; return OK; }
API int aclrtStreamQuery(void *s, int *status) { *status = 0; return OK; }
API int aclrtCreateEventExWithFlag(void **e, uint32_t flag) { *e = calloc(1, sizeof(struct event)); return OK; }
API int aclrtCreateEventWithFlag(void **e, uint32_t flag) { return aclrtCreateEventExWithFlag(e, flag); }
API int aclrtDestroyEvent(void *e) { free(e); return OK; }
API int aclrtRecordEvent(void *event, void *stream) {
  struct event *e = event;
  clock_gettime(CLOCK_MONOTONIC, &e->t);
  if (capturing) e->model = capturing;
  else if (e->external) return emit(EV_RECORD, (uint64_t)e, 0, 0) ? REPLAY_ERROR : OK;
  return OK;
}
API int aclrtStreamWaitEvent(void *stream, void *event) {
  struct event *e = event; /* not recorded in this capture: it comes from outside */
  if (capturing && e->model != capturing) { e->external = 1; emit(EV_WAIT, (uint64_t)e, 0, 0); }
  return OK;
}
API int aclrtQueryEventStatus(void *e, int *s) { *s = 1; return OK; }
API int aclrtQueryEventWaitStatus(void *e, int *s) { *s = 1; return OK; }
API int aclrtEventElapsedTime(float *ms, void *start, void *end) { /* host time, not device time */
  struct event *x = start, *y = end;
  *ms = (float)((y->t.tv_sec - x->t.tv_sec) * 1e3 + (y->t.tv_nsec - x->t.tv_nsec) / 1e6);
  return OK;
}

/* ---- graph capture: its state is here, its contents are in Python ---- */
API int aclmdlRICaptureBegin(void *s, int mode) {
  capturing = next_model++;
  return emit(EV_CAPTURE_BEGIN, capturing, 0, 0) ? CAPTURE_ERROR : OK;
}
API int aclmdlRICaptureGetInfo(void *s, int *status, void **model) {
  *status = capturing != 0; *model = (void *)capturing;
  return OK;
}
API int aclmdlRICaptureEnd(void *s, void **model) {
  int failed = emit(EV_CAPTURE_END, capturing, 0, 0);
  *model = (void *)capturing; capturing = 0;
  return failed ? CAPTURE_ERROR : OK;
}
API int aclmdlRIExecuteAsync(void *model, void *s) { return emit(EV_EXECUTE, (uint64_t)model, 0, 0) ? REPLAY_ERROR : OK; }
API int aclmdlRIDestroy(void *model) { return emit(EV_DESTROY, (uint64_t)model, 0, 0) ? REPLAY_ERROR : OK; }
API int aclmdlRICaptureTaskGrpBegin(void *s) {
  open_group = next_group++;
  return emit(EV_GROUP_BEGIN, open_group, 0, 0) ? CAPTURE_ERROR : OK;
}
API int aclmdlRICaptureTaskGrpEnd(void *s, void **handle) {
  int failed = emit(EV_GROUP_END, open_group, 0, 0);
  *handle = (void *)open_group; open_group = 0;
  return failed ? CAPTURE_ERROR : OK;
}
API int aclmdlRICaptureTaskUpdateBegin(void *s, void *handle) {
  updating = (uint64_t)handle;
  return emit(EV_UPDATE_BEGIN, updating, 0, 0) ? REPLAY_ERROR : OK;
}
API int aclmdlRICaptureTaskUpdateEnd(void *s) {
  int failed = emit(EV_UPDATE_END, updating, 0, 0);
  updating = 0;
  return failed ? REPLAY_ERROR : OK;
}

/* ---- single operators, which torch_npu's own code launches past PyTorch's dispatcher ----
 * Python carries out the few it knows. The others are refused by name: 0 would mean results that were never computed. */
/* dims: of the tensor in its plain order; storage, ndim_stored, stored: the format in which it lies, and its sizes there */
struct desc { int32_t dtype, ndim, format, storage, ndim_stored; int64_t dims[16], stored[16]; };
struct buffer { void *data; size_t size; };
typedef int (*launch_cb)(const char *op, int n_in, struct desc **in, struct buffer **in_data, int n_out,
                         struct desc **out, struct buffer **out_data);
static launch_cb on_launch;
API void hostcann_set_launch(launch_cb cb) { on_launch = cb; }
API void *aclCreateTensorDesc(int dtype, int n, const int64_t *dims, int format) {
  struct desc *d = calloc(1, sizeof *d);
  d->dtype = dtype; d->ndim = n; d->format = d->storage = format;
  for (int i = 0; i < n && i < 16; i++) d->dims[i] = dims[i];
  return d;
}
API int aclSetTensorFormat(struct desc *d, int format) { d->storage = format; return OK; }
API int aclSetTensorShape(struct desc *d, int n, const int64_t *dims) {
  if (n > 16) return BAD_ARGUMENT;
  d->ndim_stored = n;
  for (int i = 0; i < n; i++) d->stored[i] = dims[i];
  return OK;
}
API void aclDestroyTensorDesc(void *d) { free(d); }
API void *aclCreateDataBuffer(void *data, size_t size) {
  struct buffer *b = calloc(1, sizeof *b);
  b->data = data; b->size = size;
  return b;
}
API int32_t aclGetTensorDescType(const struct desc *d) { return d->dtype; }
API int32_t aclGetTensorDescFormat(const struct desc *d) { return d->format; }
API size_t aclGetTensorDescNumDims(const struct desc *d) { return d->ndim; }
API int aclGetTensorDescDimV2(const struct desc *d, size_t i, int64_t *size) {
  if (i >= (size_t)d->ndim) return BAD_ARGUMENT;
  *size = d->dims[i];
  return OK;
}
API int aclDestroyDataBuffer(void *b) { free(b); return OK; }
API int aclopCompileAndExecute(const char *op, int n_in, struct desc **in, struct buffer **in_data, int n_out,
                               struct desc **out, struct buffer **out_data) {
  if (on_launch && on_launch(op, n_in, in, in_data, n_out, out, out_data) == 0) return OK;
  snprintf(refused, sizeof refused, "the host stand-in has no kernel for the operator %s, launched through aclop", op);
  return NOT_SUPPORTED;
}
API int aclopCompileAndExecuteV2(const char *op, int n_in, struct desc **in, struct buffer **in_data, int n_out,
                                 struct desc **out, struct buffer **out_data) {
  return aclopCompileAndExecute(op, n_in, in, in_data, n_out, out, out_data);
}
API int rtKernelLaunch(void) { /* a kernel binary for the device's cores */
  snprintf(refused, sizeof refused, "the host stand-in cannot run a device binary");
  return NOT_SUPPORTED;
}
API size_t aclGetCompileoptSize(int opt) { return 16; }
API int aclGetCompileopt(int opt, char *v, size_t n) { /* the only option asked for: jit_compile, off on A2 and A3 */
  memset(v, 0, n); strncpy(v, "disable", n - 1);
  return OK;
}
API int aclGetCannAttributeList(const int **list, size_t *n) { *list = NULL; *n = 0; return OK; }

/* ---- bounded string functions (libc_sec) ---- */
API int vsnprintf_s(char *b, size_t n, size_t count, const char *f, va_list a) { return vsnprintf(b, n, f, a); }
API int snprintf_s(char *b, size_t n, size_t count, const char *f, ...) {
  va_list a;
  va_start(a, f);
  int r = vsnprintf(b, n, f, a);
  va_end(a);
  return r;
}
API int strcpy_s(char *d, size_t n, const char *s) { snprintf(d, n, "%s", s); return OK; }
