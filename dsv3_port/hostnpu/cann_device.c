/* What torch_npu asks about the chip and its settings (continues cann_host.c). Every function here has an output
 * argument: answered with success alone, torch_npu would go on with whatever its memory held.
 *
 * Sizes: platform_config/<chip>.ini of CANN, [SoCInfo] cube_core_cnt, vector_core_cnt, memory_size, l2_size. */
static const struct chip { const char *name; int64_t cube, vector, memory_gib, l2_mib; } chips[] = {
  {"Ascend910B4", 20, 40, 32, 96}, {"Ascend910B3", 20, 40, 64, 192}, {"Ascend910B2", 24, 48, 64, 192},
  {"Ascend910B1", 24, 48, 64, 192}, {"Ascend910_93", 24, 48, 64, 192} };
API const char *aclrtGetSocName(void) { const char *s = getenv("DSV3_HOSTNPU_SOC"); return s ? s : chips[0].name; }
static const struct chip *chip(void) { /* a chip that is not listed has the first one's sizes */
  for (size_t i = 0; i < sizeof chips / sizeof *chips; i++)
    if (strncmp(aclrtGetSocName(), chips[i].name, strlen(chips[i].name)) == 0) return &chips[i];
  return &chips[0];
}
API int aclGetDeviceCapability(uint32_t d, int info, int64_t *v) { /* cube cores, vector cores, bytes of L2 */
  const int64_t values[] = {chip()->cube, chip()->vector, chip()->l2_mib << 20};
  if (info < 0 || info > 2) return BAD_ARGUMENT;
  *v = values[info];
  return OK;
}
API int aclrtGetDeviceInfo(uint32_t d, int attribute, int64_t *v) { /* aclrtDevAttr */
  switch (attribute) {
    case 101: case 102: *v = chip()->cube; return OK;
    case 201: *v = chip()->vector; return OK;
    case 301: *v = chip()->memory_gib << 30; return OK;
    case 302: *v = chip()->l2_mib << 20; return OK;
    default: *v = 0; return OK;
  }
}
API int aclrtGetMemInfo(int attribute, size_t *unused, size_t *total) {
  *total = (size_t)chip()->memory_gib << 30; *unused = *total / 16 * 15;
  return OK;
}
/* how many cores a device or a stream may use: torchair captures a graph anew when that has changed */
#define MOST_DEVICES 64
static uint32_t device_cores[MOST_DEVICES][2], default_stream_cores[MOST_DEVICES][2];
static int64_t all_cores(int type) { return type == 0 ? chip()->cube : chip()->vector; } /* aclrtDevResLimitType */
static int limit(uint32_t *place, int type, uint32_t v) {
  if (type < 0 || type > 1 || v < 1 || v > all_cores(type)) return BAD_ARGUMENT;
  place[type] = v;
  return OK;
}
static int known_device(int32_t d) { return d >= 0 && d < MOST_DEVICES && (uint32_t)d < devices; }
static uint32_t *stream_cores(void *s) { return s ? ((struct stream *)s)->cores : default_stream_cores[current_device]; }
API int aclrtSetDeviceResLimit(int32_t d, int type, uint32_t v) {
  return known_device(d) ? limit(device_cores[d], type, v) : BAD_ARGUMENT;
}
API int aclrtGetDeviceResLimit(int32_t d, int type, uint32_t *v) {
  if (type < 0 || type > 1 || !known_device(d)) return BAD_ARGUMENT;
  *v = device_cores[d][type] ? device_cores[d][type] : (uint32_t)all_cores(type);
  return OK;
}
API int aclrtSetStreamResLimit(void *stream, int type, uint32_t v) { return limit(stream_cores(stream), type, v); }
API int aclrtResetStreamResLimit(void *stream) { memset(stream_cores(stream), 0, 2 * sizeof(uint32_t)); return OK; }
API int aclrtGetStreamResLimit(void *stream, int type, uint32_t *v) {
  if (type < 0 || type > 1) return BAD_ARGUMENT;
  *v = stream_cores(stream)[type];
  return *v ? OK : aclrtGetDeviceResLimit(current_device, type, v);
}
API int aclrtGetStreamOverflowSwitch(void *stream, uint32_t *flag) { *flag = 0; return OK; }
API int aclrtGetSysParamOpt(int option, int64_t *v) { *v = 0; return OK; }
API int aclrtDeviceGetBareTgid(int32_t *pid) { *pid = (int32_t)getpid(); return OK; }
API int aclrtHostRegister(void *p, uint64_t n, int type, void **device) { *device = p; return OK; }
API int aclrtSetOpExecuteTimeOutV2(uint64_t timeout, uint64_t *actual) { *actual = timeout; return OK; }
static int version(char *v, size_t n) { /* none: every "at least version x" is false */
  const char *s = getenv("DSV3_HOSTNPU_CANN");
  if (!s) return 100000;
  memset(v, 0, n); snprintf(v, 128, "%s", s);
  return OK;
}
API int aclsysGetCANNVersion(int package, char *v) { return version(v, 512); } /* char version[128], major[64], ... */
API int aclsysGetVersionStr(const char *package, char *v) { return version(v, 128); }

/* ---- device binaries and memory shared between processes: not here, and not silently so ---- */
API int aclrtBinaryLoadFromData(const void *data, size_t n, const void *options, void **handle) { return NOT_SUPPORTED; }
API int aclrtBinaryGetFunction(void *handle, const char *name, void **function) { return NOT_SUPPORTED; }
API int aclrtGetFunctionAddr(void *function, void **aic, void **aiv) { return NOT_SUPPORTED; }
API int aclrtMemExportToShareableHandle(void *h, int type, uint64_t flags, uint64_t *out) { return NOT_SUPPORTED; }
API int aclrtMemImportFromShareableHandle(uint64_t h, int32_t device, void **out) { return NOT_SUPPORTED; }
API int rtDevBinaryRegister(const void *binary, void **handle) { return NOT_SUPPORTED; }
API int rtGetC2cCtrlAddr(uint64_t *address, uint32_t *n) { return NOT_SUPPORTED; }
API int aclrtLaunchCallback(void (*fn)(void *), void *data, int blocking, void *stream) { fn(data); return OK; }
