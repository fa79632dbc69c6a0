// tree: a token goes round a tree of processes, over another medium at each hop.
//
//   root ─pipe─> A ─socket pair─> B ─named socket─> C ─SysV memory+semaphore─> D ─/dev/shm─> E
//     └────────────────────── shared anonymous memory + semaphore <──────────────────────────┘
//
// C is A's child, in a session of its own. Each process adds one. Every 100 ms root sends the
// token round and looks at what only it holds: a file at an offset, an unlinked open file, a
// lock, a pending signal, an alternate signal stack, a zombie, an event counter, a deleted
// It prints "round N", or "FAIL" and what does not hold any more.
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum { HOPS = 6, STACK = 1 << 16 };

struct cell {
    sem_t full;
    uint64_t token;
};

static void die(const char *what) {
    printf("FAIL %s: %s\n", what, strerror(errno));
    fflush(stdout);
    exit(1);
}

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    printf("FAIL ");
    vprintf(format, arguments);
    printf("\n");
    va_end(arguments);
    fflush(stdout);
}

static uint64_t get(int from) {
    uint64_t token;
    ssize_t n;
    while ((n = read(from, &token, sizeof token)) < 0 && errno == EINTR) {
    }
    if (n != sizeof token) {
        die("read the token");
    }
    return token;
}

static void put(int to, uint64_t token) {
    if (write(to, &token, sizeof token) != sizeof token) {
        die("write the token");
    }
}

static uint64_t take(struct cell *cell) {
    while (sem_wait(&cell->full) != 0) {
        if (errno != EINTR) {
            die("sem_wait");
        }
    }
    return cell->token;
}

static void give(struct cell *cell, uint64_t token) {
    cell->token = token;
    sem_post(&cell->full);
}

static struct cell *shared(int file) {
    int flags = MAP_SHARED | (file < 0 ? MAP_ANONYMOUS : 0);
    struct cell *cell = mmap(NULL, 4096, PROT_READ | PROT_WRITE, flags, file, 0);
    if (cell == MAP_FAILED || sem_init(&cell->full, 1, 0) != 0) {
        die("shared memory");
    }
    return cell;
}

static void add(int set, short by) {
    struct sembuf operation = {0, by, 0};
    while (semop(set, &operation, 1) != 0) {
        if (errno != EINTR) {
            die("semop");
        }
    }
}

static pid_t child(void) {
    pid_t pid = fork();
    if (pid < 0) {
        die("fork");
    }
    return pid;
}

static char *stack;
static volatile sig_atomic_t on_stack;

static void on_usr2(int signal) {
    (void)signal;
    char here;
    on_stack = &here >= stack && &here < stack + STACK;
}

static void on_term(int signal) {
    (void)signal;
    _exit(5);
}

int main(void) {
    int first[2], pair[2];
    if (pipe(first) != 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) {
        die("pipes");
    }
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "/tmp/ring"};
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&name, sizeof name) != 0 || listen(listener, 1) != 0) {
        die("named socket");
    }
    int segment = shmget(IPC_PRIVATE, 4096, 0600), set = semget(IPC_PRIVATE, 1, 0600);
    volatile uint64_t *sysv = shmat(segment, NULL, 0);
    if (segment < 0 || set < 0 || sysv == (void *)-1) {
        die("SysV memory");
    }
    int posix = shm_open("/ring", O_RDWR | O_CREAT, 0600);
    if (posix < 0 || ftruncate(posix, 4096) != 0) {
        die("/dev/shm");
    }
    struct cell *in_shm = shared(posix), *anonymous = shared(-1);

    if (child() == 0) { // A, and its child C
        if (child() == 0) {
            setsid();
            int from = accept(listener, NULL, NULL);
            for (;;) {
                *sysv = get(from) + 1;
                add(set, 1);
            }
        }
        for (;;) {
            put(pair[0], get(first[0]) + 1);
        }
    }
    if (child() == 0) { // B
        int to = socket(AF_UNIX, SOCK_STREAM, 0);
        if (connect(to, (struct sockaddr *)&name, sizeof name) != 0) {
            die("connect");
        }
        for (;;) {
            put(to, get(pair[1]) + 1);
        }
    }
    if (child() == 0) { // D
        for (;;) {
            add(set, -1);
            give(in_shm, *sysv + 1);
        }
    }
    if (child() == 0) { // E
        for (;;) {
            give(anonymous, take(in_shm) + 1);
        }
    }

    pid_t zombie = child();
    if (zombie == 0) {
        _exit(3);
    }
    int offset = open("/tmp/offset", O_RDWR | O_CREAT | O_TRUNC, 0640);
    int ghost = open("/tmp/ghost", O_RDWR | O_CREAT | O_TRUNC, 0600);
    int lock = open("/tmp/lock", O_RDWR | O_CREAT, 0600);
    if (offset < 0 || ghost < 0 || lock < 0 || unlink("/tmp/ghost") != 0 || flock(lock, LOCK_EX) != 0) {
        die("files");
    }
    struct flock range = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 5};
    if (fcntl(offset, F_SETLK, &range) != 0) {
        die("record lock");
    }
    stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    stack_t alternate = {.ss_sp = stack, .ss_size = STACK};
    struct sigaction usr2 = {.sa_handler = on_usr2, .sa_flags = SA_ONSTACK};
    struct sigaction term = {.sa_handler = on_term};
    sigset_t blocked, pending;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    if (sigaltstack(&alternate, NULL) != 0 || sigaction(SIGUSR2, &usr2, NULL) != 0 ||
        sigaction(SIGTERM, &term, NULL) != 0 || sigprocmask(SIG_BLOCK, &blocked, NULL) != 0) {
        die("signals");
    }
    kill(getpid(), SIGUSR1);

    int events = eventfd(40, EFD_NONBLOCK), timer = timerfd_create(CLOCK_MONOTONIC, 0);
    int poll = epoll_create1(0);
    // Armed anew each round: CRIU brings a periodic one that expired during the dump back without
    // its next expiration.
    struct itimerspec once = {{0, 0}, {0, 100000000}};
    struct epoll_event wanted = {.events = EPOLLIN, .data.u64 = 77}, got;
    if (events < 0 || timerfd_settime(timer, 0, &once, NULL) != 0 ||
        epoll_ctl(poll, EPOLL_CTL_ADD, timer, &wanted) != 0) {
        die("timer");
    }

    for (uint64_t round = 1;; round++) {
        while (epoll_wait(poll, &got, 1, -1) != 1) {
            if (errno != EINTR) {
                die("epoll_wait");
            }
        }
        uint64_t expirations;
        if (got.data.u64 != 77 || read(timer, &expirations, sizeof expirations) < 0 ||
            timerfd_settime(timer, 0, &once, NULL) != 0) {
            fail("the timer");
        }
        put(first[1], round * 100);
        uint64_t token = take(anonymous);
        if (token != round * 100 + HOPS - 1) {
            fail("token %lu, expected %lu", token, round * 100 + HOPS - 1);
        }

        uint64_t record = 0;
        if (lseek(offset, 0, SEEK_CUR) != (off_t)((round - 1) * 8) || write(offset, &round, 8) != 8 ||
            pread(offset, &record, 8, (off_t)(round / 2) * 8) != 8 || record != round / 2 + 1) {
            fail("file at offset %ld holds %lu", lseek(offset, 0, SEEK_CUR), record);
        }
        if (pwrite(ghost, &round, 8, (off_t)round * 8) != 8 ||
            (round > 1 && (pread(ghost, &record, 8, (off_t)(round - 1) * 8) != 8 || record != round - 1))) {
            fail("unlinked file holds %lu", record);
        }
        int other = open("/tmp/lock", O_RDWR);
        if (other < 0 || flock(other, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) {
            fail("the lock is not held");
        }
        close(other);
        siginfo_t ended = {0};
        if (waitid(P_PID, (id_t)zombie, &ended, WEXITED | WNOHANG | WNOWAIT) != 0 || ended.si_status != 3) {
            fail("the zombie: status %d", ended.si_status);
        }
        sigpending(&pending);
        if (!sigismember(&pending, SIGUSR1)) {
            fail("the pending signal is lost");
        }
        on_stack = 0;
        kill(getpid(), SIGUSR2);
        if (!on_stack) {
            fail("the alternate signal stack is not used");
        }
        uint64_t count = 0;
        if (read(events, &count, sizeof count) != 8 || count != 40) {
            fail("event counter %lu", count);
        }
        put(events, 40);
        printf("round %lu\n", round);
        fflush(stdout);
    }
}
