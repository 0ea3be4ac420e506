/* FUSE over io_uring, shared by transport_ring.c (threads and commands), transport_entry.c
 * (requests and replies) and transport_kick.c (requests that wait for an entry). */
#ifndef MOBULA_FS_TRANSPORT_RING_H
#define MOBULA_FS_TRANSPORT_RING_H

#include <liburing.h>

#include "fs/transport_internal.h"

enum {
    RING_SUBMISSIONS = 256,
    RING_COMPLETIONS = 4096, /* more is kept by the kernel until there's room */
    RING_SCRATCH_BYTES = 8192,
    RING_SMALL_PAYLOAD_BYTES = 4096,
    RING_MANY_PARKED = 64, /* from here on, parked requests give memory back */
    RING_SPARES = 16,      /* at most, a queue, while requests wait in the kernel */
    RING_RETRIEVES = 64,   /* at most under way to a queue */
};

/* The server's part of a ring entry; the shared part is the slot of the same number. */
struct ring_entry {
    struct ring_queue *queue;
    struct ring_entry *next; /* in queue->handed_over, guarded by queue->lock */
    struct iovec iov[2];     /* header and payload, read by the kernel at REGISTER */
    unsigned slot;
    uint32_t command;           /* the last sent */
    unsigned retries;           /* of that command */
    uint64_t kick_round;        /* was answered as a spare in this round of its queue */
    _Atomic uint64_t commit_id; /* of the request in hand */
    _Atomic uint64_t
        parked_id;            /* of a request that libfuse has and that was not answered at once */
    _Atomic uint64_t told_id; /* of a request whose interrupt libfuse has been told */
};

struct ring_commit {
    unsigned slot;
    uint64_t id;
};

struct ring_queue {
    struct ring *ring;
    unsigned index;
    unsigned depth;
    bool online; /* the core, when we started */
    pthread_t thread;
    bool started;
    bool open; /* uring and sentinel */
    struct io_uring uring;
    struct io_uring sentinel; /* see arm_sentinel() */
    int wake_fd;              /* eventfd, read by the ring: something was handed over, or stop */
    uint64_t wake_count;

    pthread_mutex_t lock;
    struct ring_entry *handed_over; /* answered by other threads, to be committed */
    bool closed;                    /* nothing more will be committed here */

    /* The rest belongs to the queue's thread; counters are read by others. */
    struct ring_commit commits[RING_SUBMISSIONS]; /* prepared since the last submit */
    unsigned commit_count;
    _Atomic unsigned entries;   /* registered */
    _Atomic unsigned available; /* of these, with the kernel */
    unsigned unsettled;         /* of these, given since all that was dispatched was last seen */
    bool ended;

    bool starved;                 /* requests may wait in the kernel: see transport_kick.c */
    unsigned retrieving;          /* requests of our own on their way */
    _Atomic unsigned spares_held; /* such requests, to be answered when it helps */
    struct ring_entry *spares[RING_SPARES];
    uint64_t kick_round;     /* see ring_after_kick() */
    uint64_t last_file;      /* noted last by this queue */
    _Atomic bool wants_file; /* found none of use: to be woken when one is noted */
    _Alignas(16) char scratch[RING_SCRATCH_BYTES];
};

struct ring {
    struct transport *transport;
    struct ring_queue *queues;
    unsigned queue_count;
    struct ring_entry *entries; /* SESSION_MAX_SLOTS */
    pthread_mutex_t slot_lock;  /* slots are given out one at a time */
    bool slots_exhausted_logged;
    _Atomic unsigned wanting; /* queues with wants_file */

    pthread_mutex_t start_lock;
    pthread_cond_t start_changed;
    pid_t kicker;        /* see ring_kick_from_outside(); 0: none */
    unsigned registered; /* queues */
    errint_t start_error;
};

extern _Thread_local struct ring_queue *ring_own_queue; /* the one this thread serves */

static inline struct session_slot *ring_slot(const struct ring_entry *entry)
{
    return &entry->queue->ring->transport->session->slots[entry->slot];
}

static inline struct abi_ring_header *ring_header(const struct ring_entry *entry)
{
    return &entry->queue->ring->transport->session->headers[entry->slot].abi;
}

/* The kernel stores it while other threads of ours may look. */
static inline uint64_t ring_load_commit_id(const struct abi_ring_header *header)
{
    return __atomic_load_n(&header->commit_id, __ATOMIC_ACQUIRE);
}

/* --- transport_ring.c --- */

/* Makes the queue's thread look around. Any thread. */
void ring_wake(struct ring_queue *queue);
void ring_command(struct ring_entry *entry, uint32_t command);
/* Submits what is prepared, if anything, and doesn't wait. On the queue's thread. */
void ring_submit(struct ring_queue *queue);

/* --- transport_kick.c --- */

/* Notes a regular file that the kernel knows. On the queue's thread. */
void ring_note_file(struct ring_queue *queue, uint64_t nodeid);
/* The entry got a NOTIFY_REPLY, which nobody waits for. */
void ring_keep_spare(struct ring_entry *entry);
/* Gets the kernel to look at its waiting requests if there may be some. True if there's more to do
 * before the thread may sleep. To be followed by submission and draining, then ring_after_kick().
 */
bool ring_kick(struct ring_queue *queue);
void ring_after_kick(struct ring_queue *queue);
/* The entry's command has completed: does that say that requests may wait in the kernel? */
void ring_note_completion(struct ring_entry *entry);

/* --- transport_entry.c --- */

/* Replies with an error, or 0, and nothing else. On its queue's thread. */
void ring_reply_empty(struct ring_entry *entry, int error);

/* Handles the request in the entry. On its queue's thread. */
void ring_take_request(struct ring_entry *entry, bool resent);
/* Puts the reply that the slot describes in place and prepares its COMMIT. On its queue's thread.
 */
void ring_commit_reply(struct ring_entry *entry);
/* Commits what other threads have answered. On the queue's thread. */
void ring_commit_handed_over(struct ring_queue *queue);

#endif
