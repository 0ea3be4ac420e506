/* Requests that wait in the kernel for a ring entry.
 *
 * The kernel (6.14 to 6.18) hands a waiting request out only when a reply is committed on its
 * queue; registering more entries does not make it look. That's enough for a server that answers
 * everything at once, but not for us: when all entries of a queue hold parked requests, or when its
 * entries went with a killed server, nothing may ever be committed again, and what waits would wait
 * for ever.
 *
 * So each queue keeps a spare: a request that nobody waits for, unanswered. Answering it is a
 * commit, at any time. Spares come from FUSE_NOTIFY_RETRIEVE: asked for no bytes of a regular file
 * it knows, the kernel sends a NOTIFY_REPLY to the queue of the core that we run on. Like any
 * request, the spare stays in its slot when the server is killed, and is the successor's.
 *
 * A spare's answer fetches one request. If that parks too, another spare is needed, and so on:
 * while requests may wait, the queue's thread doesn't sleep but gets spares, a handful at a time,
 * and answers them, until the kernel had nothing to give for one.
 *
 * A parked open is of a file that the kernel knows, so entries that ran out for parked opens can
 * always be helped. A successor may find neither spare nor file (nothing had been opened yet, or it
 * was removed since): then a process of its own asks the mount something on the core in question.
 * It must be a process: a thread that waits for its own server cannot die with it. */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/log.h"
#include "fs/transport_ring.h"

/* The `unique` of a NOTIFY_REPLY is ours to choose: not 0, and none that the kernel counts to. */
#define SPARE_UNIQUE (1ull << 61)

/* Wakes queues that want a spare and had no file to ask with. */
static void wake_spareless(struct ring *ring)
{
    if (atomic_load_explicit(&ring->wanting, memory_order_relaxed) == 0)
        return;
    for (unsigned i = 0; i < ring->queue_count; i++) {
        struct ring_queue *queue = &ring->queues[i];
        if (!atomic_exchange(&queue->wants_file, false))
            continue;
        atomic_fetch_sub_explicit(&ring->wanting, 1, memory_order_relaxed);
        ring_wake(queue);
    }
}

void ring_note_file(struct ring_queue *queue, uint64_t nodeid)
{
    struct session *session = queue->ring->transport->session;
    if (nodeid != queue->last_file) {
        queue->last_file = nodeid;
        uint64_t count = atomic_fetch_add_explicit(&session->files_noted, 1, memory_order_relaxed);
        atomic_store_explicit(&session->files[count % SESSION_FILES], nodeid, memory_order_relaxed);
    }
    /* Also when it is no news: the kernel learns of a file after we have answered a look-up, so
     * that the first try may have been too early. */
    wake_spareless(queue->ring);
}

void ring_keep_spare(struct ring_entry *entry)
{
    struct ring_queue *queue = entry->queue;
    if (queue->retrieving > 0)
        queue->retrieving--; /* a predecessor's wasn't counted */
    unsigned held = atomic_load_explicit(&queue->spares_held, memory_order_relaxed);
    if (held >= (queue->starved ? RING_SPARES : 1)) {
        ring_reply_empty(entry, 0);
        return;
    }
    queue->spares[held] = entry;
    atomic_store_explicit(&queue->spares_held, held + 1, memory_order_relaxed);
}

static errint_t retrieve(struct ring_queue *queue, uint64_t nodeid)
{
    struct session *session = queue->ring->transport->session;
    uint64_t number = atomic_fetch_add_explicit(&session->spares_made, 1, memory_order_relaxed);
    struct fuse_notify_retrieve_out body = {
        .notify_unique = SPARE_UNIQUE | number * ABI_UNIQUE_STEP,
        .nodeid = nodeid,
    };
    struct fuse_out_header out = {.len = sizeof(out) + sizeof(body), .error = FUSE_NOTIFY_RETRIEVE};
    struct iovec iov[2] = {{&out, sizeof(out)}, {&body, sizeof(body)}};
    return transport_write_device(queue->ring->transport, iov, 2);
}

/* True if one of the files noted is still known to the kernel, and a spare is on its way. */
static bool ask_with_files(struct ring_queue *queue, uint64_t noted)
{
    struct session *session = queue->ring->transport->session;
    uint64_t tries = noted < SESSION_FILES ? noted : SESSION_FILES;
    for (uint64_t i = 1; i <= tries; i++) {
        uint64_t nodeid = atomic_load_explicit(&session->files[(noted - i) % SESSION_FILES],
                                               memory_order_relaxed);
        errint_t failed = nodeid ? retrieve(queue, nodeid) : -ENOENT;
        if (!failed)
            return true;
        if (failed != -ENOENT && failed != -EINVAL) {
            mob_log_debug("queue %u: FUSE_NOTIFY_RETRIEVE: %s", queue->index, strerror(-failed));
            return false;
        }
    }
    return false;
}

static bool ask_for_spare(struct ring_queue *queue)
{
    struct ring *ring = queue->ring;
    if (!queue->online || sched_getcpu() != (int)queue->index)
        return false; /* where our core is offline, so are its requests */
    if (atomic_load_explicit(&queue->wants_file, memory_order_relaxed))
        return false; /* nothing new */
    uint64_t noted =
        atomic_load_explicit(&ring->transport->session->files_noted, memory_order_relaxed);
    if (ask_with_files(queue, noted)) {
        queue->retrieving++;
        return true;
    }
    atomic_store(&queue->wants_file, true);
    atomic_fetch_add_explicit(&ring->wanting, 1, memory_order_relaxed);
    return false;
}

/* Each has the kernel give its entry one of the requests that wait, if any. */
static void answer_spares(struct ring_queue *queue)
{
    unsigned held = atomic_load_explicit(&queue->spares_held, memory_order_relaxed);
    queue->starved = false; /* until we see that one waited */
    for (unsigned i = 0; i < held; i++) {
        queue->spares[i]->kick_round = queue->kick_round;
        ring_reply_empty(queue->spares[i], 0);
    }
    atomic_store_explicit(&queue->spares_held, 0, memory_order_relaxed);
}

bool ring_kick(struct ring_queue *queue)
{
    unsigned held = atomic_load_explicit(&queue->spares_held, memory_order_relaxed);
    if (!queue->starved) {
        if (held == 0 && queue->retrieving == 0)
            (void)ask_for_spare(queue);
        return false;
    }
    if (held > 0) {
        answer_spares(queue);
        return true;
    }
    /* A spare goes to a free entry at once, whatever else waits; but if there's none, it waits
     * behind all others. So new entries must have been submitted. */
    ring_submit(queue);
    unsigned room = atomic_load_explicit(&queue->available, memory_order_relaxed);
    unsigned asked = 0; /* no room: no slots are left, and the next reply's commit helps */
    while (asked < room && asked < RING_SPARES && queue->retrieving < RING_RETRIEVES &&
           ask_for_spare(queue))
        asked++;
    return asked > 0;
}

/* What was submitted before has been handled: from here on, a request in a kicked entry may be a
 * new one. */
void ring_after_kick(struct ring_queue *queue)
{
    queue->kick_round++;
}

void ring_note_completion(struct ring_entry *entry)
{
    struct ring_queue *queue = entry->queue;
    /* Requests wait from when the kernel had no entry left. Entries that it was given since we last
     * saw all that it had dispatched may have come too late, so they don't count. The slack is for
     * requests that are between taking an entry and telling us. */
    int available = (int)atomic_load_explicit(&queue->available, memory_order_relaxed);
    if (available - (int)queue->unsettled <= (int)queue->depth / 8)
        queue->starved = true;
    if (entry->kick_round == queue->kick_round)
        queue->starved = true; /* there was one waiting: there may be more */
}

/* --- from outside --- */

static bool has_spare(const struct session *session, unsigned queue)
{
    unsigned used = atomic_load(&session->slots_used);
    for (unsigned i = 0; i < used; i++) {
        const struct abi_ring_header *header = &session->headers[i].abi;
        uint64_t id = ring_load_commit_id(header);
        if (atomic_load(&session->slots[i].queue) == queue + 1 && (id & SPARE_UNIQUE) &&
            atomic_load(&session->slots[i].replied_id) != id)
            return true;
    }
    return false;
}

/* fork(2) without SIGCHLD, which belongs to the program that we are part of, and without handlers
 * of atfork: the child uses system calls only. */
static pid_t fork_quietly(void)
{
    return (pid_t)syscall(SYS_clone, 0, NULL, NULL, NULL, NULL);
}

/* _exit(2) without what a sanitizer does in it: the threads of our parent are none of the child's.
 */
static _Noreturn void end_quietly(void)
{
    for (;;)
        syscall(SYS_exit_group, 0);
}

/* A child a core, as each may have to wait. */
static void ask_on_cores(const cpu_set_t *cores, const char *path)
{
    struct statfs unused;
    for (unsigned core = 0; core < CPU_SETSIZE; core++) {
        if (!CPU_ISSET(core, cores) || fork_quietly() != 0)
            continue;
        cpu_set_t only;
        CPU_ZERO(&only);
        CPU_SET(core, &only);
        if (sched_setaffinity(0, sizeof(only), &only) == 0)
            (void)statfs(path, &unused);
        end_quietly();
    }
    while (waitpid(-1, NULL, __WALL) > 0)
        ;
    end_quietly();
}

void ring_kick_from_outside(struct transport *transport)
{
    struct ring *ring = transport->ring;
    const char *path = mount_path(transport->fd);
    cpu_set_t cores;
    bool needed = false;
    CPU_ZERO(&cores);
    for (unsigned i = 0; i < ring->queue_count && i < CPU_SETSIZE; i++)
        if (ring->queues[i].online && !has_spare(transport->session, i)) {
            CPU_SET(i, &cores);
            needed = true;
        }
    if (!needed || !path)
        return;
    pid_t pid = fork_quietly();
    if (pid == 0)
        ask_on_cores(&cores, path);
    if (pid < 0)
        mob_log_warning("cannot start a process to look after waiting requests: %s",
                        strerror(errno));
    ring->kicker = pid > 0 ? pid : 0;
}

bool ring_reap_kicker(struct transport *transport)
{
    struct ring *ring = transport->ring;
    if (!ring || !ring->kicker)
        return false;
    if (waitpid(ring->kicker, NULL, __WALL | WNOHANG) != 0)
        ring->kicker = 0;
    return ring->kicker != 0;
}
