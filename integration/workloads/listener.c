// listener PORT [ADDRESS PORT]: serves PORT, and holds a TCP connection to itself and one to
// ADDRESS.
//
// Every client gets "pong N" and is hung up on. Every 100 ms the line
// "t=N served=S loopback=up|closed outside=up|closed|none" tells whether the two connections
// still pass bytes.
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void die(const char *what) {
    perror(what);
    exit(1);
}

static int dial(const char *address, int port) {
    struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int connection = socket(AF_INET, SOCK_STREAM, 0);
    if (inet_pton(AF_INET, address, &peer.sin_addr) != 1 ||
        connect(connection, (struct sockaddr *)&peer, sizeof peer) != 0) {
        die(address);
    }
    return connection;
}

static int is_open(int connection) {
    char byte;
    ssize_t n = recv(connection, &byte, 1, MSG_DONTWAIT | MSG_PEEK);
    return n > 0 || (n < 0 && errno == EAGAIN);
}

int main(int argc, char **argv) {
    int port = argc > 1 ? atoi(argv[1]) : 8080, on = 1;
    signal(SIGPIPE, SIG_IGN);
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&any, sizeof any) != 0 || listen(listener, 16) != 0) {
        die("listen");
    }
    int near = dial("127.0.0.1", port), far = accept(listener, NULL, NULL);
    int outside = argc > 3 ? dial(argv[2], atoi(argv[3])) : -1;
    if (far < 0) {
        die("accept");
    }
    unsigned long served = 0;
    int up = 1;
    for (unsigned long t = 1;; t++) {
        struct pollfd wait = {.fd = listener, .events = POLLIN};
        if (poll(&wait, 1, 100) == 1) {
            int client = accept(listener, NULL, NULL);
            char text[32];
            int length = snprintf(text, sizeof text, "pong %lu\n", ++served);
            if (client >= 0) {
                if (write(client, text, (size_t)length) != length) {
                    perror("client");
                }
                shutdown(client, SHUT_WR);
                close(client);
            }
        }
        char byte = 'x';
        if (up && (send(near, &byte, 1, 0) != 1 || recv(far, &byte, 1, 0) != 1)) {
            up = 0;
        }
        const char *there = outside < 0 ? "none" : is_open(outside) ? "up" : "closed";
        printf("t=%lu served=%lu loopback=%s outside=%s\n", t, served, up ? "up" : "closed", there);
        fflush(stdout);
    }
}
