/* Transport over io_uring: a queue, a ring and a pinned thread for each possible core, so that a
 * request is served on the core that made it.
 *
 * The kernel's protocol is in its Documentation/filesystems/fuse/fuse-io-uring.rst. The shape (a
 * thread and ring a core, SQE128, a fixed file, the ring's flags and sizes, an eventfd in the ring
 * to wake its thread) follows libfuse's lib/fuse_uring.c (Copyright 2025 Bernd Schubert, LGPL-2.1);
 * the code is our own.
 */
#include "fs/transport_ring.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "core/base/log.h"
#include "core/base/util.h"

enum {
    FIXED_DEVICE = 0, /* index in the ring's file table */
    FIXED_WAKE = 1,
    MAX_RETRIES = 5000,
    PATIENT_AFTER_RETRIES = 16,
    STARVED_WAIT_NS = 50000000,
    LOCAL_WORK_BATCH = 8,
};

/* Entries have their slot's number. */
#define WAKE_USER_DATA UINT64_MAX
#define SENTINEL_USER_DATA (UINT64_MAX - 1)

_Thread_local struct ring_queue *ring_own_queue;

/* --- submission --- */

/* The kernel has processed everything submitted: no need to commit it again after a kill. */
static void note_taken(struct ring_queue *queue)
{
    struct session *session = queue->ring->transport->session;
    for (unsigned i = 0; i < queue->commit_count; i++)
        atomic_store_explicit(&session->slots[queue->commits[i].slot].taken_id,
                              queue->commits[i].id, memory_order_release);
    queue->commit_count = 0;
}

static void submit(struct ring_queue *queue, unsigned wait_for)
{
    int result = io_uring_submit_and_wait(&queue->uring, wait_for);
    if (result >= 0 && io_uring_sq_ready(&queue->uring) == 0)
        note_taken(queue);
    /* EINTR: a signal; EAGAIN, EBUSY: no memory or room for completions now. All are for the caller
     * to try again, after having looked at completions. */
    if (result < 0 && result != -EINTR && result != -EAGAIN && result != -EBUSY) {
        mob_log_error("queue %u: io_uring_enter: %s", queue->index, strerror(-result));
        queue->ended = true;
    }
}

void ring_submit(struct ring_queue *queue)
{
    if (io_uring_sq_ready(&queue->uring) > 0)
        submit(queue, 0);
}

static struct io_uring_sqe *next_sqe(struct ring_queue *queue)
{
    struct io_uring_sqe *sqe;
    while (!(sqe = io_uring_get_sqe(&queue->uring))) {
        submit(queue, 0);
        if (queue->ended)
            return NULL;
    }
    memset(sqe, 0, 2 * sizeof(*sqe)); /* SQE128; liburing 2.3 clears none of it */
    return sqe;
}

void ring_command(struct ring_entry *entry, uint32_t command)
{
    struct ring_queue *queue = entry->queue;
    struct io_uring_sqe *sqe = next_sqe(queue);
    if (!sqe)
        return;
    sqe->opcode = IORING_OP_URING_CMD;
    sqe->flags = IOSQE_FIXED_FILE;
    sqe->fd = FIXED_DEVICE;
    sqe->cmd_op = command;
    sqe->user_data = entry->slot;
    struct abi_ring_command *arguments = (void *)sqe->cmd;
    arguments->queue = (uint16_t)queue->index;
    if (command == ABI_RING_CMD_REGISTER) {
        sqe->addr = (uintptr_t)entry->iov;
        sqe->len = 2;
    } else {
        uint64_t id = atomic_load_explicit(&ring_slot(entry)->replied_id, memory_order_relaxed);
        arguments->commit_id = id;
        queue->commits[queue->commit_count++] = (struct ring_commit){entry->slot, id};
    }
    entry->command = command;
    queue->unsettled++;
    atomic_fetch_add_explicit(&queue->available, 1, memory_order_relaxed);
}

void ring_wake(struct ring_queue *queue)
{
    uint64_t one = 1;
    ssize_t written = write(queue->wake_fd, &one, sizeof(one));
    (void)written; /* it fails only when the counter is full, which wakes as well */
}

static void arm_wake(struct ring_queue *queue)
{
    struct io_uring_sqe *sqe = next_sqe(queue);
    if (!sqe)
        return;
    sqe->opcode = IORING_OP_READ;
    sqe->flags = IOSQE_FIXED_FILE;
    sqe->fd = FIXED_WAKE;
    sqe->addr = (uintptr_t)&queue->wake_count;
    sqe->len = sizeof(queue->wake_count);
    sqe->user_data = WAKE_USER_DATA;
}

/* Sees to it that a kill loses no request.
 *
 * When a thread dies, the kernel first cancels those of its io_uring requests that concern a ring
 * itself ("tracked", io_uring_files_cancel()), if it has any, and in passing everything else of
 * that ring, while the thread can still run what is queued for it: entries go out of use and
 * requests under way to them are still delivered. Without any, entries stay in use until the ring's
 * file is closed, long after the thread could receive, and each request that comes in between ends
 * with ECANCELED (or hangs for ever, in kernels that lack that repair).
 * So each thread polls a ring of its own that never has anything to say. */
static void arm_sentinel(struct ring_queue *queue)
{
    struct io_uring_sqe *sqe = next_sqe(queue);
    if (!sqe)
        return;
    sqe->opcode = IORING_OP_POLL_ADD;
    sqe->fd = queue->sentinel.ring_fd; /* not by the file table: those are not tracked */
    sqe->poll32_events = POLLPRI;      /* never */
    sqe->user_data = SENTINEL_USER_DATA;
}

/* --- slots and entries --- */

/* A slot that nothing uses, now the queue's; -1: none left. */
static int take_slot(struct ring_queue *queue)
{
    struct ring *ring = queue->ring;
    struct session *session = ring->transport->session;
    cleanup_lock pthread_mutex_t *held = mob_lock(&ring->slot_lock);
    unsigned used = atomic_load(&session->slots_used);
    if (used < SESSION_MAX_SLOTS) {
        atomic_store(&session->slots[used].queue, queue->index + 1);
        atomic_store(&session->slots_used, used + 1);
        return (int)used;
    }
    for (unsigned i = 0; i < used; i++)
        if (atomic_load(&session->slots[i].queue) == 0) {
            atomic_store(&session->slots[i].queue, queue->index + 1);
            return (int)i;
        }
    if (!ring->slots_exhausted_logged)
        mob_log_warning("%u requests wait at once: more will queue in the kernel", used);
    ring->slots_exhausted_logged = true;
    return -1;
}

static struct ring_entry *bind_entry(struct ring_queue *queue, unsigned slot)
{
    struct session *session = queue->ring->transport->session;
    struct ring_entry *entry = &queue->ring->entries[slot];
    entry->queue = queue;
    entry->slot = slot;
    entry->iov[0] = (struct iovec){&session->headers[slot].abi, sizeof(struct abi_ring_header)};
    entry->iov[1] = (struct iovec){session_slot_payload(session, slot), SESSION_PAYLOAD_BYTES};
    atomic_fetch_add_explicit(&queue->entries, 1, memory_order_relaxed);
    return entry;
}

/* All of a request of usual size; or all that can come, where writes come to us: they go to the
 * first entries, as the kernel prefers those used last. */
static void touch_entry(struct ring_entry *entry)
{
    struct ring_queue *queue = entry->queue;
    struct transport *transport = queue->ring->transport;
    bool first = atomic_load_explicit(&queue->entries, memory_order_relaxed) <= queue->depth;
    transport_touch(session_slot_payload(transport->session, entry->slot),
                    transport->passthrough || !first ? SESSION_PAGE_BYTES
                                                     : transport->max_write_bytes);
}

static void register_entry(struct ring_entry *entry)
{
    touch_entry(entry);
    __atomic_store_n(&ring_header(entry)->commit_id, 0, __ATOMIC_RELEASE);
    ring_command(entry, ABI_RING_CMD_REGISTER);
}

static void drop_entry(struct ring_entry *entry)
{
    atomic_fetch_sub_explicit(&entry->queue->entries, 1, memory_order_relaxed);
    atomic_store(&ring_slot(entry)->queue, 0);
}

/* Keeps `depth` entries with the kernel, however many requests are parked. */
static void top_up(struct ring_queue *queue)
{
    while (!queue->ended &&
           atomic_load_explicit(&queue->available, memory_order_relaxed) < queue->depth) {
        int slot = take_slot(queue);
        if (slot < 0)
            return;
        register_entry(bind_entry(queue, (unsigned)slot));
    }
}

/* What a predecessor left in one of this queue's slots. */
enum leftover { LEFT_FREE, LEFT_UNSENT_REPLY, LEFT_REQUEST };

static enum leftover inspect_slot(const struct session *session, unsigned number)
{
    const struct session_slot *slot = &session->slots[number];
    uint64_t id = ring_load_commit_id(&session->headers[number].abi);
    if (id == 0)
        return LEFT_FREE;
    if (atomic_load(&slot->replied_id) != id)
        return LEFT_REQUEST;
    return atomic_load(&slot->taken_id) == id ? LEFT_FREE : LEFT_UNSENT_REPLY;
}

/* Registers what is free and commits replies that may not have gone out. What was left unanswered
 * is counted, for handle_leftovers(). */
static unsigned take_over_slots(struct ring_queue *queue)
{
    struct session *session = queue->ring->transport->session;
    unsigned used = atomic_load(&session->slots_used);
    unsigned requests = 0;
    for (unsigned i = 0; i < used; i++) {
        if (atomic_load(&session->slots[i].queue) != queue->index + 1)
            continue;
        struct ring_entry *entry = bind_entry(queue, i);
        switch (inspect_slot(session, i)) {
        case LEFT_FREE:
            register_entry(entry);
            break;
        case LEFT_UNSENT_REPLY:
            atomic_store(&entry->commit_id, atomic_load(&session->slots[i].replied_id));
            ring_commit_reply(entry);
            break;
        case LEFT_REQUEST:
            requests++;
            break;
        }
    }
    return requests;
}

static void handle_leftovers(struct ring_queue *queue, unsigned used)
{
    struct ring *ring = queue->ring;
    struct session *session = ring->transport->session;
    for (unsigned i = 0; i < used && !queue->ended; i++) {
        struct ring_entry *entry = &ring->entries[i];
        if (atomic_load(&session->slots[i].queue) == queue->index + 1 && entry->command == 0 &&
            inspect_slot(session, i) == LEFT_REQUEST)
            ring_take_request(entry, true);
    }
}

/* --- completions --- */

static bool retry(struct ring_entry *entry)
{
    if (++entry->retries > MAX_RETRIES)
        return false;
    if (entry->retries > PATIENT_AFTER_RETRIES) {
        struct timespec pause = {.tv_nsec = 1000000};
        nanosleep(&pause, NULL);
    }
    /* Not taken after all: a kill from here on must commit it again. */
    if (entry->command == ABI_RING_CMD_COMMIT_AND_FETCH)
        atomic_store(&ring_slot(entry)->taken_id, 0);
    ring_command(entry, entry->command);
    return true;
}

static void on_error(struct ring_entry *entry, int error)
{
    struct ring_queue *queue = entry->queue;
    if (error == -ENOTCONN || error == -ECONNABORTED || error == -ENODEV || error == -ECANCELED) {
        queue->ended = true; /* unmounted */
        return;
    }
    if ((error == -EAGAIN || error == -EINTR) && retry(entry))
        return;
    if (error == -ENOENT && entry->command == ABI_RING_CMD_COMMIT_AND_FETCH) {
        register_entry(entry); /* the kernel had the reply already */
        return;
    }
    mob_log_error("queue %u: command %u: %s", queue->index, entry->command, strerror(-error));
    pthread_mutex_lock(&queue->ring->start_lock);
    if (!queue->ring->start_error)
        queue->ring->start_error = error;
    pthread_mutex_unlock(&queue->ring->start_lock);
    drop_entry(entry);
}

static void on_completion(struct ring_queue *queue, uint64_t user_data, int result)
{
    if (user_data == WAKE_USER_DATA) {
        ring_commit_handed_over(queue);
        arm_wake(queue);
        return;
    }
    if (user_data == SENTINEL_USER_DATA)
        return; /* we are stopping */
    struct ring_entry *entry = &queue->ring->entries[user_data];
    atomic_fetch_sub_explicit(&queue->available, 1, memory_order_relaxed);
    ring_note_completion(entry);
    if (result < 0) {
        on_error(entry, result);
        return;
    }
    entry->retries = 0;
    ring_take_request(entry, false);
}

/* Handles all requests that the kernel has given to entries by now. (They become completions when
 * this thread enters the kernel, which a flag in the ring asks for; but it does some 20 at a time
 * and raises no flag for the rest.) Copied out first, as handling may submit and so needs the room.
 */
static void drain_completions(struct ring_queue *queue)
{
    struct io_uring_cqe *cqe;
    unsigned handled = 0;
    while (!queue->ended) {
        if (io_uring_peek_cqe(&queue->uring, &cqe) != 0) {
            if (handled < LOCAL_WORK_BATCH)
                break;
            handled = 0;
            (void)io_uring_get_events(&queue->uring);
            continue;
        }
        uint64_t user_data = cqe->user_data;
        int result = cqe->res;
        io_uring_cqe_seen(&queue->uring, cqe);
        on_completion(queue, user_data, result);
        handled++;
    }
    queue->unsettled = io_uring_sq_ready(&queue->uring);
}

/* --- threads --- */

static errint_t open_ring(struct ring_queue *queue)
{
    struct io_uring_params parameters = {
        .flags = IORING_SETUP_SQE128 | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CQSIZE |
                 IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                 IORING_SETUP_TASKRUN_FLAG,
        .cq_entries = RING_COMPLETIONS,
    };
    int failed = io_uring_queue_init_params(RING_SUBMISSIONS, &queue->uring, &parameters);
    if (failed)
        return failed;
    int files[2] = {[FIXED_DEVICE] = queue->ring->transport->fd, [FIXED_WAKE] = queue->wake_fd};
    failed = io_uring_register_files(&queue->uring, files, 2);
    if (failed) {
        io_uring_queue_exit(&queue->uring);
        return failed;
    }
    failed = io_uring_queue_init(1, &queue->sentinel, 0);
    if (failed) {
        io_uring_queue_exit(&queue->uring);
        return failed;
    }
    (void)io_uring_register_ring_fd(&queue->uring); /* saves a look-up a call, if it works */
    return 0;
}

static void report_registered(struct ring_queue *queue, errint_t error)
{
    struct ring *ring = queue->ring;
    cleanup_lock pthread_mutex_t *held = mob_lock(&ring->start_lock);
    ring->registered++;
    if (error && !ring->start_error)
        ring->start_error = error;
    pthread_cond_broadcast(&ring->start_changed);
}

/* Submits, and waits for something to handle. */
static void submit_and_sleep(struct ring_queue *queue)
{
    if (!queue->starved || queue->retrieving == 0) {
        submit(queue, 1);
        return;
    }
    /* As many as may be are under way and none has come. It shouldn't be, so look again soon. */
    ring_submit(queue);
    struct io_uring_cqe *cqe;
    struct __kernel_timespec patience = {.tv_nsec = STARVED_WAIT_NS};
    if (!queue->ended && io_uring_wait_cqe_timeout(&queue->uring, &cqe, &patience) == -ETIME)
        queue->retrieving = 0;
}

static void serve_queue(struct ring_queue *queue)
{
    struct transport *transport = queue->ring->transport;
    unsigned used = atomic_load(&transport->session->slots_used);
    arm_wake(queue);
    arm_sentinel(queue);
    unsigned leftovers = take_over_slots(queue);
    top_up(queue);
    submit(queue, 0);
    report_registered(queue, 0);
    queue->starved = used > 0; /* a predecessor had entries: requests may have come since */
    if (leftovers)
        handle_leftovers(queue, used);
    while (!queue->ended && !atomic_load_explicit(&transport->stopping, memory_order_acquire)) {
        top_up(queue);
        if (ring_kick(queue))
            ring_submit(queue);
        else
            submit_and_sleep(queue);
        drain_completions(queue);
        ring_after_kick(queue);
    }
}

static void *queue_thread(void *argument)
{
    struct ring_queue *queue = argument;
    struct transport *transport = queue->ring->transport;
    transport_name_thread("ring", queue->index);
    transport_pin_thread(queue->index);
    ring_own_queue = queue;
    errint_t failed = open_ring(queue);
    if (failed) {
        report_registered(queue, failed);
        return NULL;
    }
    queue->open = true;
    serve_queue(queue);
    pthread_mutex_lock(&queue->lock);
    queue->closed = true;
    pthread_mutex_unlock(&queue->lock);
    /* The ring stays open until this thread is gone: ending it is what makes its entries go out of
     * use without losing a request (see arm_sentinel()). */
    if (!atomic_load(&transport->stopping))
        transport_end(transport);
    return NULL;
}

static bool core_is_online(unsigned core)
{
    char path[80];
    char state = '1'; /* core 0 often has no such file */
    snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%u/online", core);
    cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && read(fd, &state, 1) != 1)
        state = '1';
    return state != '0';
}

static errint_t start_queue(struct ring *ring, unsigned index, unsigned depth)
{
    struct ring_queue *queue = &ring->queues[index];
    queue->online = core_is_online(index);
    queue->depth = queue->online ? depth : 1;
    int failed = pthread_create(&queue->thread, NULL, queue_thread, queue);
    queue->started = !failed;
    return -failed;
}

errint_t ring_create(struct transport *transport)
{
    struct ring *ring = calloc(1, sizeof(*ring));
    if (!ring)
        return -ENOMEM;
    ring->transport = transport;
    ring->queue_count = (unsigned)transport->possible_cores;
    ring->queues = aligned_alloc(64, (ring->queue_count * sizeof(*ring->queues) + 63) & ~63ul);
    ring->entries = calloc(SESSION_MAX_SLOTS, sizeof(*ring->entries));
    if (!ring->queues || !ring->entries) {
        free(ring->queues);
        free(ring->entries);
        free(ring);
        return -ENOMEM;
    }
    memset(ring->queues, 0, ring->queue_count * sizeof(*ring->queues));
    pthread_mutex_init(&ring->slot_lock, NULL);
    pthread_mutex_init(&ring->start_lock, NULL);
    pthread_cond_init(&ring->start_changed, NULL);
    errint_t failed = 0;
    for (unsigned i = 0; i < ring->queue_count; i++) {
        ring->queues[i].ring = ring;
        ring->queues[i].index = i;
        ring->queues[i].kick_round = 1; /* entries have 0 */
        pthread_mutex_init(&ring->queues[i].lock, NULL);
        ring->queues[i].wake_fd = eventfd(0, EFD_CLOEXEC);
        if (ring->queues[i].wake_fd < 0)
            failed = -errno;
    }
    transport->ring = ring;
    return failed;
}

errint_t ring_start(struct transport *transport, struct mob_error *err)
{
    struct ring *ring = transport->ring;
    unsigned depth = transport->depth;
    while (depth > 1 && depth * ring->queue_count > SESSION_MAX_SLOTS / 4)
        depth /= 2;
    unsigned started = 0;
    errint_t failed = 0;
    for (; started < ring->queue_count && !failed; started++)
        failed = start_queue(ring, started, depth);
    if (failed)
        return mob_error_set(err, failed, "cannot start a queue of the ring: %s",
                             strerror(-failed));
    pthread_mutex_lock(&ring->start_lock);
    while (ring->registered < ring->queue_count)
        pthread_cond_wait(&ring->start_changed, &ring->start_lock);
    failed = ring->start_error;
    pthread_mutex_unlock(&ring->start_lock);
    if (failed)
        return mob_error_set(err, failed, "the kernel refuses the ring: %s", strerror(-failed));
    return 0;
}

void ring_stop(struct transport *transport)
{
    struct ring *ring = transport->ring;
    for (unsigned i = 0; ring && i < ring->queue_count; i++) {
        struct ring_queue *queue = &ring->queues[i];
        if (!queue->started)
            continue;
        ring_wake(queue);
        pthread_join(queue->thread, NULL);
        queue->started = false;
        if (queue->open) {
            io_uring_queue_exit(&queue->uring);
            io_uring_queue_exit(&queue->sentinel);
            queue->open = false;
        }
    }
}

void ring_destroy(struct transport *transport)
{
    struct ring *ring = transport->ring;
    if (!ring)
        return;
    for (unsigned i = 0; i < ring->queue_count; i++) {
        if (ring->queues[i].wake_fd >= 0)
            close(ring->queues[i].wake_fd);
        pthread_mutex_destroy(&ring->queues[i].lock);
    }
    pthread_mutex_destroy(&ring->slot_lock);
    pthread_mutex_destroy(&ring->start_lock);
    pthread_cond_destroy(&ring->start_changed);
    free(ring->queues);
    free(ring->entries);
    free(ring);
    transport->ring = NULL;
}

void ring_count(struct transport *transport, struct transport_counters *out)
{
    const struct ring *ring = transport->ring;
    for (unsigned i = 0; ring && i < ring->queue_count; i++) {
        unsigned entries = atomic_load(&ring->queues[i].entries);
        unsigned available = atomic_load(&ring->queues[i].available);
        out->ring_entries += entries;
        unsigned held = atomic_load(&ring->queues[i].spares_held);
        out->parked += entries > available + held ? entries - available - held : 0;
    }
}

unsigned ring_queue_count(const struct transport *transport)
{
    return transport->ring ? transport->ring->queue_count : 0;
}
