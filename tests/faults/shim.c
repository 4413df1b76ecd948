// Preloaded into a process under test: fails what it is told to fail, and says how often it did.
// FAULTS_CONTROL: a file of six 64-bit numbers, see __init__.py. FAULTS_PATH: part of the paths that fail.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct control { int64_t sync_error, write_error, clock_offset_s, num_sync, num_write, num_clock; };
static struct control none;
static volatile struct control *control = (volatile struct control *)&none;
static const char *path_part = "";

__attribute__((constructor)) static void map_control(void) {
    const char *name = getenv("FAULTS_CONTROL"), *part = getenv("FAULTS_PATH");
    if (part) path_part = part;
    int fd = name ? open(name, O_RDWR) : -1;
    if (fd < 0) return;
    void *memory = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory != MAP_FAILED) control = memory;
    close(fd);
}

static int is_ours(int fd) {
    char link[64], target[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, target, sizeof target - 1);
    if (length < 0) return 0;
    target[length] = 0;
    return strstr(target, path_part) != NULL;
}

static int fails(int64_t error, int fd, volatile int64_t *count) {
    if (!error || !is_ours(fd)) return 0;
    __sync_fetch_and_add(count, 1);
    errno = (int)error;
    return 1;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define SYNC(name) \
    int name(int fd) { \
        REAL(name); \
        return fails(control->sync_error, fd, &control->num_sync) ? -1 : real(fd); \
    }
SYNC(fsync)
SYNC(fdatasync)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    return fails(control->write_error, fd, &control->num_write) ? -1 : real(fd, data, size);
}

#define PWRITE(name) \
    ssize_t name(int fd, const void *data, size_t size, off_t offset) { \
        REAL(name); \
        return fails(control->write_error, fd, &control->num_write) ? -1 : real(fd, data, size, offset); \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

static int64_t shift(void) {
    int64_t offset = control->clock_offset_s;
    if (offset) __sync_fetch_and_add(&control->num_clock, 1);
    return offset;
}

int clock_gettime(clockid_t id, struct timespec *now) {
    REAL(clock_gettime);
    int result = real(id, now);
    if (!result && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += shift();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    REAL(gettimeofday);
    int result = real(now, zone);
    if (!result) now->tv_sec += shift();
    return result;
}

time_t time(time_t *into) {
    REAL(time);
    time_t now = real(NULL) + shift();
    if (into) *into = now;
    return now;
}
