/* Holding the writers of a tmpfs file: for a moment every write(2) to it waits, also one that the
 * kernel makes on its own (FUSE passthrough). For back-pressure, while the disk catches up.
 *
 * A thread of ours writes a byte to the file from a page that userfaultfd watches: the kernel takes
 * the file's lock, faults on the page, and waits for us. At the end of the hold the page is taken
 * away, the write fails, and nothing was written; only the file's times of change are then those of
 * the hold. If our process is killed, the writers go on as well.
 *
 * The writers wait uninterruptibly, and so does all else that takes the file's lock: truncating,
 * punching, opening with O_TRUNC, chmod, utimens, lseek with SEEK_DATA or SEEK_HOLE. A thread that
 * has a file held must do none of these to it, nor wait for one that does (all of growing.h does,
 * but growing_moved()), and must end the hold within a second or so. Reading and mapping go on. */
#ifndef MOBULA_CORE_STORE_HOLD_H
#define MOBULA_CORE_STORE_HOLD_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/error.h"

/* hold_begin() looks for a place with data itself. */
#define HOLD_ANYWHERE UINT64_MAX

struct hold;
/* One held file. */
struct hold_token;

/* `limit`: how many files can be held at a time. Each takes a thread, a descriptor or two and a
 * page from its first use on; the thread sleeps while nothing is held. -EOPNOTSUPP or -EPERM and a
 * sentence where the kernel has no userfaultfd, or it or a seccomp profile refuses it. -ENOMEM,
 * -EMFILE. */
MOB_MUST_CHECK errint_t hold_open(struct hold **hold, size_t limit, struct mob_error *err);
/* Nothing may be held any more. Waits for a hold_begin() that timed out to come to its end. NULL is
 * nothing. */
void hold_close(struct hold *hold);

/* Returns when the file is held: what was being written is written, what comes waits. `fd` is any
 * descriptor of the file, which this opens for writing for the time of the hold (a read lease is
 * refused meanwhile). *token is to be given to hold_end(). `offset`: where
 * the file has data, or HOLD_ANYWHERE, which takes the lock once more. Nobody may punch or truncate
 * that data away meanwhile. Waits for at most `timeout_ns`, since a long write(2) that
 * has the lock must end first. Any thread.
 * -ENODATA: a file without data (nothing to hold back from), -EBUSY: `limit` are held, -ETIMEDOUT,
 * -EAGAIN (no thread), -ENOMEM, and what opening the file gives: nothing is held then. */
MOB_MUST_CHECK errint_t hold_begin(struct hold *hold, int fd, uint64_t offset, uint64_t timeout_ns,
                                   struct hold_token **token);
/* The writers go on. Any thread; doesn't block but for microseconds. */
void hold_end(struct hold_token *token);

#endif
