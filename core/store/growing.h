/* Growing files: a file on a tmpfs that another process is writing, of unknown size, whose older
 * part is moved to a file on disk meanwhile, so that one file may become larger than memory.
 *
 * With FUSE passthrough a writer's write(2) goes from the kernel straight to the tmpfs file; we
 * neither see nor redirect it. So the older part is copied to the same offsets of a disk file, then
 * punched out of the tmpfs file, whose size stays. At the end growing_assemble() moves the rest,
 * and the disk file is the whole content. A later write into the moved part leaves data where there
 * must be none: the file is torn then, which is always noticed and never guessed.
 *
 * It moves whole, aligned units, a few at a time: a huge page of which only a part is punched is
 * zeroed in place, a whole one is removed. The first unit, the head, stays in memory until the file
 * is assembled: programs rewrite headers there.
 *
 * In exclusive mode (no passthrough) all writes come through growing_write() and the caller holds
 * a lock that excludes them from moves: nothing can be torn, and the head is like any other unit.
 *
 * What must not happen to the tmpfs file but by the functions here: mapping it (for
 * reading, too: that makes pages of holes, which the kernel may drop again), truncating it,
 * punching it. Writers open it O_WRONLY, so they can't map it.
 *
 * Threads: one thread at a time calls the functions that change something (move, resume, write,
 * truncate, punch, assemble) for a file, and only one file is moved at a time with a set of pipes:
 * the caller's lock sees to both. growing_read(), growing_read_now() and growing_is_torn() may be
 * called by any thread at any time. Everything here but growing_read_now() may block on the disk.
 */
#ifndef MOBULA_CORE_STORE_GROWING_H
#define MOBULA_CORE_STORE_GROWING_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/base/error.h"
#include "core/store/cipher.h"

enum {
    GROWING_UNIT_BYTES = 2 << 20,
    GROWING_BATCH_BYTES = 4 * GROWING_UNIT_BYTES, /* what is moved at a time, at most */
};

/* --- pipes and mover --- */

enum { GROWING_PIPES = 8 }; /* of 1 MiB, for a batch */

/* What outlives the server: its parent makes them once, every server inherits them. A pipe pins the
 * pages of the units that are being moved, and so keeps what was written until the last moment. */
struct growing_pipes {
    int frozen[GROWING_PIPES][2]; /* the pages of the batch */
    int copy[2];                  /* the same, one after the other, to be read */
};

/* Makes the pipes, close-on-exec and non-blocking. -EOPNOTSUPP and a sentence where units can't be
 * frozen: pipes can't be made large enough, or huge pages are larger than a unit. -EMFILE, -ENFILE.
 */
MOB_MUST_CHECK errint_t growing_pipes_open(struct growing_pipes *pipes, struct mob_error *err);
void growing_pipes_close(struct growing_pipes *pipes);

struct growing;
struct hold;

/* What moving takes: one for each thread that moves. */
struct growing_mover {
    struct growing_pipes *pipes; /* NULL: for files in exclusive mode only */
    unsigned char *buffer;       /* two batches, one of them encrypted, aligned for direct I/O */
    int null_fd;                 /* where pipes are emptied into, without a copy */
    struct hold *hold;           /* the caller's, may be NULL: see growing_move() */
    struct growing *busy;        /* whose pages are in the pipes after a move that failed halfway */
    atomic_bool cancelled; /* set by any thread: growing_move() ends after the batch it is at */
};

/* The pipes stay the caller's and must outlive the mover. -ENOMEM, -EMFILE. */
MOB_MUST_CHECK errint_t growing_mover_open(struct growing_mover *mover,
                                           struct growing_pipes *pipes);
/* Leaves the pipes and what is in them. */
void growing_mover_close(struct growing_mover *mover);

/* --- files --- */

/* The file on disk: the caller's, and of no use to anybody else. With a key it has the layout of
 * cipher.h, as the file of that number, and nothing in it is in plaintext. */
struct growing_disk {
    int fd;                       /* readable and writable, without O_APPEND and O_DIRECT */
    const struct cipher_key *key; /* NULL: a plain file; else in exclusive mode only */
    uint64_t file;
};

/* What a successor must get back. All zero for a new file. */
struct growing_state {
    uint64_t moved;  /* [head, moved) is on disk; a multiple of the unit, may be past the size */
    uint64_t intent; /* end of what is in motion, 0 = none: if that is in the moved part, its last
                      * unit, back to memory; else what is behind it, or the head, to disk */
    bool head_moved; /* the moved part begins at 0, not after the head */
    bool torn;       /* found torn in a way that the tmpfs file doesn't show for ever */
    uint64_t filled; /* encrypted: the disk file has the content up to here; it is in the last unit
                      * of the moved part, what is behind it there is zeros. Plain files: 0 */
    uint64_t redo;   /* encrypted: 1 + the block of which a copy is valid; 0 = none */
};

/* Stores a new state so that a successor gets this one or a later one, whole; of a crash of the
 * machine it need not survive, since a tmpfs doesn't either. Called by the thread that moves, with
 * no lock of this module held. An error stops the move, and leaves the old state stored. */
typedef errint_t growing_note(void *argument, const struct growing_state *state);

struct growing {
    int memory_fd; /* the caller's */
    struct growing_disk disk;
    bool exclusive;
    growing_note *note;
    void *argument;

    pthread_rwlock_t lock;      /* of what is below: held for writing while bytes change place */
    struct growing_state state; /* as stored, but for `unnoted` */
    bool unnoted;               /* the state went on and its note failed */
    bool punched;               /* what is in motion is nowhere but in the pipes */
};

/* memory_fd is readable: with passthrough nothing else, so that a read lease on the file is
 * possible; a writable one is opened for the moment (while a call here runs, except growing_read()
 * and growing_is_torn(), a lease may be refused). The files and the key stay the caller's and open
 * until growing_destroy(). `state`: what was stored, or NULL for a new file (then the disk file is
 * empty); after a restart growing_resume() comes first. -ENOMEM, -EAGAIN; -EINVAL: a key without
 * exclusive mode, or the state is not that of an encrypted file, or of a plain one without a key.
 */
MOB_MUST_CHECK errint_t growing_init(struct growing *growing, int memory_fd,
                                     const struct growing_disk *disk, bool exclusive,
                                     const struct growing_state *state, growing_note *note,
                                     void *argument);
void growing_destroy(struct growing *growing);

/* Finishes what was begun before a restart, or what failed halfway before: call it for every file
 * before the first move of any (a move empties the pipes). What was punched is brought to disk from
 * the pipes, the rest is forgotten. Nothing to do: 0. -EIO and a sentence if the pipes no longer
 * hold what was punched (they were made anew): the file is torn then. Errors of the disk and of
 * note() as they are; it can be called again. */
MOB_MUST_CHECK errint_t growing_resume(struct growing *growing, struct growing_mover *mover,
                                       struct mob_error *err);

/* Moves whole units that end at or before `until`, one after the other, as long as there is data
 * behind them (the part that the writer is at stays, also in a file that was made long first). 0:
 * moved what could be; growing_moved() says how far. -ECANCELED, -ENOSPC (disk full; or, where a
 * unit has holes, memory), -EIO and others: they are where they were, unless the error came after
 * the punch: then growing_resume() must succeed before anything else can be changed (reads of what
 * is in motion fail with -EIO until then, others go on). -EBUSY: that is pending, here or at
 * another file of this mover. With `mover->hold` the writers of the file are held while units are
 * copied, so that one who is faster than the disk doesn't fill the memory: they go on while these
 * are punched. (Where a hold can't be had, it goes without.) note() is then called with the file
 * held, and must not wait for anybody who looks at it. It may be set and unset in note(). Nobody
 * else may hold the file: a punch waits for the end of a hold. */
MOB_MUST_CHECK errint_t growing_move(struct growing *growing, struct growing_mover *mover,
                                     uint64_t until, struct mob_error *err);

/* Moves everything that is left, the head last, and sets the disk file's size: it is the content
 * (an encrypted one: as cipher_pread() reads it), and the tmpfs file is one hole of that size. It
 * is not synced. If writers went on meanwhile or afterwards, it can be called again. Errors as
 * growing_move(), and -EIO with a sentence if the file is torn. Who must know that it stays so
 * makes sure that no writer is left, before. */
MOB_MUST_CHECK errint_t growing_assemble(struct growing *growing, struct growing_mover *mover,
                                         struct mob_error *err);

/* End of the moved part: 0 if nothing was moved. */
uint64_t growing_moved(struct growing *growing);

/* Whether the moved part was written to, up to now. Never in exclusive mode. A negative errno if
 * that can't be found out. */
MOB_MUST_CHECK errint_t growing_is_torn(struct growing *growing, bool *torn);

/* As pread(2): the moved part from disk, the rest from memory. Less than `bytes` only at the end of
 * the tmpfs file. -EIO if it takes the moved part of a torn file, or what is on disk is not what
 * was encrypted; then `buffer` has zeros. */
ssize_t growing_read(struct growing *growing, void *buffer, size_t bytes, uint64_t offset);

/* The same without waiting for the disk, nor for one who changes the file: -EAGAIN, also if a part
 * of it is on disk. */
ssize_t growing_read_now(struct growing *growing, void *buffer, size_t bytes, uint64_t offset);

/* As pwrite(2), exclusive mode only (-EPERM): the moved part goes to disk, the rest to memory. All
 * or an error: -ENOSPC, -EIO, -EFBIG; some of it may have been written then, the size is as it was
 * or larger. Encrypted files: of each block all or nothing, also when the server dies; each block
 * of the moved part of which only a part is written is read first; -ENOMEM, -EBUSY. */
MOB_MUST_CHECK errint_t growing_write(struct growing *growing, const void *buffer, size_t bytes,
                                      uint64_t offset);
/* Whether growing_write() from `offset` on takes memory alone, and doesn't wait for the disk.
 * Doesn't block. */
bool growing_is_in_memory(const struct growing *growing, uint64_t offset);

/* As ftruncate(2) and as fallocate(2) with FALLOC_FL_PUNCH_HOLE. The caller sees to it that no
 * write happens meanwhile, nor until growing_resume() and the same request again if the server dies
 * in it: the kernel does both for a request that came through the mount. Truncating into the moved
 * part brings back the unit that is cut, at most; to 0, nothing, and a torn file is whole again.
 * -EIO: torn before `size` (punch: anywhere), or the disk. -ENOSPC: no memory for the unit that is
 * cut; nothing was changed. -EBUSY as growing_move(). Room (fallocate) is not for the moved part:
 * the caller allocates at and after growing_moved() only. Of an encrypted file the moved part stays
 * without holes: to punch it is to write zeros. */
MOB_MUST_CHECK errint_t growing_truncate(struct growing *growing, uint64_t size);
MOB_MUST_CHECK errint_t growing_punch(struct growing *growing, uint64_t offset, uint64_t bytes);

#endif
