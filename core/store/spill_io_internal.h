/* What the files of the copying engine share: spill_io.c says what is done next with a block,
 * spill_io_ring.c and spill_io_plain.c carry out its requests. */
#ifndef MOBULA_CORE_STORE_SPILL_IO_INTERNAL_H
#define MOBULA_CORE_STORE_SPILL_IO_INTERNAL_H

#include <liburing.h>

#include "core/base/util.h"
#include "core/store/cipher.h"
#include "core/store/spill_io.h"

struct spill_active;

/* A buffer, and what is being done with it: it is read, then summed (and encrypted before, or
 * decrypted after), then written. A stage may take several requests, if they come short. */
struct spill_block {
    struct spill_block *next_free;
    uint8_t *data; /* room for a head, and behind it the content */
    struct spill_active *active;
    uint64_t number; /* in its file */
    size_t content;  /* bytes of it */

    /* The stage: which bytes of the buffer, and where they are in the file. */
    bool writes;
    size_t place, bytes;
    uint64_t offset;
    size_t done;      /* of the bytes */
    unsigned retries; /* without progress */

    /* The request: bytes `start` to `end` of the stage. */
    int fd;
    size_t start, end;
};

static inline uint8_t *spill_block_data(const struct spill_block *block)
{
    return block->data + block->place + block->start;
}

static inline off_t spill_block_offset(const struct spill_block *block)
{
    return (off_t)(block->offset + block->start);
}

/* --- spill_io_plain.c --- */

/* Carries a request out at once. Like a completion: the bytes, or a negative errno. */
int spill_plain_request(const struct spill_block *block);

/* --- spill_io_ring.c --- */

struct spill_ring {
    struct io_uring uring;
    bool registered; /* the buffers */
};

/* A ring for `depth` requests in buffers within `region`, which it must not outlive. *registered:
 * 0, or why the buffers could not be registered: it works, at a little more cost. The errno of
 * io_uring_setup(), or of io_uring_enter() where that is what is forbidden. */
MOB_MUST_CHECK errint_t spill_ring_open(struct spill_ring *ring, unsigned depth,
                                        const struct iovec *region, errint_t *registered);
void spill_ring_close(struct spill_ring *ring);
/* Hands a request to the kernel. If it fails, the request is not with the kernel, and nothing may
 * be submitted to this ring again; what was before can still be waited for. */
MOB_MUST_CHECK errint_t spill_ring_submit(struct spill_ring *ring, struct spill_block *block);
/* Waits for one of the requests that were submitted: there must be one. *result: the bytes, or a
 * negative errno. */
struct spill_block *spill_ring_wait(struct spill_ring *ring, int *result);

#endif
