/* A stand-in for libnvidia-ml.so.1 with two GPUs, for the wrapper's own test; never a measurement. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int gpu, memory; } utilization_t;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gi, ci; } process_t;

static char devices[2];
static int index_of(void *device) { return (int)((char *)device - devices); }

int nvmlInit_v2(void) { return getenv("FAKE_NVML_FAILS") ? 9 : 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return code == 9 ? "Driver Not Loaded" : "Not Found"; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int i, void **device) { *device = &devices[i]; return i > 1 ? 2 : 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    if (strncmp(uuid, "GPU-fake-", 9) || uuid[9] < '0' || uuid[9] > '1') return 6;
    *device = &devices[uuid[9] - '0'];
    return 0;
}
int nvmlDeviceGetUUID(void *d, char *out, unsigned int n) { snprintf(out, n, "GPU-fake-%d", index_of(d)); return 0; }
int nvmlDeviceGetName(void *d, char *out, unsigned int n) { (void)d; snprintf(out, n, "Fake 3000"); return 0; }
int nvmlDeviceGetMemoryInfo(void *d, memory_t *m) {
    m->total = 80ULL << 30; m->used = (unsigned long long)(index_of(d) + 5) << 30; m->free = m->total - m->used;
    return 0;
}
int nvmlDeviceGetMigMode(void *d, unsigned int *now, unsigned int *pending) {
    if (index_of(d) == 0) return 3; /* not supported */
    *now = *pending = 1;
    return 0;
}
int nvmlDeviceGetUtilizationRates(void *d, utilization_t *u) { (void)d; u->gpu = 75; u->memory = 20; return 0; }
int nvmlDeviceGetPowerUsage(void *d, unsigned int *mw) { (void)d; *mw = 312500; return 0; }
int nvmlDeviceGetTemperature(void *d, int sensor, unsigned int *c) { (void)d; *c = sensor ? 0 : 61; return 0; }
int nvmlDeviceGetClockInfo(void *d, int type, unsigned int *mhz) { (void)d; *mhz = type == 1 ? 1755 : 0; return 0; }
/* only the older of the two names, as drivers before 535 have it */
int nvmlDeviceGetCurrentClocksThrottleReasons(void *d, unsigned long long *r) { (void)d; *r = 0x44; return 0; }
int nvmlDeviceGetComputeRunningProcesses_v3(void *d, unsigned int *count, process_t *found) {
    unsigned int room = *count, have = index_of(d) ? 0 : 100; /* more than the first guess */
    *count = have;
    if (room < have) return 7;
    for (unsigned int i = 0; i < have; i++) { memset(&found[i], 0, sizeof found[i]); found[i].pid = 4000 + i; found[i].used = 1 << 20; }
    return 0;
}
