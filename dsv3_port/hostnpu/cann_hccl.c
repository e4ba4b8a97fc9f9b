/* ---- HCCL: a communicator is a name that its ranks share; the data moves in Python (collectives.py) ---- */
struct comm { char name[128]; uint32_t size, rank; };
typedef int (*collective_cb)(int kind, const char *name, uint32_t size, uint32_t rank, const void *send, void *recv,
                             uint64_t count, int dtype, int argument);
enum { ALL_REDUCE, BROADCAST, ALL_GATHER, REDUCE_SCATTER, ALL_TO_ALL, BARRIER, REDUCE, SCATTER, SEND, RECV, BATCH,
       ALL_TO_ALL_V };
static collective_cb on_collective;
API void hostcann_set_collective(collective_cb cb) { on_collective = cb; }
static int collective(int kind, void *comm, const void *send, void *recv, uint64_t count, int dtype, int argument) {
  struct comm *c = comm;
  if (!on_collective) return HCCL_ERROR;
  return on_collective(kind, c->name, c->size, c->rank, send, recv, count, dtype, argument);
}
API int HcclGetRootInfo(char *info) { /* 4108 bytes, made by rank 0; torch_npu's store hands them to the others */
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  memset(info, 0, 4108);
  snprintf(info, 128, "host%lld_%ld_%p", (long long)t.tv_sec, t.tv_nsec, (void *)info);
  return OK;
}
API int HcclCommInitRootInfo(uint32_t size, const char *info, uint32_t rank, void **comm) {
  struct comm *c = calloc(1, sizeof *c);
  snprintf(c->name, sizeof c->name, "%s", info); c->size = size; c->rank = rank; *comm = c;
  return OK;
}
API int HcclCommInitRootInfoConfig(uint32_t size, const char *info, uint32_t rank, const void *config, void **comm) {
  return HcclCommInitRootInfo(size, info, rank, comm);
}
API int HcclCommDestroy(void *c) { free(c); return OK; }
API int HcclGetCommName(void *c, char *name) { strcpy(name, ((struct comm *)c)->name); return OK; }
API int HcclGetCommAsyncError(void *c, int *error) { *error = 0; return OK; }
API int HcclAllReduce(void *s, void *r, uint64_t n, int type, int op, void *c, void *stream) {
  return collective(ALL_REDUCE, c, s, r, n, type, op);
}
API int HcclBroadcast(void *b, uint64_t n, int type, uint32_t root, void *c, void *stream) {
  return collective(BROADCAST, c, b, b, n, type, root);
}
API int HcclAllGather(void *s, void *r, uint64_t n, int type, void *c, void *stream) {
  return collective(ALL_GATHER, c, s, r, n, type, 0);
}
API int HcclReduceScatter(void *s, void *r, uint64_t n, int type, int op, void *c, void *stream) {
  return collective(REDUCE_SCATTER, c, s, r, n, type, op);
}
API int HcclAlltoAll(void *s, uint64_t n, int type, void *r, uint64_t rn, int rtype, void *c, void *stream) {
  return collective(ALL_TO_ALL, c, s, r, n, type, 0);
}
API int HcclBarrier(void *c, void *stream) { return collective(BARRIER, c, NULL, NULL, 0, 0, 0); }
API int HcclReduce(void *s, void *r, uint64_t n, int type, int op, uint32_t root, void *c, void *stream) {
  return collective(REDUCE, c, s, r, n, type, op | (int)(root << 8));
}
API int HcclScatter(void *s, void *r, uint64_t n, int type, uint32_t root, void *c, void *stream) {
  return collective(SCATTER, c, s, r, n, type, root);
}
API int HcclSend(void *s, uint64_t n, int type, uint32_t to, void *c, void *stream) {
  return collective(SEND, c, s, NULL, n, type, to);
}
API int HcclRecv(void *r, uint64_t n, int type, uint32_t from, void *c, void *stream) {
  return collective(RECV, c, NULL, r, n, type, from);
}
API int HcclBatchSendRecv(void *items, uint32_t n, void *c, void *stream) { /* struct item of collectives.py */
  return collective(BATCH, c, items, NULL, n, 0, 0);
}
struct parts { const void *buffer; const uint64_t *counts, *offsets; }; /* in elements, one for each rank */
API int HcclAlltoAllV(const void *s, const void *sn, const void *so, int type, const void *r, const void *rn,
                      const void *ro, int rtype, void *c, void *stream) {
  struct parts send = {s, sn, so}, recv = {r, rn, ro};
  return collective(ALL_TO_ALL_V, c, &send, &recv, 0, type, 0);
}
/* Others (all-gather and reduce-scatter of unequal sizes) are not here: torch_npu does not find them and says so. */
