/* Sends requests that were written beforehand, each once: so many connections, one request in flight on each.
 *
 * client PORT CONNECTIONS SECONDS FILE. The file: requests as they go over the wire, each after its length in decimal
 * and a newline. Prints one JSON object: acknowledged (200), refused, seconds, p50_us and p99_us of the acknowledged.
 * One thread, epoll. An answer must have a content-length. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CONNECTIONS = 1024, ANSWER_BYTES = 16384 };
typedef struct { int fd; int64_t asked_ns; size_t num; char answer[ANSWER_BYTES + 1]; } Connection;

static const char *next_request, *end_of_requests;
static int64_t *samples, deadline_ns;
static size_t num_acknowledged, num_refused, room, num_busy;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int compare(const void *a, const void *b) {
    int64_t one = *(const int64_t *)a, other = *(const int64_t *)b;
    return (one > other) - (one < other);
}

static void fail(const char *what) { perror(what); exit(1); }

/* Sends the next request, if there is one and there is time. */
static void ask(Connection *c) {
    c->asked_ns = now_ns();
    if (next_request >= end_of_requests || c->asked_ns > deadline_ns) { num_busy--; return; }
    char *request;
    size_t length = strtoul(next_request, &request, 10);
    request++;
    if (write(c->fd, request, length) != (ssize_t)length) fail("write");
    next_request = request + length;
    c->num = 0;
}

/* Reads what is there; once the answer is whole, counts it and asks again. */
static void answer(Connection *c) {
    ssize_t got = read(c->fd, c->answer + c->num, ANSWER_BYTES - c->num);
    if (got <= 0) fail("read");
    c->num += got;
    c->answer[c->num] = 0;
    char *body = strstr(c->answer, "\r\n\r\n"), *length = strcasestr(c->answer, "content-length:");
    if (!body || !length || c->num < (size_t)(body + 4 - c->answer) + strtoul(length + 15, NULL, 10)) return;
    if (!strncmp(c->answer, "HTTP/1.1 200", 12)) {
        if (num_acknowledged == room) samples = realloc(samples, (room = room ? 2 * room : 65536) * sizeof *samples);
        samples[num_acknowledged++] = now_ns() - c->asked_ns;
    } else if (!num_refused++) {
        fprintf(stderr, "%s\n", c->answer);
    }
    ask(c);
}

static void map_requests(const char *path) {
    struct stat about;
    int fd = open(path, O_RDONLY);
    if (fd < 0 || fstat(fd, &about)) fail(path);
    next_request = mmap(NULL, about.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
    if (next_request == MAP_FAILED) fail("mmap");
    end_of_requests = next_request + about.st_size;
}

int main(int argc, char **argv) {
    if (argc != 5) { fprintf(stderr, "client PORT CONNECTIONS SECONDS FILE\n"); return 2; }
    size_t num_connections = strtoul(argv[2], NULL, 10);
    if (num_connections > MAX_CONNECTIONS) return 2;
    map_requests(argv[4]);
    int poller = epoll_create1(0), on = 1;
    Connection *connections = calloc(num_connections, sizeof(Connection));
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (size_t i = 0; i < num_connections; i++) {
        Connection *c = &connections[i];
        c->fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(c->fd, (struct sockaddr *)&to, sizeof to)) fail("connect");
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event);
    }
    int64_t began_ns = now_ns();
    deadline_ns = began_ns + (int64_t)(atof(argv[3]) * 1e9);
    num_busy = num_connections;
    for (size_t i = 0; i < num_connections; i++) ask(&connections[i]);
    while (num_busy) {
        struct epoll_event events[64];
        int num = epoll_wait(poller, events, 64, 30000);
        if (num <= 0) fail("no answer for 30 s");
        for (int i = 0; i < num; i++) answer(events[i].data.ptr);
    }
    double seconds = (now_ns() - began_ns) / 1e9;
    qsort(samples, num_acknowledged, sizeof *samples, compare);
    size_t last = num_acknowledged ? num_acknowledged - 1 : 0;
    printf("{\"acknowledged\": %zu, \"refused\": %zu, \"seconds\": %.3f, \"p50_us\": %.1f, \"p99_us\": %.1f}\n",
           num_acknowledged, num_refused, seconds, num_acknowledged ? samples[last / 2] / 1e3 : -1,
           num_acknowledged ? samples[(size_t)(last * 0.99)] / 1e3 : -1);
    return 0;
}
