// threads [N]: N threads (default 16) that each count, in thread-local storage and in a shared
// table, and pairs that pass a turn through a mutex and a condition variable.
//
// Prints "round R low=L turns=T" every 100 ms: L is the slowest thread's count. A line FAIL
// says what does not hold any more.
#include <dirent.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

enum { MOST = 256 };

static _Thread_local unsigned long own;
static _Atomic unsigned long counts[MOST];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static unsigned long turns;
static _Atomic int failed;

static void rest(long milliseconds) {
    struct timespec pause = {0, milliseconds * 1000000};
    nanosleep(&pause, NULL);
}

static void *count(void *argument) {
    size_t index = (size_t)argument;
    char name[16], found[16];
    snprintf(name, sizeof name, "count-%zu", index);
    prctl(PR_SET_NAME, name);
    for (;;) {
        rest(5);
        own++;
        if (atomic_fetch_add(&counts[index], 1) + 1 != own) {
            printf("FAIL thread %zu: thread-local count differs\n", index);
            failed = 1;
        }
        prctl(PR_GET_NAME, found);
        if (strcmp(name, found) != 0) {
            printf("FAIL thread %zu is called %s\n", index, found);
            failed = 1;
        }
    }
    return NULL;
}

static void *take_turns(void *argument) {
    unsigned long mine = (size_t)argument;
    for (;;) {
        pthread_mutex_lock(&mutex);
        while (turns % 2 != mine) {
            pthread_cond_wait(&changed, &mutex);
        }
        turns++;
        pthread_cond_broadcast(&changed);
        pthread_mutex_unlock(&mutex);
        rest(2);
    }
    return NULL;
}

static int alive(void) {
    int found = 0;
    DIR *tasks = opendir("/proc/self/task");
    for (struct dirent *entry; tasks != NULL && (entry = readdir(tasks)) != NULL;) {
        found += entry->d_name[0] != '.';
    }
    if (tasks != NULL) {
        closedir(tasks);
    }
    return found;
}

int main(int argc, char **argv) {
    size_t n = argc > 1 ? strtoull(argv[1], NULL, 10) : 16;
    if (n == 0 || n > MOST) {
        fprintf(stderr, "threads: between 1 and %d\n", MOST);
        return 1;
    }
    for (size_t i = 0; i < n + 2; i++) {
        pthread_t thread;
        int error = i < n ? pthread_create(&thread, NULL, count, (void *)i)
                          : pthread_create(&thread, NULL, take_turns, (void *)(i - n));
        if (error != 0) {
            fprintf(stderr, "threads: %s\n", strerror(error));
            return 1;
        }
    }
    for (unsigned long round = 1;; round++) {
        rest(100);
        unsigned long low = counts[0];
        for (size_t i = 1; i < n; i++) {
            low = counts[i] < low ? counts[i] : low;
        }
        if (alive() != (int)n + 3) {
            printf("FAIL %d threads, expected %zu\n", alive(), n + 3);
        }
        pthread_mutex_lock(&mutex);
        unsigned long passed = turns;
        pthread_mutex_unlock(&mutex);
        printf("round %lu low=%lu turns=%lu%s\n", round, low, passed, failed ? " FAIL" : "");
        fflush(stdout);
    }
}
