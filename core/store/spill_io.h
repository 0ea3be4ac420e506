/* The engine that copies files between memory (tmpfs) and disk, block by block, and checksums each
 * block on the way; and encrypts or decrypts it, if what is on disk is encrypted. Several blocks of
 * several files are in flight at once: the disk works while this side reads memory and sums. It
 * knows nothing of the store. */
#ifndef MOBULA_CORE_STORE_SPILL_IO_H
#define MOBULA_CORE_STORE_SPILL_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/error.h"

enum { SPILL_BLOCK_BYTES = 1 << 20 };

/* XXH3-128 of a block, in its canonical (big-endian) form. The last block of a file may be short:
 * its sum is of the bytes that there are. The sum of an encrypted block is of its head and its
 * ciphertext, as they are on disk. */
struct spill_sum {
    uint8_t bytes[16];
};

/* How many blocks, and so how many sums, a file with `bytes` of content has: none if it is empty.
 */
static inline uint64_t spill_block_count(uint64_t bytes)
{
    return bytes / SPILL_BLOCK_BYTES + (bytes % SPILL_BLOCK_BYTES != 0);
}

struct spill_io;

struct spill_io_options {
    unsigned depth; /* blocks in flight at most, a buffer each; 0 = 16, and never over 256 */
    bool plain;     /* never io_uring */
};

/* Makes an engine: `depth` times 1 MiB and 4 KiB of memory, in whole pages of 2 MiB if the kernel
 * has them, which stay locked with a ring; and as much as one block (as used) without. Where the
 * kernel or a seccomp profile forbids io_uring, or it later refuses a request, the engine goes on
 * with pread and pwrite by itself. `options` may be NULL. Only -ENOMEM fails, with a sentence in
 * `err`. The caller closes *out. Any thread. */
MOB_MUST_CHECK errint_t spill_io_open(const struct spill_io_options *options, struct spill_io **out,
                                      struct mob_error *err);

/* Frees it. NULL is allowed; spill_io_run() must not be running. */
void spill_io_close(struct spill_io *io);

/* "io_uring", "io_uring (buffers not registered: Cannot allocate memory)", "pread and pwrite", or
 * "pread and pwrite (io_uring: Operation not permitted)". Lives as long as `io`; it can change
 * during spill_io_run(), so ask in the same thread. */
const char *spill_io_describe(const struct spill_io *io);

/* What a copy does. The layout of an encrypted file is told in cipher.h. */
enum spill_form {
    SPILL_PLAIN,     /* `to` gets the bytes of `from` */
    SPILL_ENCRYPT,   /* `to` becomes an encrypted file; without `check` and `discard` */
    SPILL_DECRYPT,   /* `from` is one, and `to` gets its content, of which each block is verified */
    SPILL_ENCRYPTED, /* `from` is one, which is only summed or checked; only with `discard` */
};

struct cipher_key;

/* One file to copy. The descriptors stay the caller's, and open until spill_io_run() returns; their
 * positions are not used. Either may be O_DIRECT, on a filesystem that is content with multiples of
 * 4096 bytes.
 *
 * `to` is a new file, or one whose content may go. It gets its disk space first, so that a full
 * disk is noticed before anything is written; and in the end it has `bytes` bytes exactly, or
 * cipher_file_bytes(bytes) if it is encrypted. When the copy fails, what `to` holds, and how long
 * it is, is not defined: remove it, or use it again. Nothing is made durable: that is the caller's
 * fdatasync(). */
struct spill_copy {
    int from, to;           /* `to` is -1 with `discard` */
    uint64_t bytes;         /* of content that `from` has; what is behind them is not looked at */
    struct spill_sum *sums; /* spill_block_count(bytes): written; with `check`, compared */
    bool check;             /* a block that differs from its sum is not decrypted, nor written */
    bool discard;           /* only read, summed or checked, and perhaps decrypted */
    enum spill_form form;
    const struct cipher_key *key; /* SPILL_ENCRYPT, SPILL_DECRYPT: stays the caller's */
    uint64_t file; /* likewise: the data file's number, which is authenticated with each block */

    /* The outcome.
     * 0           all of it was copied
     * -EBADMSG    a block differs from its sum; or it is not what was encrypted with this key as
     *             this block of this file
     * -ENODATA    `from` is shorter than it must be
     * -EINVAL     `form` without what it needs, or with what it can't be combined with
     * -ENOMEM     OpenSSL has no memory
     * -EIO        read or write error, or a write that gets nowhere; or OpenSSL has no random bytes
     * -ENOSPC     `to` has no room (-EDQUOT, -EFBIG likewise)
     * -ECANCELED  spill_io_cancel()
     * or what else the kernel says of the descriptors: -EBADF, -EINVAL ... */
    errint_t error;
    /* The block in which it arose: of several, the lowest, and `error` is that one's. All blocks
     * before it were copied, or would have been. 0 where it arose in none. */
    uint64_t bad_block;
};

/* Carries out all copies, begun in this order, several in flight across them, and waits until each
 * has ended: `error` is set in each, one's failure does not touch the others, and nothing of them
 * is in flight any more. Blocks for as long as the disk takes; allocates nothing. One thread at a
 * time, not always the same. */
void spill_io_run(struct spill_io *io, struct spill_copy *copies, size_t count);

/* While on: copies that are not done end with -ECANCELED, and so do new ones. Blocks that are with
 * the disk are waited for. Returns at once. Any thread, at any time between open and close. */
void spill_io_cancel(struct spill_io *io, bool on);

#endif
