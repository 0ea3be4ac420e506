/* The copying engine: which block is worked on next, and what a request's outcome means for it.
 *
 * One thread does it all. Of a copy's two sides the one in memory is read or written by that thread
 * itself: it is a mere copy there, and a ring, which makes it within the call or by a worker, costs
 * the same CPU time and a quarter of the speed of a restore. The other side goes through the ring,
 * so that the disk has `depth` requests at any time. But what is read through the page cache the
 * thread reads itself, block after block, with as much asked for ahead of it: in the ring such
 * requests spoil the kernel's own reading ahead, and are at a quarter of the disk's speed. A block
 * is only ever in one place: free, with the kernel, or in the hands of the thread.
 *
 * Between reading and writing a block that thread sums it, and encrypts or decrypts it where it
 * is. */
#include "core/store/spill_io.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/store/spill_io_internal.h"

enum {
    DEPTH_DEFAULT = 16,
    DEPTH_LIMIT = 256,
    DIRECT_BYTES = 4096, /* what O_DIRECT wants lengths and offsets to be multiples of */
    HUGE_PAGE_BYTES = 2 << 20,
    RETRY_LIMIT = 64,
    AHEAD_BLOCKS = 4, /* are asked for at a time */
};

_Static_assert(SPILL_BLOCK_BYTES == (int)CIPHER_BLOCK_BYTES, "a block is encrypted as a whole");
_Static_assert(CIPHER_HEAD_BYTES % (int)DIRECT_BYTES == 0,
               "what is behind a head is aligned as well");

/* One side of a copy. */
struct side {
    bool ring, direct;
    bool cached;       /* read through the page cache */
    size_t head_bytes; /* before each block: 0 if it is not encrypted */
};

/* A copy that has begun. It is held by each of its blocks, and while blocks are begun from it. */
struct spill_active {
    struct spill_copy *copy;
    uint64_t blocks, next, done;
    uint64_t failed; /* the lowest block that did, or UINT64_MAX */
    unsigned holds;
    struct side from, to;
    uint64_t to_bytes; /* that `to` has in the end */
    bool truncate;     /* it is too long then */
};

struct spill_io {
    unsigned depth;
    void *mapping;
    size_t mapping_bytes;
    struct spill_block *blocks, *free;
    struct spill_active *actives; /* depth + 1: one may have no block yet */
    struct spill_ring ring;
    bool ring_open, ring_usable;
    unsigned in_flight; /* blocks with the ring */
    atomic_bool cancelled;

    /* What spill_io_run() was given and has not begun, and what it begins blocks from. */
    struct spill_copy *waiting, *waiting_end;
    struct spill_active *current;

    char description[160];
};

static size_t round_up(size_t bytes, bool direct)
{
    return direct ? (bytes + DIRECT_BYTES - 1) & ~(size_t)(DIRECT_BYTES - 1) : bytes;
}

static size_t round_down(size_t bytes, bool direct)
{
    return direct ? bytes & ~(size_t)(DIRECT_BYTES - 1) : bytes;
}

/* From one block in the file to the next. */
static uint64_t stride(const struct side *side)
{
    return SPILL_BLOCK_BYTES + side->head_bytes;
}

/* --- open and close --- */

static void leave_ring(struct spill_io *io, errint_t error)
{
    io->ring_usable = false;
    snprintf(io->description, sizeof io->description, "pread and pwrite (io_uring: %s)",
             strerror(-error));
}

/* The buffers: one region, which a child process has no use for. In huge pages if there are any: a
 * disk request of 1 MiB then has one segment or two and not 256, which is worth a third of the
 * speed. The last page is a huge one as well, though little of it is used: a newer kernel joins the
 * pages of registered buffers only if all have one size. */
static errint_t map_buffers(struct spill_io *io, struct iovec *region)
{
    region->iov_len = (size_t)io->depth * CIPHER_STRIDE_BYTES;
    size_t paged = (region->iov_len + HUGE_PAGE_BYTES - 1) & ~(HUGE_PAGE_BYTES - 1ul);
    io->mapping_bytes = paged + HUGE_PAGE_BYTES;
    io->mapping =
        mmap(NULL, io->mapping_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (io->mapping == MAP_FAILED)
        return -ENOMEM;
    uintptr_t begin = ((uintptr_t)io->mapping + HUGE_PAGE_BYTES - 1) & ~(HUGE_PAGE_BYTES - 1ul);
    region->iov_base = (void *)begin;
    (void)madvise(region->iov_base, paged, MADV_HUGEPAGE);
    (void)madvise(io->mapping, io->mapping_bytes, MADV_DONTFORK);
    for (unsigned i = io->depth; i-- > 0;) {
        io->blocks[i].data = (uint8_t *)region->iov_base + (size_t)i * CIPHER_STRIDE_BYTES;
        io->blocks[i].next_free = io->free;
        io->free = &io->blocks[i];
    }
    return 0;
}

static void open_ring(struct spill_io *io, const struct iovec *region)
{
    errint_t registered = 0, error = spill_ring_open(&io->ring, io->depth, region, &registered);
    io->ring_open = io->ring_usable = !error;
    if (error)
        leave_ring(io, error);
    else if (registered)
        snprintf(io->description, sizeof io->description, "io_uring (buffers not registered: %s)",
                 strerror(-registered));
    else
        snprintf(io->description, sizeof io->description, "io_uring");
}

static errint_t allocate(struct spill_io *io, struct iovec *region)
{
    io->mapping = MAP_FAILED;
    io->blocks = calloc(io->depth, sizeof *io->blocks);
    io->actives = calloc(io->depth + 1, sizeof *io->actives);
    return io->blocks && io->actives ? map_buffers(io, region) : -ENOMEM;
}

errint_t spill_io_open(const struct spill_io_options *options, struct spill_io **out,
                       struct mob_error *err)
{
    static const struct spill_io_options defaults;
    if (!options)
        options = &defaults;
    struct iovec region;
    struct spill_io *io = calloc(1, sizeof *io);
    if (!io)
        return mob_error_set(err, -ENOMEM, "no memory for copying");
    io->depth = options->depth ? options->depth : DEPTH_DEFAULT;
    if (io->depth > DEPTH_LIMIT)
        io->depth = DEPTH_LIMIT;
    errint_t error = allocate(io, &region);
    if (error) {
        unsigned depth = io->depth;
        spill_io_close(io);
        return mob_error_set(err, error, "no memory for %u blocks of 1 MiB to copy with", depth);
    }
    if (options->plain)
        snprintf(io->description, sizeof io->description, "pread and pwrite");
    else
        open_ring(io, &region);
    *out = io;
    return 0;
}

void spill_io_close(struct spill_io *io)
{
    if (!io)
        return;
    if (io->ring_open)
        spill_ring_close(&io->ring);
    if (io->mapping != MAP_FAILED)
        munmap(io->mapping, io->mapping_bytes);
    free(io->actives);
    free(io->blocks);
    free(io);
}

const char *spill_io_describe(const struct spill_io *io)
{
    return io->description;
}

void spill_io_cancel(struct spill_io *io, bool on)
{
    atomic_store(&io->cancelled, on);
}

/* --- a copy begins and ends --- */

static void fail(struct spill_active *active, uint64_t block, errint_t error)
{
    if (block >= active->failed)
        return;
    active->failed = block;
    active->copy->error = error;
    active->copy->bad_block = block;
}

static errint_t look_at(int fd, bool reads, bool encrypted, struct side *side,
                        struct statfs *filesystem)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fstatfs(fd, filesystem) < 0)
        return -errno;
    bool in_memory = filesystem->f_type == TMPFS_MAGIC || filesystem->f_type == RAMFS_MAGIC ||
                     filesystem->f_type == HUGETLBFS_MAGIC;
    bool direct = flags & O_DIRECT;
    bool cached = reads && !in_memory && !direct;
    *side = (struct side){.ring = !in_memory && !cached,
                          .direct = direct,
                          .cached = cached,
                          .head_bytes = encrypted ? CIPHER_HEAD_BYTES : 0};
    return 0;
}

/* Disk space for all of the target, padding too. That also lets the kernel write the blocks side by
 * side: those that make a file longer go one after the other. */
static errint_t reserve(int fd, const struct stat *info, const struct statfs *filesystem,
                        uint64_t bytes)
{
    /* fallocate() would fill the disk before it fails. */
    uint64_t has = (uint64_t)info->st_blocks * 512, block_bytes = (uint64_t)filesystem->f_bsize;
    if (filesystem->f_blocks > 0 && bytes > has &&
        (bytes - has) / block_bytes > filesystem->f_bfree)
        return -ENOSPC;
    int result;
    do
        result = fallocate(fd, 0, 0, (off_t)bytes);
    while (result < 0 && errno == EINTR);
    /* A filesystem that can't do it says so in various ways. The writes will tell. */
    if (result == 0 || (errno != ENOSPC && errno != EDQUOT && errno != EFBIG))
        return 0;
    errint_t error = -errno;
    if (ftruncate(fd, info->st_size) < 0)
        return error; /* the caller removes it */
    return error;
}

static errint_t begin_target(struct spill_active *active)
{
    const struct spill_copy *copy = active->copy;
    struct statfs filesystem;
    struct stat info;
    errint_t error =
        look_at(copy->to, false, copy->form == SPILL_ENCRYPT, &active->to, &filesystem);
    if (error)
        return error;
    active->to_bytes = copy->bytes + active->blocks * active->to.head_bytes;
    if (fstat(copy->to, &info) < 0)
        return -errno;
    if (!S_ISREG(info.st_mode))
        return 0;
    uint64_t padded = round_up(active->to_bytes, active->to.direct);
    active->truncate = padded > active->to_bytes || (uint64_t)info.st_size > active->to_bytes;
    /* In memory it would only take time. */
    return active->to.ring && padded > 0 ? reserve(copy->to, &info, &filesystem, padded) : 0;
}

static bool makes_sense(const struct spill_copy *copy)
{
    switch (copy->form) {
    case SPILL_PLAIN:
        return true;
    case SPILL_ENCRYPT: /* every time to other bytes: what would they be compared with? */
        return copy->key && !copy->check && !copy->discard;
    case SPILL_DECRYPT:
        return copy->key;
    case SPILL_ENCRYPTED:
        return copy->discard;
    }
    return false;
}

static errint_t begin_sides(struct spill_active *active)
{
    const struct spill_copy *copy = active->copy;
    bool encrypted = copy->form == SPILL_DECRYPT || copy->form == SPILL_ENCRYPTED;
    struct statfs filesystem;
    if (!makes_sense(copy))
        return -EINVAL;
    if (copy->bytes > INT64_MAX / 2) /* there is room for heads and padding above */
        return -EFBIG;
    errint_t error = look_at(copy->from, true, encrypted, &active->from, &filesystem);
    return error || copy->discard ? error : begin_target(active);
}

/* The copy has one hold: its caller's. */
static struct spill_active *begin_copy(struct spill_io *io, struct spill_copy *copy)
{
    struct spill_active *active = io->actives;
    while (active->holds > 0)
        active++;
    *active = (struct spill_active){
        .copy = copy,
        .blocks = spill_block_count(copy->bytes),
        .failed = UINT64_MAX,
        .holds = 1,
    };
    copy->error = 0;
    copy->bad_block = 0;
    errint_t error = atomic_load(&io->cancelled) ? -ECANCELED : begin_sides(active);
    if (error)
        fail(active, 0, error);
    return active;
}

static void release(struct spill_active *active)
{
    struct spill_copy *copy = active->copy;
    if (--active->holds > 0 || copy->error)
        return;
    if (active->done < active->blocks)
        copy->error = -ECANCELED; /* nothing else keeps a block from being done */
    else if (active->truncate && ftruncate(copy->to, (off_t)active->to_bytes) < 0)
        copy->error = -errno;
}

/* --- a block begins, goes on, and ends --- */

/* The copy of which a block can begin. NULL: none, all have begun. */
static struct spill_active *next_active(struct spill_io *io)
{
    for (;;) {
        struct spill_active *active = io->current;
        if (active && active->next < active->blocks && !active->copy->error &&
            !atomic_load(&io->cancelled))
            return active;
        if (active)
            release(active);
        io->current = NULL;
        if (io->waiting == io->waiting_end)
            return NULL;
        io->current = begin_copy(io, io->waiting++);
    }
}

/* So that the disk has as much to do as with the ring. */
static void read_ahead(const struct spill_io *io, const struct spill_active *active)
{
    if (!active->from.cached || active->next % AHEAD_BLOCKS)
        return;
    uint64_t from = active->next ? active->next + io->depth : 0;
    uint64_t blocks = active->next ? AHEAD_BLOCKS : io->depth + AHEAD_BLOCKS;
    if (from < active->blocks)
        (void)posix_fadvise(active->copy->from, (off_t)(from * stride(&active->from)),
                            (off_t)(blocks * stride(&active->from)), POSIX_FADV_WILLNEED);
}

static void begin_stage(struct spill_block *block, bool writes)
{
    const struct side *side = writes ? &block->active->to : &block->active->from;
    block->writes = writes;
    block->place = CIPHER_HEAD_BYTES - side->head_bytes;
    block->bytes = side->head_bytes + block->content;
    block->offset = block->number * stride(side);
    block->done = 0;
    block->retries = 0;
}

static struct spill_block *begin_block(struct spill_io *io)
{
    struct spill_block *block = io->free;
    struct spill_active *active = block ? next_active(io) : NULL;
    if (!active)
        return NULL;
    io->free = block->next_free;
    block->active = active;
    read_ahead(io, active);
    block->number = active->next++;
    uint64_t left = active->copy->bytes - block->number * SPILL_BLOCK_BYTES;
    block->content = left < SPILL_BLOCK_BYTES ? (size_t)left : SPILL_BLOCK_BYTES;
    begin_stage(block, false);
    active->holds++;
    return block;
}

static void end_block(struct spill_io *io, struct spill_block *block)
{
    block->next_free = io->free;
    io->free = block;
    release(block->active);
}

static void block_failed(struct spill_io *io, struct spill_block *block, errint_t error)
{
    fail(block->active, block->number, error);
    end_block(io, block);
}

static void block_done(struct spill_io *io, struct spill_block *block)
{
    block->active->done++;
    end_block(io, block);
}

/* Sums a block, or compares it with its sum: with its head, if it has one. */
static errint_t sum_block(const struct spill_block *block)
{
    const struct spill_copy *copy = block->active->copy;
    struct spill_sum *sum = &copy->sums[block->number];
    size_t head_bytes = copy->form == SPILL_PLAIN ? 0 : CIPHER_HEAD_BYTES;
    XXH128_canonical_t is;
    XXH128_canonicalFromHash(&is, XXH3_128bits(block->data + CIPHER_HEAD_BYTES - head_bytes,
                                               head_bytes + block->content));
    _Static_assert(sizeof is == sizeof *sum, "a sum is a canonical XXH3-128");
    if (copy->check)
        return memcmp(sum, &is, sizeof is) ? -EBADMSG : 0;
    memcpy(sum, &is, sizeof is);
    return 0;
}

/* Makes what is written of what was read. The sum is of what is on disk. */
static errint_t convert(const struct spill_block *block)
{
    const struct spill_copy *copy = block->active->copy;
    errint_t error = 0;
    if (copy->form == SPILL_ENCRYPT)
        error =
            cipher_encrypt_block(copy->key, copy->file, block->number, block->data, block->content);
    if (!error)
        error = sum_block(block);
    if (!error && copy->form == SPILL_DECRYPT)
        error =
            cipher_decrypt_block(copy->key, copy->file, block->number, block->data, block->content);
    return error;
}

/* All of a block is in its buffer. True: it is to be written now. */
static bool block_was_read(struct spill_io *io, struct spill_block *block)
{
    errint_t error = convert(block);
    /* A block takes a fraction of a millisecond. Whoever waits for this core needn't wait for the
     * scheduler's next tick. */
    sched_yield();
    if (error) {
        block_failed(io, block, error);
        return false;
    }
    if (block->active->copy->discard) {
        block_done(io, block);
        return false;
    }
    begin_stage(block, true);
    size_t padded = round_up(block->bytes, block->active->to.direct);
    memset(block->data + block->place + block->bytes, 0, padded - block->bytes);
    return true;
}

/* Takes what a request brought. True: the block has another one to make. */
static bool take_result(struct spill_io *io, struct spill_block *block, int result)
{
    if (result == -EINTR || (result == -EAGAIN && block->retries++ < RETRY_LIMIT))
        return true;
    if (result < 0) {
        block_failed(io, block, result);
        return false;
    }
    size_t reached = block->start + (size_t)result;
    if (reached <= block->done) {
        block_failed(io, block, block->writes ? -EIO : -ENODATA);
        return false;
    }
    block->done = reached;
    block->retries = 0;
    if (reached < block->bytes)
        return true;
    if (!block->writes)
        return block_was_read(io, block);
    block_done(io, block);
    return false;
}

/* Blocks before one that failed go on, so that the lowest is the one that is reported. */
static bool is_given_up(struct spill_io *io, const struct spill_block *block)
{
    return block->number > block->active->failed || atomic_load(&io->cancelled);
}

/* Makes requests for a block until one is with the kernel, or the block has ended. */
static void drive(struct spill_io *io, struct spill_block *block)
{
    struct spill_active *active = block->active;
    int result;
    do {
        if (is_given_up(io, block)) {
            end_block(io, block);
            return;
        }
        const struct side *side = block->writes ? &active->to : &active->from;
        block->fd = block->writes ? active->copy->to : active->copy->from;
        block->start = round_down(block->done, side->direct);
        block->end = round_up(block->bytes, side->direct);
        if (side->ring && io->ring_usable) {
            errint_t error = spill_ring_submit(&io->ring, block);
            if (!error) {
                io->in_flight++;
                return;
            }
            leave_ring(io, error);
        }
        result = spill_plain_request(block);
    } while (take_result(io, block, result));
}

void spill_io_run(struct spill_io *io, struct spill_copy *copies, size_t count)
{
    io->waiting = copies;
    io->waiting_end = copies + count;
    for (;;) {
        struct spill_block *block;
        while ((block = begin_block(io)) != NULL)
            drive(io, block);
        if (io->in_flight == 0)
            break;
        int result;
        block = spill_ring_wait(&io->ring, &result);
        io->in_flight--;
        if (take_result(io, block, result))
            drive(io, block);
    }
}
