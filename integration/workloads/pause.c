// pause: keeps a pod's namespaces open. As pid 1 of a shared PID namespace it inherits
// orphans, so it reaps; it leaves on SIGTERM and SIGINT.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void on_child(int signal) {
    (void)signal;
    while (waitpid(-1, NULL, WNOHANG) > 0) {
    }
}

static void on_stop(int signal) {
    (void)signal;
    _exit(0);
}

int main(void) {
    struct sigaction child = {.sa_handler = on_child, .sa_flags = SA_NOCLDSTOP};
    struct sigaction stop = {.sa_handler = on_stop};
    sigaction(SIGCHLD, &child, NULL);
    sigaction(SIGTERM, &stop, NULL);
    sigaction(SIGINT, &stop, NULL);
    for (;;) {
        pause();
    }
}
