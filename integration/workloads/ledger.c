// ledger MIB [FILE]: counts in memory that it keeps changing, and in a file.
//
// Five times a second it adds one to its number N, fills page N mod PAGES of its memory from N, and
// writes N into FILE. What any page and the file have to hold follows from N alone, so that a page
// or a write that was lost, or came back from earlier, is seen. "count N"; every tenth time all of
// it is looked at: "sum OK", or "FAIL" and what does not hold. SIGTERM ends it with status 7.
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { WORDS = 512 };

static void on_stop(int signal) {
    (void)signal;
    _exit(7);
}

static uint64_t word(uint64_t number, uint64_t page, uint64_t at) {
    // Every other page compresses.
    if (page % 2) {
        return number;
    }
    uint64_t mixed = (number << 40 ^ page << 20 ^ at) * 0x9E3779B97F4A7C15ull;
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9ull;
    return mixed ^ mixed >> 27;
}

// The number that page was filled from last.
static uint64_t filled(uint64_t number, uint64_t page, uint64_t pages) {
    uint64_t since = (number + pages - page) % pages;
    return since > number ? 0 : number - since;
}

static void fill(uint64_t *memory, uint64_t page, uint64_t number) {
    for (uint64_t i = 0; i < WORDS; i++) {
        memory[page * WORDS + i] = word(number, page, i);
    }
}

int main(int argc, char **argv) {
    uint64_t pages = (argc > 1 ? strtoull(argv[1], NULL, 10) : 1) << 8;
    const char *path = argc > 2 ? argv[2] : "/ledger";
    int file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
    uint64_t *memory = mmap(NULL, pages * sizeof *memory * WORDS, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (file < 0 || memory == MAP_FAILED) {
        perror("ledger");
        return 1;
    }
    struct sigaction stop = {.sa_handler = on_stop};
    sigaction(SIGTERM, &stop, NULL);
    for (uint64_t page = 0; page < pages; page++) {
        fill(memory, page, 0);
    }
    for (uint64_t n = 1;; n++) {
        struct timespec tick = {0, 200000000};
        while (nanosleep(&tick, &tick) != 0) {
        }
        char text[32] = {0};
        if (n > 1 && pread(file, text, sizeof text - 1, 0) > 0 && strtoull(text, NULL, 10) != n - 1) {
            printf("FAIL %s holds %s, expected %lu\n", path, text, (unsigned long)(n - 1));
        }
        int length = snprintf(text, sizeof text, "%lu\n", (unsigned long)n);
        if (pwrite(file, text, (size_t)length, 0) != length) {
            perror(path);
        }
        fill(memory, n % pages, n);
        for (uint64_t page = 0; n % 10 == 0 && page < pages; page++) {
            uint64_t from = filled(n, page, pages);
            for (uint64_t i = 0; i < WORDS; i++) {
                if (memory[page * WORDS + i] != word(from, page, i)) {
                    printf("FAIL word %lu of page %lu is not from %lu\n", (unsigned long)i,
                           (unsigned long)page, (unsigned long)from);
                    break;
                }
            }
        }
        printf(n % 10 == 0 ? "count %lu sum OK\n" : "count %lu\n", (unsigned long)n);
        fflush(stdout);
    }
}
