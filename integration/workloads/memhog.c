// memhog MIB [PERCENT]: holds MIB of memory of which PERCENT (default 50) compresses well.
//
// Prints "ready sum=S", then every 100 ms a line "t=N", every second with the state of the
// memory: "t=N sum=S OK", or CORRUPT when a word of it has changed. The counter is in memory
// alone: a restored process goes on with it, a new one starts at 1.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static uint64_t state = 88172645463325252ull;

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

int main(int argc, char **argv) {
    size_t count = (argc > 1 ? strtoull(argv[1], NULL, 10) : 1) << 17;
    unsigned percent = argc > 2 ? (unsigned)atoi(argv[2]) : 50;
    uint64_t *words = malloc(count * sizeof *words);
    if (words == NULL) {
        perror("memhog: malloc");
        return 1;
    }
    for (size_t i = 0; i < count; i++) {
        words[i] = next() % 100 < percent ? i >> 12 : next();
    }
    uint64_t expected = sum(words, count);
    printf("ready sum=%016lx\n", (unsigned long)expected);
    fflush(stdout);
    for (unsigned long t = 1;; t++) {
        struct timespec tick = {0, 100000000};
        nanosleep(&tick, NULL);
        if (t % 10 == 0) {
            uint64_t found = sum(words, count);
            printf("t=%lu sum=%016lx %s\n", t, (unsigned long)found, found == expected ? "OK" : "CORRUPT");
        } else {
            printf("t=%lu\n", t);
        }
        fflush(stdout);
    }
}
