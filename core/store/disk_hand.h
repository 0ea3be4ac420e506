/* The disk's hands: two threads that make files in the spill directories, and empty and remove
 * them, for those who serve users. A disk may stall for seconds, or for ever; who serves waits a
 * moment for it, and goes on without. */
#ifndef MOBULA_CORE_STORE_DISK_HAND_H
#define MOBULA_CORE_STORE_DISK_HAND_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/base/error.h"

struct store;
struct data_file;
struct disk_task;

struct disk_hand {
    struct store *store;
    uint64_t patience_ns; /* so long somebody waits for it */
    pthread_t thread;
    bool runs; /* set before and after other threads use the store */

    pthread_mutex_t lock; /* a leaf */
    pthread_cond_t wake, finished;
    struct disk_task *first, **last; /* to be done, in this order */
    struct disk_task *later;         /* what failed: tried again in a second */
    uint64_t given, done;            /* tasks, counted */
    uint64_t begun_ns;               /* the task under way; 0: none */
    uint64_t answered_ns;            /* the last one that went well ended then */
    bool stop;
};

/* Starts both. What they do is done by the caller itself before that and after disk_hands_close().
 * -EAGAIN, -ENOMEM. */
MOB_MUST_CHECK errint_t disk_hands_open(struct store *store);
/* Waits until everything is done: also for a disk that stalls. */
void disk_hands_close(struct store *store);

/* An empty file on disk, made or spare, opened as staged files have it. Waits for at most half a
 * second. -ETIMEDOUT: the disk has stalled; also -ENOSPC, -EROFS and what else it says. Any thread,
 * with no lock held. */
MOB_MUST_CHECK errint_t disk_take(struct store *store, struct data_file *out);
/* Gives one back that nothing uses: emptied, it is a spare file if `reusable`, else it is removed.
 * Takes `fd`. Doesn't wait. */
void disk_give_back(struct store *store, struct data_file *file, bool reusable);
/* Removes a file, which counted `bytes`, and closes its descriptor (may be -1). Where that fails it
 * is tried again, and once more at the end; until then the bytes count. Doesn't wait: disk_settle()
 * does. */
void disk_drop(struct store *store, const struct data_file *file, uint64_t bytes);
/* The same for one that may have been made durable: it goes once the journal is synced up to now. A
 * power cut before that brings back what has named it. Where the journal can't be synced, it stays;
 * but not for want of room. */
void disk_drop_durable(struct store *store, const struct data_file *file, uint64_t bytes);
/* Waits until what was dropped is gone, for at most a tenth of a second. No lock held. */
void disk_settle(struct store *store);

#endif
