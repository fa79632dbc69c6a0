// gpu [PROCESSES]: counts in the device memory of the double of a CUDA driver (doubles/cuda.h),
// and in its own memory. "count N" ten times a second; FAIL when the two differ.
//
// NOT a CUDA program. With more than one process each counts for itself, the first one prints.
#define _GNU_SOURCE
#include "../doubles/cuda.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static struct block *block;
static pthread_mutex_t gpu = PTHREAD_MUTEX_INITIALIZER;
static int device = -1;

static void pause_ms(long ms) {
    struct timespec tick = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&tick, &tick) != 0) {
    }
}

// Takes the GPU: opens its device and makes device memory with the block's content.
static int take(void) {
    snprintf(block->file, sizeof block->file, DEVICES "/memory-XXXXXX");
    int file = mkstemp(block->file);
    device = open(DEVICE_FILE, O_RDWR | O_CLOEXEC);
    int done = file >= 0 && device >= 0 && write(file, block->memory, MEMORY) == MEMORY;
    close(file);
    return done;
}

// Lets go of the GPU: its memory moves into the block.
static int let_go(void) {
    int file = open(block->file, O_RDONLY | O_CLOEXEC);
    int done = file >= 0 && read(file, block->memory, MEMORY) == MEMORY;
    close(file);
    unlink(block->file);
    close(device);
    device = -1;
    return done;
}

// The driver's thread: does what the library asks for.
static void *serve(void *unused) {
    (void)unused;
    for (;; pause_ms(1)) {
        block->beat++;
        if (block->done == block->serial) {
            continue;
        }
        uint32_t serial = block->serial, result = 0;
        switch (block->request) {
        case LOCK:
            pthread_mutex_lock(&gpu);
            block->state = LOCKED;
            break;
        case CHECKPOINT:
            result = let_go() ? 0 : 999;
            block->state = CHECKPOINTED;
            break;
        case RESTORE:
            result = take() ? 0 : 999;
            block->state = LOCKED;
            break;
        case UNLOCK:
            block->state = RUNNING;
            pthread_mutex_unlock(&gpu);
            break;
        }
        block->result = result;
        __sync_synchronize();
        block->done = serial;
    }
    return NULL;
}

// A "kernel": adds one to the number in device memory. Waits while the GPU is locked.
static unsigned long launch(void) {
    unsigned long number = 0;
    pthread_mutex_lock(&gpu);
    int file = open(block->file, O_RDWR | O_CLOEXEC);
    if (file < 0 || pread(file, &number, sizeof number, 0) != sizeof number) {
        printf("FAIL device memory: %s\n", strerror(errno));
    }
    number++;
    if (pwrite(file, &number, sizeof number, 0) != sizeof number) {
        printf("FAIL device memory: %s\n", strerror(errno));
    }
    close(file);
    pthread_mutex_unlock(&gpu);
    return number;
}

int main(int argc, char **argv) {
    int processes = argc > 1 ? atoi(argv[1]) : 1, first = 1;
    while (--processes > 0) {
        if (fork() == 0) {
            first = 0;
            break;
        }
    }
    block = mmap((void *)BLOCK_ADDRESS, sizeof *block, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    pthread_t thread;
    if (block == MAP_FAILED || !take() || pthread_create(&thread, NULL, serve, NULL) != 0) {
        perror("gpu");
        return 1;
    }
    block->magic = BLOCK_MAGIC;
    for (unsigned long n = 1;; n++) {
        pause_ms(100);
        unsigned long number = launch();
        if (number != n) {
            printf("FAIL device memory holds %lu, expected %lu\n", number, n);
        }
        if (first) {
            printf("count %lu\n", n);
        }
        fflush(stdout);
    }
}
