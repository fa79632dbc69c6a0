// counter [FILE]: prints "count N" ten times a second and writes N into FILE as well.
//
// The file stays open, so its offset, its content and the number in memory must agree after a
// restore. SIGTERM ends it with status 7.
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static void on_stop(int signal) {
    (void)signal;
    _exit(7);
}

int main(int argc, char **argv) {
    const char *path = argc > 1 ? argv[1] : "/counter";
    int file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
    if (file < 0) {
        perror(path);
        return 1;
    }
    struct sigaction stop = {.sa_handler = on_stop};
    sigaction(SIGTERM, &stop, NULL);
    for (unsigned long n = 1;; n++) {
        struct timespec tick = {0, 100000000};
        while (nanosleep(&tick, &tick) != 0) {
        }
        unsigned long last = 0;
        char text[32];
        if (n > 1) {
            ssize_t length = pread(file, text, sizeof text - 1, 0);
            text[length < 0 ? 0 : length] = 0;
            last = strtoul(text, NULL, 10);
        }
        if (last != n - 1) {
            printf("FAIL %s holds %lu, expected %lu\n", path, last, n - 1);
        }
        int length = snprintf(text, sizeof text, "%lu\n", n);
        if (pwrite(file, text, (size_t)length, 0) != length) {
            perror(path);
        }
        printf("count %lu\n", n);
        fflush(stdout);
    }
}
