// Faults between programs and the kernel: of files, and of the wall clock. Loaded into every
// program of a lab that is started while /etc/ld.so.preload names it (glibc; what is linked
// statically or calls the kernel by itself, as Go does, is left alone).
//
// The file RULE holds one rule, looked at in every call:
//
//   write PART error 5       writes to files with PART in their path fail with EIO
//   write PART half 0        they write half of what they are given
//   write PART delay 300     each is 300 ms late
//   write PART wait 0        the first makes RULE.reached; on once RULE is gone
//   sync PART error 5        the same for fsync and fdatasync
//   clock - step -3600       the wall clock is an hour slow
//
// These are the calls with which Rust's standard library, CRIU and zstd's callers reach files, so
// that what sees a fault is what sees a real one.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define RULE "/run/kybernate-faults"

// The rule, if there is one for this call.
static int rule(const char *call, char part[64], char action[16], long *argument) {
    int before = errno;
    int file = (int)syscall(SYS_openat, AT_FDCWD, RULE, O_RDONLY | O_CLOEXEC);
    errno = before;
    if (file < 0) {
        return 0;
    }
    char text[128] = {0}, wanted[16] = {0};
    long size = syscall(SYS_read, file, text, sizeof text - 1);
    syscall(SYS_close, file);
    errno = before;
    return size > 0 && sscanf(text, "%15s %63s %15s %ld", wanted, part, action, argument) == 4 &&
           strcmp(wanted, call) == 0;
}

static void sleep_ms(long ms) {
    struct timespec left = {ms / 1000, ms % 1000 * 1000000};
    syscall(SYS_nanosleep, &left, NULL);
}

static void wait_for_the_end(void) {
    int reached = (int)syscall(SYS_openat, AT_FDCWD, RULE ".reached", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (reached >= 0) {
        syscall(SYS_close, reached);
    }
    while (syscall(SYS_faccessat, AT_FDCWD, RULE, F_OK) == 0) {
        sleep_ms(5);
    }
}

// What is to happen to a call on a file. Returns the error, or 0; may make *size less.
static int happens(const char *call, int file, size_t *size) {
    char part[64], action[16], link[32], path[512] = {0};
    long argument = 0;
    if (!rule(call, part, action, &argument)) {
        return 0;
    }
    int before = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    long length = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (length > 0 && strstr(path, part) != NULL) {
        if (strcmp(action, "error") == 0) {
            return (int)argument;
        }
        if (strcmp(action, "half") == 0 && size != NULL && *size > 1) {
            // As file systems do it: whole blocks, if there are several.
            *size = *size / 2 >= 4096 ? *size / 2 & ~4095UL : *size / 2;
        } else if (strcmp(action, "delay") == 0) {
            sleep_ms(argument);
        } else if (strcmp(action, "wait") == 0) {
            wait_for_the_end();
        }
    }
    errno = before;
    return 0;
}

static long failed(int error) {
    errno = error;
    return -1;
}

ssize_t write(int file, const void *bytes, size_t size) {
    int error = happens("write", file, &size);
    return error ? failed(error) : syscall(SYS_write, file, bytes, size);
}

ssize_t pwrite64(int file, const void *bytes, size_t size, off64_t at) {
    int error = happens("write", file, &size);
    return error ? failed(error) : syscall(SYS_pwrite64, file, bytes, size, at);
}

ssize_t pwrite(int file, const void *bytes, size_t size, off_t at) {
    return pwrite64(file, bytes, size, at);
}

int fsync(int file) {
    int error = happens("sync", file, NULL);
    return (int)(error ? failed(error) : syscall(SYS_fsync, file));
}

int fdatasync(int file) {
    int error = happens("sync", file, NULL);
    return (int)(error ? failed(error) : syscall(SYS_fdatasync, file));
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (real == NULL) {
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    }
    int result = real != NULL ? real(clock, now) : (int)syscall(SYS_clock_gettime, clock, now);
    char part[64], action[16];
    long seconds = 0;
    if (result == 0 && clock == CLOCK_REALTIME && rule("clock", part, action, &seconds)) {
        now->tv_sec += seconds;
    }
    return result;
}
