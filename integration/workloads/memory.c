// memory MIB [PERCENT [CHECK]]: holds MIB of memory of which PERCENT (default 50) compresses.
//
// Prints "ready sum=S", then every 100 ms "t=N gap_us=G", after every CHECK of them (default
// 20, 0 for never) and on SIGUSR1 also "sum=S OK", or CORRUPT when a word has changed.
//
// G is how long the process stood still, at most, since the line before: a second thread wakes
// every millisecond and notes the largest time between two wakes.
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static uint64_t state = 88172645463325252ull;
static _Atomic uint64_t largest_gap;
static volatile sig_atomic_t check_now;

static uint64_t next(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static uint64_t sum(const uint64_t *words, size_t count) {
    uint64_t total = 0;
    for (size_t i = 0; i < count; i++) {
        total ^= words[i] * 0x9E3779B97F4A7C15ull + i;
    }
    return total;
}

static uint64_t now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static void *tick(void *unused) {
    for (uint64_t last = now_us();;) {
        struct timespec millisecond = {0, 1000000};
        nanosleep(&millisecond, NULL);
        uint64_t now = now_us(), gap = now - last;
        last = now;
        uint64_t seen = largest_gap;
        while (gap > seen && !atomic_compare_exchange_weak(&largest_gap, &seen, gap)) {
        }
    }
    return unused;
}

static void on_check(int signal) {
    (void)signal;
    check_now = 1;
}

int main(int argc, char **argv) {
    size_t count = (argc > 1 ? strtoull(argv[1], NULL, 10) : 1) << 17;
    unsigned percent = argc > 2 ? (unsigned)atoi(argv[2]) : 50;
    unsigned check = argc > 3 ? (unsigned)atoi(argv[3]) : 20;
    uint64_t *words = malloc(count * sizeof *words);
    if (words == NULL) {
        perror("memory: malloc");
        return 1;
    }
    for (size_t i = 0; i < count; i++) {
        words[i] = next() % 100 < percent ? i >> 12 : next();
    }
    struct sigaction on_usr1 = {.sa_handler = on_check};
    sigaction(SIGUSR1, &on_usr1, NULL);
    pthread_t ticker;
    if (pthread_create(&ticker, NULL, tick, NULL) != 0) {
        perror("memory: pthread_create");
        return 1;
    }
    uint64_t expected = sum(words, count);
    printf("ready sum=%016lx\n", (unsigned long)expected);
    fflush(stdout);
    for (unsigned long t = 1;; t++) {
        struct timespec pause = {0, 100000000};
        nanosleep(&pause, NULL);
        printf("t=%lu gap_us=%lu", t, (unsigned long)atomic_exchange(&largest_gap, 0));
        if (check_now || (check != 0 && t % check == 0)) {
            check_now = 0;
            uint64_t found = sum(words, count);
            printf(" sum=%016lx %s", (unsigned long)found, found == expected ? "OK" : "CORRUPT");
        }
        printf("\n");
        fflush(stdout);
    }
}
