/* A load that wrk cannot make: streams, and a fixed number of requests a second. One thread, epoll.
 *
 * Prints one JSON object: answers, failed, events (SSE data lines but [DONE]), and percentiles in microseconds of the
 * time to the first event and to the end. At a fixed rate times count from when a request was due, not from when a
 * connection was free. Pauses are kept to a millisecond. Does not read what an answer says. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

enum { NUM_USERS = 64, HEAD_BYTES = 16384, READ_BYTES = 65536, MAX_CONNECTIONS = 1024 };
typedef enum { IDLE, HEAD, WHOLE, CHUNK_SIZE, CHUNK, CHUNK_END, TRAILER } State;

typedef struct {
    int fd;
    State state;
    bool is_refused, has_first;
    int64_t asked_ns;
    size_t num_head, num_left, num_line, matched;
    char head[HEAD_BYTES + 1];
} Connection;

typedef struct { int64_t *ns; size_t num, room; } Samples;

static int poller, port;
static char *requests[NUM_USERS];
static size_t request_bytes[NUM_USERS];
static size_t turn, num_answers, num_failed, num_events;
static Samples first, whole;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void keep(Samples *samples, int64_t ns) {
    if (samples->num == samples->room) {
        samples->room = samples->room ? 2 * samples->room : 65536;
        samples->ns = realloc(samples->ns, samples->room * sizeof(int64_t));
    }
    samples->ns[samples->num++] = ns;
}

static int compare(const void *a, const void *b) {
    int64_t one = *(const int64_t *)a, other = *(const int64_t *)b;
    return (one > other) - (one < other);
}

/* Sorts; microseconds. */
static double percentile(Samples *samples, double share) {
    if (!samples->num) return -1;
    qsort(samples->ns, samples->num, sizeof(int64_t), compare);
    return samples->ns[(size_t)(share * (samples->num - 1))] / 1000.0;
}

static void connect_to_peer(Connection *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address)) { perror("client"); exit(1); }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event);
    c->state = IDLE;
}

static void reconnect(Connection *c) {
    if (c->state != IDLE) num_failed++;
    close(c->fd);
    connect_to_peer(c);
}

static void ask(Connection *c, int64_t asked_ns) {
    size_t user = turn++ % NUM_USERS;
    c->asked_ns = asked_ns;
    c->state = HEAD;
    c->is_refused = c->has_first = false;
    c->num_head = c->matched = 0;
    /* A request is far smaller than an empty socket's buffer: it goes out whole or the connection is dead. */
    if (send(c->fd, requests[user], request_bytes[user], MSG_NOSIGNAL) != (ssize_t)request_bytes[user]) reconnect(c);
}

static void note_first(Connection *c) {
    if (c->has_first) return;
    c->has_first = true;
    keep(&first, now_ns() - c->asked_ns);
}

static void finish(Connection *c) {
    note_first(c);
    keep(&whole, now_ns() - c->asked_ns);
    if (c->is_refused) num_failed++; else num_answers++;
    c->state = IDLE;
}

static void count_events(Connection *c, const char *data, size_t size) {
    static const char start[] = "data: {"; /* an event may be split anywhere */
    for (size_t i = 0; i < size; i++) {
        c->matched = data[i] == start[c->matched] ? c->matched + 1 : data[i] == start[0];
        if (start[c->matched]) continue;
        c->matched = 0;
        num_events++;
        note_first(c);
    }
}

static void read_head(Connection *c) {
    c->is_refused = strncmp(c->head + 8, " 200", 4) != 0;
    char *length = strcasestr(c->head, "\r\ncontent-length:");
    if (strcasestr(c->head, "\r\ntransfer-encoding: chunked")) {
        c->state = CHUNK_SIZE;
        c->num_left = c->num_line = 0;
    } else {
        c->num_left = length ? strtoul(length + 17, NULL, 10) : 0;
        c->state = WHOLE;
        if (!c->num_left) finish(c);
    }
}

/* The head's bytes go into `head` one by one until its end: it is short. */
static size_t take_head(Connection *c, const char *data, size_t size) {
    for (size_t i = 0; i < size; i++) {
        if (c->num_head == HEAD_BYTES) { fprintf(stderr, "client: a head without end\n"); exit(1); }
        c->head[c->num_head++] = data[i];
        if (data[i] == '\n' && c->num_head >= 4 && !memcmp(c->head + c->num_head - 4, "\r\n\r\n", 4)) {
            c->head[c->num_head] = 0;
            read_head(c);
            return i + 1;
        }
    }
    return size;
}

static size_t take_body(Connection *c, const char *data, size_t size) {
    size_t n = size < c->num_left ? size : c->num_left;
    if (c->state == CHUNK) count_events(c, data, n);
    c->num_left -= n;
    if (!c->num_left) {
        if (c->state == CHUNK) c->state = CHUNK_END; else finish(c);
    }
    return n;
}

/* One byte of what frames the chunks. */
static void take_frame(Connection *c, char byte) {
    if (c->state == CHUNK_END) {
        if (byte == '\n') { c->state = CHUNK_SIZE; c->num_left = c->num_line = 0; }
    } else if (c->state == CHUNK_SIZE) {
        int digit = byte >= '0' && byte <= '9' ? byte - '0' : (byte | 32) >= 'a' && (byte | 32) <= 'f' ? (byte | 32) - 'a' + 10 : -1;
        if (digit >= 0) c->num_left = 16 * c->num_left + digit;
        if (byte == '\n') c->state = c->num_left ? CHUNK : TRAILER;
    } else if (byte == '\n') {
        if (!c->num_line) finish(c); else c->num_line = 0;
    } else if (byte != '\r') {
        c->num_line++;
    }
}

static void read_answer(Connection *c) {
    static char data[READ_BYTES];
    ssize_t n = recv(c->fd, data, sizeof data, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) { reconnect(c); return; }
    for (size_t at = 0; at < (size_t)n && c->state != IDLE;) {
        if (c->state == HEAD) at += take_head(c, data + at, n - at);
        else if (c->state == WHOLE || c->state == CHUNK) at += take_body(c, data + at, n - at);
        else take_frame(c, data[at++]);
    }
}

static void make_requests(const char *body_path, int num_headers, char **headers) {
    static char body[READ_BYTES];
    FILE *file = fopen(body_path, "rb");
    if (!file) { perror(body_path); exit(1); }
    size_t num_body = fread(body, 1, sizeof body, file);
    fclose(file);
    for (int user = 0; user < NUM_USERS; user++) {
        char *text = NULL;
        FILE *out = open_memstream(&text, &request_bytes[user]);
        fprintf(out, "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
                     "X-Prefloop-User: user-%d\r\nContent-Length: %zu\r\n", port, user + 1, num_body);
        for (int i = 0; i < num_headers; i++) fprintf(out, "%s\r\n", headers[i]);
        fprintf(out, "\r\n");
        fwrite(body, 1, num_body, out);
        fclose(out);
        requests[user] = text;
    }
}

int main(int argc, char **argv) {
    if (argc < 6) {
        fprintf(stderr, "usage: client PORT CONNECTIONS SECONDS REQUESTS_A_SECOND BODY_FILE [HEADER …]\n"
                        "REQUESTS_A_SECOND 0: every connection asks again at once.\n");
        return 2;
    }
    static Connection connections[MAX_CONNECTIONS];
    static struct epoll_event events[MAX_CONNECTIONS];
    port = atoi(argv[1]);
    int num = atoi(argv[2]);
    double seconds = atof(argv[3]), rate = atof(argv[4]);
    if (num < 1 || num > MAX_CONNECTIONS) { fprintf(stderr, "client: 1 to %d connections\n", MAX_CONNECTIONS); return 2; }
    make_requests(argv[5], argc - 6, argv + 6);
    poller = epoll_create1(0);
    for (int i = 0; i < num; i++) connect_to_peer(&connections[i]);
    int64_t started = now_ns(), end = started + (int64_t)(seconds * 1e9), now = started;
    size_t num_due = 0;
    while (now < end) {
        for (int i = 0; i < num; i++) {
            if (connections[i].state != IDLE) continue;
            int64_t due = rate > 0 ? started + (int64_t)(num_due * 1e9 / rate) : now_ns();
            if (due > now && rate > 0) break;
            num_due++;
            ask(&connections[i], due);
        }
        int num_ready = epoll_wait(poller, events, MAX_CONNECTIONS, rate > 0 ? 1 : 100);
        for (int i = 0; i < num_ready; i++) read_answer(events[i].data.ptr);
        now = now_ns();
    }
    printf("{\"seconds\":%.6f,\"asked\":%zu,\"answers\":%zu,\"failed\":%zu,\"events\":%zu,", (now - started) / 1e9,
           turn, num_answers, num_failed, num_events);
    printf("\"first_p50_us\":%.1f,\"first_p99_us\":%.1f,", percentile(&first, .5), percentile(&first, .99));
    printf("\"whole_p50_us\":%.1f,\"whole_p99_us\":%.1f}\n", percentile(&whole, .5), percentile(&whole, .99));
    return 0;
}
