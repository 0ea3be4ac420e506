/* Requests of the copying engine, carried out by io_uring.
 *
 * A request is submitted by itself: a system call is nothing beside a block, and what the kernel
 * refuses is then known to be this one. Files are not registered: for one of 1,000 blocks that
 * gains nothing that can be measured, and for one of a single block it is two calls more. */
#include <string.h>
#include <time.h>

#include "core/store/spill_io_internal.h"

enum { SUBMIT_TRIES = 100 };

static void pause_briefly(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

/* Submits the one request that was prepared. The kernel may be short of memory for a moment. */
static errint_t submit(struct spill_ring *ring)
{
    for (unsigned tries = 0;;) {
        int submitted = io_uring_submit(&ring->uring);
        if (submitted > 0)
            return 0;
        if (submitted == -EINTR)
            continue;
        if (submitted != 0 && submitted != -EAGAIN && submitted != -EBUSY)
            return submitted;
        if (++tries == SUBMIT_TRIES)
            return submitted ? submitted : -EAGAIN;
        pause_briefly();
    }
}

static struct io_uring_cqe *wait_for_one(struct spill_ring *ring)
{
    struct io_uring_cqe *cqe = NULL;
    int error;
    /* Whatever waiting says, the buffers are the kernel's until it has answered. */
    while ((error = io_uring_wait_cqe(&ring->uring, &cqe)) != 0)
        if (error != -EINTR)
            pause_briefly();
    return cqe;
}

/* Setting up a ring may be allowed where using one isn't. */
static errint_t try_it(struct spill_ring *ring)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring->uring);
    io_uring_prep_nop(sqe);
    io_uring_sqe_set_data(sqe, NULL);
    errint_t error = submit(ring);
    if (!error)
        io_uring_cqe_seen(&ring->uring, wait_for_one(ring));
    return error;
}

errint_t spill_ring_open(struct spill_ring *ring, unsigned depth, const struct iovec *region,
                         errint_t *registered)
{
    memset(ring, 0, sizeof *ring);
    errint_t error = io_uring_queue_init(depth, &ring->uring, 0);
    if (error)
        return error;
    error = try_it(ring);
    if (error) {
        io_uring_queue_exit(&ring->uring);
        return error;
    }
    *registered = io_uring_register_buffers(&ring->uring, region, 1);
    ring->registered = *registered == 0;
    return 0;
}

void spill_ring_close(struct spill_ring *ring)
{
    io_uring_queue_exit(&ring->uring);
}

static void prepare(struct spill_ring *ring, struct io_uring_sqe *sqe, struct spill_block *block)
{
    uint8_t *data = spill_block_data(block);
    unsigned bytes = (unsigned)(block->end - block->start);
    uint64_t offset = (uint64_t)spill_block_offset(block);
    if (ring->registered && block->writes)
        io_uring_prep_write_fixed(sqe, block->fd, data, bytes, offset, 0);
    else if (ring->registered)
        io_uring_prep_read_fixed(sqe, block->fd, data, bytes, offset, 0);
    else if (block->writes)
        io_uring_prep_write(sqe, block->fd, data, bytes, offset);
    else
        io_uring_prep_read(sqe, block->fd, data, bytes, offset);
    /* It was told to try again: let a worker do it, who can wait. */
    if (block->retries)
        io_uring_sqe_set_flags(sqe, IOSQE_ASYNC);
    io_uring_sqe_set_data(sqe, block);
}

errint_t spill_ring_submit(struct spill_ring *ring, struct spill_block *block)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring->uring);
    if (!sqe)
        return -EBUSY;
    prepare(ring, sqe, block);
    return submit(ring);
}

struct spill_block *spill_ring_wait(struct spill_ring *ring, int *result)
{
    struct io_uring_cqe *cqe = wait_for_one(ring);
    struct spill_block *block = io_uring_cqe_get_data(cqe);
    *result = cqe->res;
    io_uring_cqe_seen(&ring->uring, cqe);
    return block;
}
