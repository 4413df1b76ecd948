/* An engine that costs nothing: one thread, epoll, canned answers under the model that was asked for.
 *
 * Speaks enough of vLLM for a gateway to adopt checkpoints (models, adapters, the probe) and to be measured: chat
 * completions of 591 bytes, or a stream of max_tokens events, each in a write of its own as vLLM sends them; a seed
 * is said in the answer, so that two seeds say two things. GET /answered says how many chats were answered. POST /pace/MS sets the pause between a stream's events; without one, every stream sends an event in every turn.
 * Trusts its client: the body must be compact JSON with a Content-Length. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

enum { ANSWER_BYTES = 591, ID_BYTES = 32, NAME_BYTES = 128, SEED_BYTES = 20, INPUT_BYTES = 65536, OUTPUT_BYTES = 1 << 20, MAX_ADAPTERS = 64 };

typedef struct Connection {
    int fd;
    bool is_closed, is_blocked, is_queued;
    size_t num_in, num_out, sent;
    int num_left, num_events; /* of the stream that is being sent */
    bool with_usage;
    int64_t due_us;
    char model[NAME_BYTES], id[ID_BYTES + 1], seed[SEED_BYTES]; /* of the answer that is being sent */
    struct Connection *next; /* in the queue of streams */
    char *out;
    char in[INPUT_BYTES + 1];
} Connection;

static int poller;
static int64_t pace_us;
static Connection *queue_head, *queue_tail;
static char adapters[MAX_ADAPTERS][NAME_BYTES];
static int num_adapters;

static int64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static void enqueue(Connection *c) {
    c->next = NULL;
    c->is_queued = true;
    if (queue_tail) queue_tail->next = c; else queue_head = c;
    queue_tail = c;
}

static void watch(Connection *c, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event);
}

static void close_connection(Connection *c) {
    if (c->is_closed) return;
    c->is_closed = true;
    close(c->fd);
    if (!c->is_queued) { free(c->out); free(c); }
}

/* False once the connection is gone. */
static bool flush_output(Connection *c) {
    while (c->sent < c->num_out) {
        ssize_t n = send(c->fd, c->out + c->sent, c->num_out - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) {
            if (!c->is_blocked) watch(c, EPOLLIN | EPOLLOUT);
            c->is_blocked = true;
            return true;
        }
        if (n < 0) { c->num_left = 0; close_connection(c); return false; }
        c->sent += n;
    }
    c->num_out = c->sent = 0;
    if (c->is_blocked) watch(c, EPOLLIN);
    c->is_blocked = false;
    return true;
}

static bool put(Connection *c, const char *data, size_t size) {
    if (c->num_out + size > OUTPUT_BYTES) { close_connection(c); return false; }
    memcpy(c->out + c->num_out, data, size);
    c->num_out += size;
    return true;
}

static bool answer(Connection *c, const char *type, const char *body, int size) {
    char head[256];
    int n = snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n",
                     type, size);
    return put(c, head, n) && put(c, body, size) && flush_output(c);
}

/* The string value of a top-level key, cut to NAME_BYTES; empty if it is not there. */
static void read_name(const char *body, size_t size, const char *key, char *name) {
    const char *found = memmem(body, size, key, strlen(key));
    size_t n = 0;
    if (found) {
        const char *start = found + strlen(key), *end = body + size;
        while (start < end && *start != '"') start++;
        start++;
        while (start + n < end && start[n] != '"' && n < NAME_BYTES - 1) n++;
        memcpy(name, start, n);
    }
    name[n] = 0;
}

/* No two answers have the same id: who records them must store each. */
static uint64_t num_answers;

static void number_answer(Connection *c) {
    uint64_t rest = ++num_answers;
    for (int i = ID_BYTES; i--; rest >>= 4) c->id[i] = "0123456789abcdef"[rest & 15];
}

/* The digits of a seed; empty without one. */
static void read_seed(Connection *c, const char *body, size_t size) {
    static const char key[] = "\"seed\":";
    const char *found = memmem(body, size, key, sizeof key - 1), *digit = found ? found + sizeof key - 1 : "";
    size_t n = 0; /* the body ends in 0 */
    while (n < SEED_BYTES - 1 && digit[n] >= '0' && digit[n] <= '9') c->seed[n] = digit[n], n++;
    c->seed[n] = 0;
}

static bool answer_chat(Connection *c) {
    static const char start[] = "{\"id\":\"chatcmpl-";
    static const char before[] = "\",\"object\":\"chat.completion\",\"created\":1763740800,\"model\":\"";
    static const char between[] = "\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"";
    static const char after[] = "\",\"refusal\":null,\"tool_calls\":[]},\"logprobs\":null,\"finish_reason\":\"stop\","
                                "\"stop_reason\":null}],\"usage\":{\"prompt_tokens\":72,\"total_tokens\":136,"
                                "\"completion_tokens\":64,\"prompt_tokens_details\":null},\"system_fingerprint\":null,"
                                "\"prompt_logprobs\":null}";
    static const char text[] = "The river bends twice before it meets the old bridge, and there the water slows. ";
    char body[ANSWER_BYTES], *at = body;
    size_t num_model = strlen(c->model), num_seed = strlen(c->seed);
    size_t fixed = sizeof start + ID_BYTES + sizeof before + sizeof between + sizeof after - 4 + num_model + num_seed;
    size_t num_text = fixed < ANSWER_BYTES ? ANSWER_BYTES - fixed : 0; /* the same size whatever the name */
    at = mempcpy(at, start, sizeof start - 1);
    at = mempcpy(at, c->id, ID_BYTES);
    at = mempcpy(at, before, sizeof before - 1);
    at = mempcpy(at, c->model, num_model);
    at = mempcpy(at, between, sizeof between - 1);
    at = mempcpy(at, c->seed, num_seed);
    for (size_t i = 0; i < num_text; i += sizeof text - 1) {
        size_t n = num_text - i < sizeof text - 1 ? num_text - i : sizeof text - 1;
        at = mempcpy(at, text, n);
    }
    at = mempcpy(at, after, sizeof after - 1);
    return answer(c, "application/json", body, at - body);
}

static bool put_event(Connection *c, const char *choices, const char *tail) {
    char event[768], chunk[800];
    int n = snprintf(event, sizeof event,
                     "data: {\"id\":\"chatcmpl-%s\",\"object\":\"chat.completion.chunk\","
                     "\"created\":1763740800,\"model\":\"%s\",\"choices\":%s%s}\n\n", c->id, c->model, choices, tail);
    int size = snprintf(chunk, sizeof chunk, "%x\r\n%s\r\n", n, event);
    return put(c, chunk, size);
}

/* One event of the stream, and what ends it after the last. */
static bool send_event(Connection *c) {
    bool is_first = c->num_left == c->num_events, is_last = --c->num_left == 0;
    char first[64], choices[256];
    const char *delta = is_first ? first : is_last ? "{}" : "{\"content\":\" river\"}";
    snprintf(first, sizeof first, "{\"role\":\"assistant\",\"content\":\"%s\"}", c->seed);
    snprintf(choices, sizeof choices, "[{\"index\":0,\"delta\":%s,\"logprobs\":null,\"finish_reason\":%s}]", delta,
             is_last ? "\"stop\"" : "null");
    if (!put_event(c, choices, "")) return false;
    if (is_last) {
        if (c->with_usage &&
            !put_event(c, "[]", ",\"usage\":{\"prompt_tokens\":72,\"total_tokens\":136,\"completion_tokens\":64}"))
            return false;
        static const char end[] = "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
        if (!put(c, end, sizeof end - 1)) return false;
    }
    return flush_output(c);
}

static bool start_stream(Connection *c, const char *body, size_t size) {
    static const char head[] = "HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                               "transfer-encoding: chunked\r\n\r\n";
    static const char limit[] = "\"max_tokens\":", usage[] = "\"include_usage\":true";
    const char *found = memmem(body, size, limit, sizeof limit - 1);
    c->num_events = found ? atoi(found + sizeof limit - 1) : 64;
    if (c->num_events < 2) c->num_events = 2;
    c->num_left = c->num_events;
    c->with_usage = memmem(body, size, usage, sizeof usage - 1) != NULL;
    if (!put(c, head, sizeof head - 1) || !flush_output(c)) return false;
    c->due_us = now_us() + pace_us;
    if (!send_event(c)) return false;
    enqueue(c);
    return true;
}

static bool answer_models(Connection *c) {
    char body[MAX_ADAPTERS * (NAME_BYTES + 16) + 64];
    int n = sprintf(body, "{\"object\":\"list\",\"data\":[{\"id\":\"base\"}");
    for (int i = 0; i < num_adapters; i++) n += sprintf(body + n, ",{\"id\":\"%s\"}", adapters[i]);
    n += sprintf(body + n, "]}");
    return answer(c, "application/json", body, n);
}

/* What tests and checkpoints of bench/gateway/checkpoints.py expect: tokens 7, 9, 11 after their prefixes. */
static bool answer_probe(Connection *c) {
    static const char body[] =
        "{\"choices\":[{\"index\":0,\"text\":\"\",\"logprobs\":{\"top_logprobs\":[{\"token_id:7\":-1.0}]}},"
        "{\"index\":1,\"text\":\"\",\"logprobs\":{\"top_logprobs\":[{\"token_id:9\":-2.0}]}},"
        "{\"index\":2,\"text\":\"\",\"logprobs\":{\"top_logprobs\":[{\"token_id:11\":-0.5}]}}]}";
    return answer(c, "application/json", body, sizeof body - 1);
}

static bool change_adapters(Connection *c, const char *body, size_t size, bool is_load) {
    char name[NAME_BYTES];
    read_name(body, size, "\"lora_name\":", name);
    for (int i = 0; i < num_adapters; i++)
        if (!strcmp(adapters[i], name)) { strcpy(adapters[i], adapters[--num_adapters]); break; }
    if (is_load && num_adapters < MAX_ADAPTERS) strcpy(adapters[num_adapters++], name);
    return answer(c, "text/plain", "Success", 7);
}

static bool has_path(const char *head, const char *path) {
    const char *start = strchr(head, ' ') + 1;
    return !strncmp(start, path, strlen(path));
}

static bool handle(Connection *c, const char *head, const char *body, size_t size) {
    if (has_path(head, "/v1/chat/completions ")) {
        read_name(body, size, "\"model\":", c->model);
        read_seed(c, body, size);
        number_answer(c);
        static const char stream[] = "\"stream\":true";
        return memmem(body, size, stream, sizeof stream - 1) ? start_stream(c, body, size) : answer_chat(c);
    }
    if (has_path(head, "/v1/models")) return answer_models(c);
    if (has_path(head, "/v1/completions ")) return answer_probe(c);
    if (has_path(head, "/v1/load_lora_adapter ")) return change_adapters(c, body, size, true);
    if (has_path(head, "/v1/unload_lora_adapter ")) return change_adapters(c, body, size, false);
    if (has_path(head, "/answered ")) {
        char said[32];
        return answer(c, "application/json", said, sprintf(said, "%llu", (unsigned long long)num_answers));
    }
    if (has_path(head, "/pace/")) pace_us = 1000LL * atoi(strstr(head, "/pace/") + 6);
    return answer(c, "application/json", "{}", 2); /* /health and the pace */
}

static size_t read_length(const char *head, const char *end) {
    for (const char *line = head; line < end; line++) {
        if ((*line | 32) == 'c' && !strncasecmp(line, "content-length:", 15)) return strtoul(line + 15, NULL, 10);
        line = memchr(line, '\n', end - line);
        if (!line) break;
    }
    return 0;
}

/* Every whole request that was read and is not behind a stream. */
static void handle_input(Connection *c) {
    size_t done = 0;
    while (!c->num_left && done < c->num_in) {
        char *head = c->in + done, *end = memmem(head, c->num_in - done, "\r\n\r\n", 4);
        if (!end) break;
        size_t num_body = read_length(head, end), size = end + 4 - head + num_body;
        if (done + size > c->num_in) break;
        done += size;
        char kept = c->in[done];
        c->in[done] = 0;
        bool is_open = handle(c, head, end + 4, num_body);
        if (!is_open) return;
        c->in[done] = kept;
    }
    c->num_in -= done;
    if (done && c->num_in) memmove(c->in, c->in + done, c->num_in);
}

static void read_input(Connection *c) {
    ssize_t n = recv(c->fd, c->in + c->num_in, INPUT_BYTES - c->num_in, 0);
    if (n > 0) {
        c->num_in += n;
        handle_input(c);
    } else if (n == 0 || errno != EAGAIN) {
        close_connection(c);
    }
}

/* One event for every stream that is due; the queue is ordered by due time because all have the same pace. */
static void send_due_events(void) {
    int64_t now = pace_us ? now_us() : INT64_MAX;
    Connection *last = queue_tail;
    for (bool is_done = !queue_head; !is_done;) {
        Connection *c = queue_head;
        if (!c->is_closed && c->due_us > now) return;
        is_done = c == last;
        queue_head = c->next;
        if (!queue_head) queue_tail = NULL;
        c->is_queued = false;
        if (c->is_closed) { free(c->out); free(c); continue; }
        if (c->is_blocked) continue; /* back in the queue once the peer has read */
        c->due_us += pace_us;
        if (!send_event(c)) continue;
        if (c->num_left) enqueue(c); else handle_input(c);
    }
}

/* What did not fit before is sent; False once the connection is gone. */
static bool resume(Connection *c) {
    if (!flush_output(c)) return false;
    if (!c->is_blocked && c->num_left && !c->is_queued) {
        int64_t now = now_us();
        if (c->due_us < now) c->due_us = now;
        enqueue(c);
    }
    return true;
}

static void accept_connections(int listener) {
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        Connection *c = calloc(1, sizeof *c);
        c->out = malloc(OUTPUT_BYTES);
        c->fd = fd;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    }
}

static int wait_ms(void) {
    if (!queue_head) return -1;
    if (!pace_us) return 0;
    int64_t left = queue_head->due_us - now_us();
    return left <= 0 ? 0 : (int)(left / 1000 + 1);
}

int main(int argc, char **argv) {
    if (argc < 2 || argc > 3) { fprintf(stderr, "usage: mock PORT [ADDRESS]\n"); return 2; }
    signal(SIGPIPE, SIG_IGN);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])),
                                  .sin_addr.s_addr = argc == 3 ? inet_addr(argv[2]) : htonl(INADDR_LOOPBACK)};
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) {
        perror("mock");
        return 1;
    }
    poller = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[256];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int num = epoll_wait(poller, events, 256, wait_ms());
        for (int i = 0; i < num; i++) {
            Connection *c = events[i].data.ptr;
            if (!c) { accept_connections(listener); continue; }
            if (events[i].events & EPOLLOUT && !resume(c)) continue;
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) read_input(c);
        }
        send_due_events();
    }
}
