// libcuda.so.1 and libnvidia-ml.so.1 as a double: see cuda.h. NOT NVIDIA's driver.
//
// DEVICES/faults, if there, holds words that make it misbehave, one a line:
//   lock-timeout | checkpoint-error N | checkpoint-hang | checkpoint-lie | restore-error N
//   state-failed | driver VERSION | mig | mps | memory BYTES | free BYTES | name MODEL | uuid UUID
#define _GNU_SOURCE
#include "cuda.h"
#include <dirent.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
enum { SUCCESS = 0, NOT_INITIALIZED = 3, OPERATING_SYSTEM = 304, ILLEGAL_STATE = 401, NOT_READY = 600, NOT_SUPPORTED = 801 };

// The rest of the line that starts with a word, or NULL.
static const char *fault(const char *word) {
    static _Thread_local char line[256];
    FILE *file = fopen(DEVICES "/faults", "r");
    const char *found = NULL;
    size_t length = strlen(word);
    while (file != NULL && found == NULL && fgets(line, sizeof line, file) != NULL) {
        line[strcspn(line, "\n")] = 0;
        if (strncmp(line, word, length) == 0 && (line[length] == ' ' || line[length] == 0)) {
            found = line[length] == ' ' ? line + length + 1 : "";
        }
    }
    if (file != NULL) {
        fclose(file);
    }
    return found;
}

static int get(int pid, size_t offset, void *to, size_t length) {
    struct iovec here = {to, length}, there = {(void *)(BLOCK_ADDRESS + offset), length};
    return process_vm_readv(pid, &here, 1, &there, 1, 0) == (ssize_t)length;
}

static int put(int pid, size_t offset, uint32_t value) {
    struct iovec here = {&value, sizeof value}, there = {(void *)(BLOCK_ADDRESS + offset), sizeof value};
    return process_vm_writev(pid, &here, 1, &there, 1, 0) == (ssize_t)sizeof value;
}

#define GET(pid, field, to) get(pid, offsetof(struct block, field), to, sizeof *(to))
#define PUT(pid, field, value) put(pid, offsetof(struct block, field), value)

static int knows(int pid) {
    uint64_t magic = 0;
    return GET(pid, magic, &magic) && magic == BLOCK_MAGIC;
}

static void tick(void) {
    nanosleep(&(struct timespec){0, 1000000}, NULL);
}

static int absent(int pid) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d", pid);
    return access(path, F_OK) == 0 ? NOT_INITIALIZED : OPERATING_SYSTEM;
}

EXPORT int cuCheckpointProcessGetState(int pid, int *state) {
    uint32_t now = 0, before = 0, beat = 0;
    if (!knows(pid) || !GET(pid, beat, &before)) {
        return absent(pid);
    }
    // The real one waits for as long as the process is frozen.
    do {
        tick();
        if (!GET(pid, beat, &beat)) {
            return OPERATING_SYSTEM;
        }
    } while (beat == before);
    GET(pid, state, &now);
    *state = fault("state-failed") != NULL ? FAILED : (int)now;
    return SUCCESS;
}

EXPORT int cuCheckpointProcessGetRestoreThreadId(int pid, int *thread) {
    *thread = 0;
    return knows(pid) ? SUCCESS : absent(pid);
}

// Asks the process for a step and waits for it; at most so many milliseconds, 0 for ever.
static int step(int pid, uint32_t from, uint32_t request, unsigned limit) {
    uint32_t state = 0, serial = 0, done = 0, result = 0;
    if (!knows(pid)) {
        return absent(pid);
    }
    GET(pid, state, &state);
    if (state != from) {
        return ILLEGAL_STATE;
    }
    GET(pid, serial, &serial);
    PUT(pid, request, request);
    PUT(pid, serial, ++serial);
    for (unsigned waited = 0; limit == 0 || waited < limit; waited++) {
        if (!GET(pid, done, &done)) {
            return OPERATING_SYSTEM;
        }
        if (done == serial) {
            GET(pid, result, &result);
            return (int)result;
        }
        tick();
    }
    PUT(pid, request, NONE);
    return NOT_READY;
}

EXPORT int cuCheckpointProcessLock(int pid, const unsigned *args) {
    unsigned limit = args != NULL ? args[0] : 0;
    if (fault("lock-timeout") != NULL) {
        usleep(limit < 200 ? limit * 1000 : 200000);
        return NOT_READY;
    }
    return step(pid, RUNNING, LOCK, limit);
}

EXPORT int cuCheckpointProcessCheckpoint(int pid, const void *args) {
    (void)args;
    const char *error = fault("checkpoint-error");
    if (error != NULL) {
        return atoi(error);
    }
    while (fault("checkpoint-hang") != NULL) {
        tick();
    }
    return fault("checkpoint-lie") != NULL ? SUCCESS : step(pid, LOCKED, CHECKPOINT, 0);
}

EXPORT int cuCheckpointProcessRestore(int pid, const void *args) {
    (void)args;
    const char *error = fault("restore-error");
    return error != NULL ? atoi(error) : step(pid, CHECKPOINTED, RESTORE, 0);
}

EXPORT int cuCheckpointProcessUnlock(int pid, const void *args) {
    (void)args;
    return step(pid, LOCKED, UNLOCK, 0);
}

EXPORT int cuDriverGetVersion(int *version) {
    *version = 13000;
    return SUCCESS;
}

EXPORT int cuGetErrorName(int code, const char **name) {
    *name = code == NOT_SUPPORTED ? "CUDA_ERROR_NOT_SUPPORTED" : code == NOT_READY ? "CUDA_ERROR_NOT_READY" : "CUDA_ERROR_DOUBLE";
    return SUCCESS;
}

EXPORT int cuGetErrorString(int code, const char **text) {
    *text = code == NOT_SUPPORTED ? "operation not supported" : code == NOT_READY ? "device not ready" : "an error of the double";
    return SUCCESS;
}

// NVML. One GPU; its handle is any address.

struct process {
    unsigned pid;
    unsigned long long memory;
    unsigned gpu, compute;
};

static unsigned long long number(const char *word, unsigned long long otherwise) {
    const char *value = fault(word);
    return value != NULL ? strtoull(value, NULL, 10) : otherwise;
}

static int text(char *to, unsigned length, const char *word, const char *otherwise) {
    const char *value = fault(word);
    snprintf(to, length, "%s", value != NULL ? value : otherwise);
    return SUCCESS;
}

EXPORT int nvmlInit_v2(void) { return SUCCESS; }
EXPORT int nvmlSystemGetDriverVersion(char *to, unsigned length) { return text(to, length, "driver", "580.0.double"); }
EXPORT int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return SUCCESS; }
EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { *handle = (void *)(uintptr_t)(index + 1); return SUCCESS; }
EXPORT int nvmlDeviceGetUUID(void *handle, char *to, unsigned length) { (void)handle; return text(to, length, "uuid", "GPU-00000000-0000-0000-0000-00000000d0b1"); }
EXPORT int nvmlDeviceGetName(void *handle, char *to, unsigned length) { (void)handle; return text(to, length, "name", "Double of a GPU"); }
EXPORT int nvmlDeviceGetMinorNumber(void *handle, unsigned *minor) { (void)handle; *minor = 0; return SUCCESS; }

EXPORT int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) {
    (void)handle;
    *major = 9;
    *minor = 0;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetMemoryInfo(void *handle, unsigned long long *memory) {
    (void)handle;
    memory[0] = 80ULL << 30;
    memory[1] = number("free", 79ULL << 30);
    memory[2] = memory[0] - memory[1];
    return SUCCESS;
}

EXPORT int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    (void)handle;
    *current = *pending = fault("mig") != NULL;
    return SUCCESS;
}

static int processes(unsigned *count, struct process *found) {
    unsigned room = *count;
    DIR *proc = opendir("/proc");
    struct dirent *entry;
    *count = 0;
    while (proc != NULL && (entry = readdir(proc)) != NULL) {
        int pid = atoi(entry->d_name);
        uint32_t state = CHECKPOINTED;
        if (pid > 0 && knows(pid) && GET(pid, state, &state) && state < CHECKPOINTED && *count < room) {
            found[(*count)++] = (struct process){(unsigned)pid, number("memory", MEMORY), 0, 0};
        }
    }
    if (proc != NULL) {
        closedir(proc);
    }
    return SUCCESS;
}

EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, struct process *found) {
    (void)handle;
    return processes(count, found);
}

EXPORT int nvmlDeviceGetMPSComputeRunningProcesses_v3(void *handle, unsigned *count, struct process *found) {
    (void)handle;
    if (fault("mps") != NULL) {
        return processes(count, found);
    }
    *count = 0;
    return SUCCESS;
}
