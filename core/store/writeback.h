/* What the page cache owes to the disk. Files that began on disk are written through the page
 * cache, and are read from it. If the kernel can't write a page back, it keeps the error for
 * whoever asks, and may forget the page: what is then read from the disk are other bytes, and
 * nothing has changed the file's ctime. So in a while somebody asks.
 *
 * See Documentation/filesystems/vfs.rst, "Handling errors during writeback". */
#ifndef MOBULA_CORE_STORE_WRITEBACK_H
#define MOBULA_CORE_STORE_WRITEBACK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/base/error.h"

struct store;
struct owed;

struct writeback {
    pthread_t thread;
    bool runs;
    uint64_t delay_ns;
    pthread_mutex_t lock; /* a leaf */
    pthread_cond_t wake;
    struct owed *first, **last; /* in the order in which they are due */
    bool stop;
};

/* Starts the thread. -EAGAIN, -ENOMEM. */
MOB_MUST_CHECK errint_t writeback_open(struct store *store);
/* Ends it, without asking about what is left. */
void writeback_close(struct store *store);

/* The object's file on disk was read from the page cache. In some seconds the kernel is asked, by a
 * thread that may wait for the disk, whether all of it was written back; what was not is logged,
 * counted as an error, and verified again from the disk. Doesn't block. */
void writeback_watch(struct store *store, uint64_t number);

/* Waits until the kernel has written the file's pages to the disk, without asking the disk to empty
 * its own cache. -EIO, -ENOSPC and what else became of them, once. */
MOB_MUST_CHECK errint_t writeback_wait(int fd);

#endif
