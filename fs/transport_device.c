/* Transport over /dev/fuse: threads that block in read(2), one a core and pinned, so that a request
 * is as often as possible served where it was made. They share one descriptor: clones
 * (FUSE_DEV_IOC_CLONE) were measured and are no faster on two cores, and a clone that closes with
 * its server would end the requests in it with ECONNABORTED instead of leaving them for a
 * successor.
 *
 * Beside a ring, one such thread reads what the ring doesn't carry. */
#include "fs/transport_internal.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/base/log.h"
#include "core/base/util.h"

size_t device_buffer_bytes(const struct transport *transport)
{
    return transport->max_write_bytes + SESSION_PAGE_BYTES;
}

ssize_t device_read(struct transport *transport, char *buffer, size_t buffer_bytes)
{
    while (!atomic_load_explicit(&transport->stopping, memory_order_acquire)) {
        ssize_t got = read(transport->fd, buffer, buffer_bytes);
        if (got >= 0) {
            if ((size_t)got >= sizeof(struct fuse_in_header))
                return got;
            return got == 0 ? 0 : -EPROTO;
        }
        /* ENOENT: the request was interrupted while it was being read. */
        if (errno == EINTR || errno == ENOENT || errno == EAGAIN)
            continue;
        return errno == ENODEV || errno == ECONNABORTED ? 0 : -errno;
    }
    return -EINTR;
}

void device_resend(struct transport *transport)
{
    struct fuse_out_header out = {.len = sizeof(out), .error = ABI_NOTIFY_RESEND};
    struct iovec iov = {&out, sizeof(out)};
    errint_t failed = transport_write_device(transport, &iov, 1);
    if (failed)
        mob_log_warning("the kernel does not send unanswered requests again: %s",
                        strerror(-failed));
}

void device_next_epoch(struct transport *transport)
{
    struct fuse_out_header out = {.len = sizeof(out), .error = ABI_NOTIFY_INC_EPOCH};
    struct iovec iov = {&out, sizeof(out)};
    errint_t failed = transport_write_device(transport, &iov, 1);
    if (failed)
        mob_log_debug("the kernel may show link counts from before: %s", strerror(-failed));
}

/* True if it needs no libfuse: an INTERRUPT of a request that the ring has. */
static bool handle_interrupt(struct transport *transport, const char *buffer, size_t bytes)
{
    const struct fuse_in_header *in = (const void *)buffer;
    if (in->opcode != FUSE_INTERRUPT || transport->kind != TRANSPORT_RING ||
        bytes < sizeof(*in) + sizeof(struct fuse_interrupt_in))
        return false;
    const struct fuse_interrupt_in *interrupt = (const void *)(buffer + sizeof(*in));
    return ring_interrupt(transport, interrupt->unique);
}

static void serve_device(struct transport *transport, char *buffer)
{
    const struct fuse_in_header *in = (const void *)buffer;
    for (;;) {
        ssize_t got = device_read(transport, buffer, device_buffer_bytes(transport));
        if (got == -EINTR)
            return;
        if (got <= 0) {
            if (got < 0)
                mob_log_error("reading /dev/fuse: %s", strerror((int)-got));
            transport_end(transport);
            return;
        }
        atomic_fetch_add_explicit(&transport->device_requests, 1, memory_order_relaxed);
        if (in->unique & ABI_UNIQUE_RESEND)
            atomic_fetch_add_explicit(&transport->taken_over, 1, memory_order_relaxed);
        if (!handle_interrupt(transport, buffer, (size_t)got))
            transport_handle(transport, buffer, (size_t)got, in->unique, false, NULL);
    }
}

struct device_thread_start {
    struct transport *transport;
    unsigned number;
    bool pin;
};

static void *device_thread(void *argument)
{
    struct device_thread_start start = *(struct device_thread_start *)argument;
    free(argument);
    struct transport *transport = start.transport;
    transport_name_thread("dev", start.number);
    if (start.pin)
        transport_pin_thread(start.number);
    char *buffer = aligned_alloc(SESSION_PAGE_BYTES, device_buffer_bytes(transport));
    if (buffer) {
        transport_touch(buffer, device_buffer_bytes(transport));
        serve_device(transport, buffer);
    } else {
        mob_log_error("no memory for a thread that reads /dev/fuse");
        transport_end(transport);
    }
    free(buffer);
    atomic_fetch_add(&transport->device_threads_ended, 1);
    return NULL;
}

static void on_wake_signal(int signal_number)
{
    (void)signal_number; /* its only purpose is to end read(2) with EINTR */
}

static errint_t start_thread(struct transport *transport, unsigned number, bool pin)
{
    struct device_thread_start *start = malloc(sizeof(*start));
    if (!start)
        return -ENOMEM;
    *start = (struct device_thread_start){transport, number, pin};
    int failed = pthread_create(&transport->device_threads[number], NULL, device_thread, start);
    if (failed)
        free(start);
    return -failed;
}

errint_t device_start(struct transport *transport, unsigned count, bool pin, struct mob_error *err)
{
    struct sigaction action = {.sa_handler = on_wake_signal}; /* no SA_RESTART */
    if (sigaction(SIGRTMIN + TRANSPORT_WAKE_SIGNAL_OFFSET, &action, NULL) < 0)
        return mob_error_set(err, -errno, "sigaction: %s", strerror(errno));
    unsigned total = transport->device_thread_count + count;
    pthread_t *threads = realloc(transport->device_threads, total * sizeof(*threads));
    if (!threads)
        return mob_error_set(err, -ENOMEM, "out of memory");
    transport->device_threads = threads;
    while (transport->device_thread_count < total) {
        errint_t failed = start_thread(transport, transport->device_thread_count, pin);
        if (failed)
            return mob_error_set(err, failed, "cannot start a thread: %s", strerror(-failed));
        transport->device_thread_count++;
    }
    return 0;
}

void device_stop(struct transport *transport)
{
    sigset_t wake;
    sigemptyset(&wake);
    sigaddset(&wake, SIGRTMIN + TRANSPORT_WAKE_SIGNAL_OFFSET);
    /* A signal that comes just before read(2) is lost, hence more than one. */
    while (atomic_load(&transport->device_threads_ended) < transport->device_thread_count) {
        for (unsigned i = 0; i < transport->device_thread_count; i++)
            pthread_kill(transport->device_threads[i], SIGRTMIN + TRANSPORT_WAKE_SIGNAL_OFFSET);
        struct timespec pause = {.tv_nsec = 1000000};
        nanosleep(&pause, NULL);
    }
    for (unsigned i = 0; i < transport->device_thread_count; i++)
        pthread_join(transport->device_threads[i], NULL);
    free(transport->device_threads);
    transport->device_threads = NULL;
    transport->device_thread_count = 0;
}
