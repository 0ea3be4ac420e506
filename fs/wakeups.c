/* Holds a PM QoS request while there is traffic: see wakeups.h. */
#include "fs/wakeups.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/base/log.h"
#include "core/base/util.h"

enum {
    BURST = 32,          /* this many on one thread ... */
    BURST_MS = 10,       /* ... in this time are traffic */
    LOOK_MS = 20,        /* how often it is looked whether it goes on */
    LEAST_REQUESTS = 64, /* in that time */
};

struct wakeups {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool wanted, stop;
    _Atomic bool held;
    _Atomic unsigned requests; /* while it is held */
};

static bool file_says(const char *path, const char *expected)
{
    cleanup_free char *text = NULL;
    if (mob_read_file(AT_FDCWD, path, 4096, &text, NULL))
        return false;
    text[strcspn(text, "\n")] = '\0';
    return strcmp(text, expected) == 0;
}

static bool idle_cpus_halt(void)
{
    return file_says("/sys/devices/system/cpu/cpuidle/current_driver", "haltpoll") &&
           file_says("/sys/module/haltpoll/parameters/guest_halt_poll_ns", "0");
}

/* Until it has been quiet. False: the kernel doesn't let us. Locked. */
static bool hold(struct wakeups *wakeups)
{
    int32_t microseconds = 0;
    cleanup_fd int fd = open("/dev/cpu_dma_latency", O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, &microseconds, sizeof microseconds) != (ssize_t)sizeof microseconds) {
        mob_log_debug("/dev/cpu_dma_latency: %s", strerror(errno));
        return false;
    }
    atomic_store(&wakeups->held, true);
    do {
        struct timespec until;
        atomic_store(&wakeups->requests, 0);
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += LOOK_MS * 1000000;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        while (!wakeups->stop &&
               pthread_cond_timedwait(&wakeups->changed, &wakeups->mutex, &until) != ETIMEDOUT)
            ;
    } while (!wakeups->stop && atomic_load(&wakeups->requests) >= LEAST_REQUESTS);
    atomic_store(&wakeups->held, false);
    return true;
}

static void *run(void *argument)
{
    struct wakeups *wakeups = argument;
    bool works = true;
    pthread_mutex_lock(&wakeups->mutex);
    while (!wakeups->stop) {
        if (!wakeups->wanted) {
            pthread_cond_wait(&wakeups->changed, &wakeups->mutex);
            continue;
        }
        works = works && hold(wakeups);
        /* What doesn't work stays wanted, so that nobody asks again. */
        wakeups->wanted = !works;
        if (!works && !wakeups->stop)
            pthread_cond_wait(&wakeups->changed, &wakeups->mutex);
    }
    pthread_mutex_unlock(&wakeups->mutex);
    return NULL;
}

errint_t wakeups_open(struct wakeups **out)
{
    *out = NULL;
    if (!idle_cpus_halt() || access("/dev/cpu_dma_latency", W_OK))
        return 0;
    struct wakeups *wakeups = calloc(1, sizeof *wakeups);
    if (!wakeups)
        return -ENOMEM;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&wakeups->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&wakeups->mutex, NULL);
    int error = pthread_create(&wakeups->thread, NULL, run, wakeups);
    if (error) {
        pthread_cond_destroy(&wakeups->changed);
        pthread_mutex_destroy(&wakeups->mutex);
        free(wakeups);
        return -error;
    }
    pthread_setname_np(wakeups->thread, "wakeups");
    *out = wakeups;
    return 0;
}

void wakeups_close(struct wakeups *wakeups)
{
    if (!wakeups)
        return;
    pthread_mutex_lock(&wakeups->mutex);
    wakeups->stop = true;
    pthread_cond_broadcast(&wakeups->changed);
    pthread_mutex_unlock(&wakeups->mutex);
    pthread_join(wakeups->thread, NULL);
    pthread_cond_destroy(&wakeups->changed);
    pthread_mutex_destroy(&wakeups->mutex);
    free(wakeups);
}

static void want(struct wakeups *wakeups)
{
    pthread_mutex_lock(&wakeups->mutex);
    if (!wakeups->wanted) {
        wakeups->wanted = true;
        pthread_cond_broadcast(&wakeups->changed);
    }
    pthread_mutex_unlock(&wakeups->mutex);
}

void wakeups_note(struct wakeups *wakeups)
{
    static _Thread_local struct {
        unsigned count;
        uint64_t since_ns;
    } burst;
    if (!wakeups)
        return;
    if (atomic_load_explicit(&wakeups->held, memory_order_relaxed)) {
        atomic_fetch_add_explicit(&wakeups->requests, 1, memory_order_relaxed);
        return;
    }
    if (++burst.count < BURST)
        return;
    uint64_t now_ns = mob_monotonic_ns();
    if (now_ns - burst.since_ns < BURST_MS * UINT64_C(1000000))
        want(wakeups);
    burst.count = 0;
    burst.since_ns = now_ns;
}
