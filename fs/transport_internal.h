/* What the files of the transport share. See transport.h for what it is for. */
#ifndef MOBULA_FS_TRANSPORT_INTERNAL_H
#define MOBULA_FS_TRANSPORT_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "fs/fuse_abi.h"
#include "fs/session_layout.h"
#include "fs/transport.h"
#include "fs/wakeups.h"

enum {
    TRANSPORT_DEFAULT_DEPTH = 256, /* a burst of opens that park must find entries */
    TRANSPORT_MAX_DEPTH = 1024,
    TRANSPORT_BACKGROUND = 64,
    TRANSPORT_WAKE_SIGNAL_OFFSET = 3, /* SIGRTMIN + this interrupts a thread's read(2) at stop */
};

struct ring;
struct ring_entry;
struct ring_queue;

struct transport {
    int fd;
    int fuse_fd; /* libfuse's duplicate of it */
    struct session *session;
    struct fuse_session *fuse;
    struct fuse_lowlevel_ops user_ops;
    void *context;
    enum transport_kind wanted;
    bool want_passthrough;
    bool want_wakeups;
    bool refuse; /* answers EIO to everything, calls no op */
    unsigned depth;
    uint32_t max_write_bytes;

    int stop_fd; /* eventfd: written by transport_stop() and by threads that saw the connection end
                  */
    _Atomic bool stopping;
    _Atomic bool gone; /* the connection ended */
    _Atomic bool served;
    bool successor; /* an earlier server answered INIT */

    /* INIT, on the thread of transport_serve(). */
    uint64_t init_unique;
    uint64_t kernel_flags;
    bool answer_init; /* false: a successor's replay, whose reply goes nowhere */
    errint_t init_error;
    char ring_refusal[160]; /* why the ring isn't used */

    enum transport_kind kind;
    bool passthrough;
    bool can_store;
    char description[240];

    struct ring *ring; /* NULL on /dev/fuse */
    pthread_t *device_threads;
    unsigned device_thread_count;
    _Atomic unsigned device_threads_ended;
    int possible_cores;
    struct wakeups *wakeups; /* NULL: none */

    _Atomic uint64_t ring_requests;
    _Atomic uint64_t device_requests;
    _Atomic uint64_t taken_over;
};

/* --- the request that this thread is handling --- */

struct current_request {
    struct transport *transport; /* NULL: none */
    struct ring_entry *entry;    /* NULL: it came over /dev/fuse */
    const void *bytes;
    size_t size;
    uint64_t unique; /* the kernel's, with the resend bit if it had it */
    bool resent;
};
extern _Thread_local struct current_request transport_current;

/* A ring request is shown to libfuse under a `unique` of our own, which leads back to its entry
 * without a search: this bit, the slot, and a number that tells its requests apart. The kernel's
 * own never have the bit (they count from 0 in steps of 2; bit 63 is for resends). */
#define RING_UNIQUE (1ull << 62)

/* --- transport.c --- */

/* Hands one request to libfuse (or refuses it). `unique` is the kernel's. */
void transport_handle(struct transport *transport, char *bytes, size_t size, uint64_t unique,
                      bool resent, struct ring_entry *entry);
/* The connection has ended, or cannot go on: transport_serve() will return. Any thread. */
void transport_end(struct transport *transport);
/* `bytes` come back from libfuse for a device request or as a notification. */
errint_t transport_write_device(struct transport *transport, const struct iovec *iov, int count);
void transport_pin_thread(unsigned core);
/* Names the calling thread, which serves, and gives it priority where that is allowed. */
void transport_name_thread(const char *what, unsigned number);
/* Maps memory that the kernel is to copy requests into. It copies on our threads, and while one is
 * being killed it takes no page faults: the request would end with EIO or EINTR instead of staying
 * for a successor. The content is lost. */
static inline void transport_touch(char *memory, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += SESSION_PAGE_BYTES)
        ((volatile char *)memory)[i] = 0;
}

/* --- transport_device.c --- */

/* Starts `count` more threads that read /dev/fuse, pinned to a core each when `pin`. */
errint_t device_start(struct transport *transport, unsigned count, bool pin, struct mob_error *err);
void device_stop(struct transport *transport);
/* Reads one request into `buffer`. Bytes, 0 when the connection has ended, -EINTR when the
 * transport is stopping, or another negative errno. */
ssize_t device_read(struct transport *transport, char *buffer, size_t buffer_bytes);
size_t device_buffer_bytes(const struct transport *transport);
/* Asks the kernel to send again what was read from /dev/fuse and not answered. */
void device_resend(struct transport *transport);
/* Has the kernel look up every name again at its next use: a predecessor may have died between a
 * change and telling the kernel of it. Kernels before 6.16 refuse, and may show the old attributes.
 */
void device_next_epoch(struct transport *transport);

/* --- transport_ring.c --- */

/* Makes transport->ring, without threads. */
errint_t ring_create(struct transport *transport);
/* Starts a queue and thread a possible core, takes over what a predecessor left, returns once every
 * queue is registered. */
errint_t ring_start(struct transport *transport, struct mob_error *err);
/* Ends and joins the threads. Replies that come later are left in session memory for a successor.
 */
void ring_stop(struct transport *transport);
void ring_destroy(struct transport *transport);
/* libfuse's reply to a request with the RING_UNIQUE bit. Any thread. */
errint_t ring_reply(struct transport *transport, const struct iovec *iov, int count);
/* An INTERRUPT of the request with the kernel's `target`. False: the ring has no such request. */
bool ring_interrupt(struct transport *transport, uint64_t target);
/* Successor only, once serving: makes requests from a process of its own for queues that have no
 * spare, see transport_kick.c. */
void ring_kick_from_outside(struct transport *transport);
/* True if that process is still there. Does not wait for it. */
bool ring_reap_kicker(struct transport *transport);
void ring_count(struct transport *transport, struct transport_counters *out);
unsigned ring_queue_count(const struct transport *transport);

/* --- transport_mount.c --- */

/* Where `fd` was mounted by this process or the one it was forked from; NULL: not known. */
const char *mount_path(int fd);

#endif
