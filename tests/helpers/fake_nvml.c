/* What NVIDIA's driver library answers: two boards, one (-DSINGLE), a Jetson (-DJETSON: most is not supported), an old
   driver (-DOLD). */
#include <string.h>

#define SUPPORTED(pointer) if ((pointer) != HANDLE) return 2; if (UNSUPPORTED) return 3
/* beyond 32 bits, so that a handle passed as an int arrives as another one */
static void *const HANDLE = (void *)0x1234567890abUL;
#ifdef JETSON
enum { UNSUPPORTED = 1 };
#else
enum { UNSUPPORTED = 0 };
#endif
static int open_count = 0;
static unsigned long long used_mj = 5000000000ULL; /* beyond 32 bits as well */

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned long long reference_us, violation_ns; } violation_t;

int opened(void) { return open_count; }
int nvmlInit_v2(void) { open_count++; return 0; }
int nvmlShutdown(void) { open_count--; return 0; }
#ifdef SINGLE
enum { DEVICES = 1 };
#else
enum { DEVICES = 2 };
#endif
int nvmlDeviceGetCount_v2(unsigned *count) { *count = DEVICES; return open_count ? 0 : 1; }
int nvmlDeviceGetHandleByIndex_v2(unsigned at, void **device) { *device = HANDLE; return at < DEVICES ? 0 : 2; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    *device = HANDLE;
    return strcmp(uuid, "GPU-5fd4c3a2") ? 6 : 0;
}
int nvmlDeviceGetName(void *device, char *name, unsigned length) {
    const char *known = UNSUPPORTED ? "Orin (nvgpu)" : "NVIDIA GeForce RTX 4090";
    if (device != HANDLE) return 2;
    if (strlen(known) >= length) return 7;
    strcpy(name, known);
    return 0;
}
int nvmlSystemGetDriverVersion(char *version, unsigned length) { strncpy(version, "550.54.14", length); return 0; }
int nvmlDeviceGetMemoryInfo(void *device, memory_t *memory) {
    SUPPORTED(device);
    memory->total = 25757220864ULL; memory->free = 25000000000ULL; memory->used = 757220864ULL;
    return 0;
}
int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *mw) { SUPPORTED(device); *mw = 450000; return 0; }
int nvmlDeviceGetPowerUsage(void *device, unsigned *mw) { SUPPORTED(device); *mw = 61250; return 0; }
int nvmlDeviceGetTemperature(void *device, unsigned sensor, unsigned *celsius) {
    SUPPORTED(device);
    *celsius = 47;
    return sensor == 0 ? 0 : 2;
}
int nvmlDeviceGetClockInfo(void *device, unsigned kind, unsigned *mhz) {
    SUPPORTED(device);
    *mhz = kind == 1 ? 2520 : kind == 2 ? 10501 : 0;
    return 0;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *reasons) {
    SUPPORTED(device);
    *reasons = 0x1 | 0x2 | 0x4 | 0x40; /* idle, application clocks, power cap, hardware's thermal slowdown */
    return 0;
}
int nvmlDeviceGetViolationStatus(void *device, unsigned policy, violation_t *times) {
    SUPPORTED(device);
    times->reference_us = 1; times->violation_ns = policy == 0 ? 120999999ULL : 0;
    return policy == 1 ? 3 : 0;
}
int nvmlDeviceGetComputeRunningProcesses(void *device, unsigned *count, void *infos) {
    SUPPORTED(device);
    if (infos) return 2;
    *count = 2;
    return 7;
}
#ifndef OLD
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *mj) {
    SUPPORTED(device);
    *mj = used_mj += 250;
    return 0;
}
#endif
