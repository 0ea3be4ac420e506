/* Growing files: moving units from memory to disk, and finishing that after a crash.
 *
 * A few units of a file that others write, a batch, are moved in these steps. The server may be
 * killed between any two of them, or within one:
 *
 *   1 holes filled   Every page of the unit is there. It reads as before.
 *   2 copied         To disk, past the moved part: nobody reads that. Its hash is kept.
 *   3 frozen         The pipes hold references to its pages. Writers still write into these.
 *                    Killed up to here: nothing is noted, nothing is lost. What the pipes hold is
 *                    dropped before the next move.
 *   4 intent noted   Killed here: nothing is punched; the pages are the pipes'. growing_resume()
 *                    forgets the intent, and only then empties the pipes.
 *   5 punched        A write is before that and in the frozen pages, or after it and leaves data
 *                    where we punched: the inode's lock sees to it. (Pages that were not there at
 *                    step 3 would make a third case, a write into a page that we don't have and
 *                    remove: hence step 1.)
 *   6 compared       The frozen pages are read through copies of the references. If their hash is
 *                    another one, they are the truth and are written to disk.
 *                    Killed in 5 or 6: growing_resume() writes the frozen pages to disk, again if
 *                    need be.
 *   7 moved noted    With the intent gone, in one note. Killed afterwards: as up to 3.
 *   8 pipes emptied
 *
 * How growing_resume() tells 4 from 5 and later: after 4 the unit has no hole, after 5 it is one.
 * It has none after 5 as well if a writer meanwhile wrote every page of it anew. So if there is
 * none, the pipes are compared with the file. Before the punch they are the same pages, and equal
 * but for a write in between, which would also change what the pipes hold; after it, what the pipes
 * hold never changes. If they are equal after the punch, then every byte that wasn't written anew
 * is 0 in both, and the file's unit is what it should be: to forget the intent is right, too.
 *
 * A unit that is a hole has no pages: the moved part just goes on past it, a later write shows.
 *
 * In exclusive mode there are no writers: copied, noted, punched. Killed before the note, nothing
 * has happened; after it, growing_resume() punches what is moved. (How blocks of an encrypted file
 * are changed that were moved before: growing_encrypted.c.) */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "core/store/growing_internal.h"
#include "core/store/hold.h"

enum {
    PAGE_BYTES = 4096,
    HOLD_TIMEOUT_NS = 100000000,
};

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif

errint_t growing_init(struct growing *growing, int memory_fd, const struct growing_disk *disk,
                      bool exclusive, const struct growing_state *state, growing_note *note,
                      void *argument)
{
    if (disk->key && (!exclusive || (state && !growing_encrypted_is_valid(state))))
        return -EINVAL;
    if (!disk->key && state && (state->filled || state->redo))
        return -EINVAL;
    *growing = (struct growing){
        .memory_fd = memory_fd,
        .disk = *disk,
        .exclusive = exclusive,
        .note = note,
        .argument = argument,
    };
    if (state)
        growing->state = *state;
    /* Many readers must not keep the mover waiting. */
    pthread_rwlockattr_t attributes;
    int code = pthread_rwlockattr_init(&attributes);
    if (code)
        return -code;
    pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    code = pthread_rwlock_init(&growing->lock, &attributes);
    pthread_rwlockattr_destroy(&attributes);
    return -code;
}

void growing_destroy(struct growing *growing)
{
    pthread_rwlock_destroy(&growing->lock);
}

/* --- the state --- */

errint_t growing_announce(struct growing *growing, const struct growing_state *state)
{
    errint_t error = growing->note(growing->argument, state);
    if (error)
        return error;
    cleanup_growing pthread_rwlock_t *held = growing_lock_alone(growing);
    growing->state = *state;
    return 0;
}

errint_t growing_settle(struct growing *growing)
{
    struct growing_state state = growing->state;
    errint_t error = growing->note(growing->argument, &state);
    growing->unnoted = error != 0;
    return error;
}

static struct growing_state state_after(const struct growing *growing,
                                        const struct growing_batch *batch)
{
    struct growing_state state = growing->state;
    uint64_t end = growing_round_up(batch->offset + batch->bytes);
    state.intent = 0;
    if (batch->offset == 0 && !growing->exclusive)
        state.head_moved = true;
    if (end > state.moved)
        state.moved = end;
    if (growing->disk.key)
        state.filled = batch->offset + batch->bytes;
    return state;
}

/* --- a unit --- */

/* Whether there are pages in the unit, although it reads as a hole: room that was allocated. Where
 * the kernel can't say: perhaps. */
static bool may_have_pages(int fd, const struct growing_batch *batch)
{
    struct {
        uint64_t offset, bytes;
    } range = {batch->offset, GROWING_UNIT_BYTES};
    struct {
        uint64_t cached, dirty, written_back, evicted, recently_evicted;
    } counts;
    if (syscall(SYS_cachestat, fd, &range, &counts, 0) < 0)
        return true;
    return counts.cached || counts.evicted;
}

/* Write faults make pages of holes, and leave what is there. (Read faults as well, but theirs are
 * clean: the kernel may drop them again before they are frozen.) */
static errint_t fill_holes(int fd, const struct growing_batch *batch)
{
    void *map =
        mmap(NULL, batch->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)batch->offset);
    if (map == MAP_FAILED)
        return -errno;
    errint_t error = madvise(map, batch->bytes, MADV_POPULATE_WRITE) < 0 ? -errno : 0;
    munmap(map, batch->bytes);
    return error == -EFAULT ? -ENOSPC : error; /* a SIGBUS, had we touched it */
}

static errint_t copy_batch(const struct growing_move *move, const struct growing_batch *batch,
                           bool sparse)
{
    unsigned char *buffer = move->mover->buffer;
    ssize_t got =
        mob_pread_full(move->growing->memory_fd, buffer, batch->bytes, (off_t)batch->offset);
    if (got < 0)
        return (errint_t)got;
    if ((size_t)got != batch->bytes)
        return -EIO;
    return growing_disk_move(move, buffer, batch, sparse);
}

/* The unit is punched, the lock is held: brings the disk file up to date from the pipes. `sum` is
 * of what is on disk, NULL = not known. */
errint_t growing_finish_batch(const struct growing_move *move, const struct growing_batch *batch,
                              const XXH128_hash_t *sum)
{
    struct growing *growing = move->growing;
    unsigned char *buffer = move->mover->buffer;
    struct growing_state after = state_after(growing, batch);
    errint_t error = growing_read_frozen(move->mover, buffer, batch->bytes);
    if (!error && (!sum || !XXH128_isEqual(XXH3_128bits(buffer, batch->bytes), *sum)))
        error = growing_disk_move(move, buffer, batch, false);
    if (!error && batch->bytes % GROWING_UNIT_BYTES) {
        /* A write past the end that we froze may have been punched. */
        uint64_t size;
        error = growing_size(growing->memory_fd, &size);
        after.torn |= !error && size > batch->offset + batch->bytes;
    }
    if (error)
        return error;
    growing->state = after;
    growing->punched = false;
    return 0;
}

errint_t growing_release_batch(struct growing *growing, struct growing_mover *mover)
{
    mover->busy = growing;
    errint_t error = growing_settle(growing);
    if (!error)
        error = growing_drain(mover);
    if (!error)
        mover->busy = NULL;
    return error;
}

/* `offset`: in data. NULL: nobody wants it, or it can't be had; then it goes without. */
static struct hold_token *hold_writers(const struct growing_move *move, uint64_t offset)
{
    struct hold_token *token;
    if (!move->mover->hold ||
        hold_begin(move->mover->hold, move->growing->memory_fd, offset, HOLD_TIMEOUT_NS, &token))
        return NULL;
    return token;
}

static void release_writers(struct hold_token *token)
{
    if (token)
        hold_end(token);
}

static errint_t punch_batch(const struct growing_move *move, const struct growing_batch *batch,
                            const XXH128_hash_t *sum)
{
    struct growing *growing = move->growing;
    cleanup_growing pthread_rwlock_t *held = growing_lock_alone(growing);
    uint64_t intent = growing_round_up(batch->offset + batch->bytes);
    errint_t error = growing_punch_fd(move->memory, batch->offset, intent - batch->offset);
    if (error) {
        return error;
    }
    growing->state.intent = intent;
    growing->punched = true;
    /* Again, so that the writer gets on between two batches by little more than a write. */
    struct hold_token *token = hold_writers(move, HOLD_ANYWHERE);
    error = growing_finish_batch(move, batch, sum);
    release_writers(token);
    return error;
}

/* The steps 1 to 4. */
static errint_t freeze_batch(const struct growing_move *move, const struct growing_batch *batch,
                             bool sparse, XXH128_hash_t *sum)
{
    struct growing *growing = move->growing;
    struct growing_state state = growing->state;
    uint64_t hole = UINT64_MAX;
    errint_t error = sparse ? fill_holes(move->memory, batch) : 0;
    if (!error)
        error = copy_batch(move, batch, sparse);
    if (error)
        return error;
    *sum = XXH3_128bits(move->mover->buffer, batch->bytes);
    error = growing_freeze(move->mover->pipes, growing->memory_fd, batch->offset, batch->bytes);
    /* After the freeze: where no page was, the pipes have none of the writers'. */
    if (sparse && !error)
        error = growing_find_hole(growing->memory_fd, batch->offset, &hole);
    if (!error && hole < batch->offset + batch->bytes)
        error = -EAGAIN;
    state.intent = growing_round_up(batch->offset + batch->bytes);
    /* It is only noted: who waits for a hold to end may have the lock of the state. */
    if (!error)
        error = growing->note(growing->argument, &state);
    errint_t left = error ? growing_drain(move->mover) : 0;
    return left ? left : error;
}

/* While the file is held, nothing here may look for its data or holes, or take our lock: a batch
 * with holes is moved without. */
static errint_t freeze_held(const struct growing_move *move, const struct growing_batch *batch,
                            bool sparse, XXH128_hash_t *sum)
{
    struct hold_token *token = sparse ? NULL : hold_writers(move, batch->offset);
    errint_t error = freeze_batch(move, batch, sparse, sum);
    release_writers(token);
    return error;
}

static errint_t move_shared(const struct growing_move *move, const struct growing_batch *batch,
                            bool sparse)
{
    struct growing *growing = move->growing;
    struct growing_mover *mover = move->mover;
    XXH128_hash_t sum;
    errint_t error = freeze_held(move, batch, sparse, &sum);
    if (error)
        return error;
    error = punch_batch(move, batch, &sum);
    if (growing->punched) {
        mover->busy = growing;
        return error;
    }
    errint_t unsettled = growing_release_batch(growing, mover);
    return error ? error : unsettled;
}

static errint_t move_alone(const struct growing_move *move, const struct growing_batch *batch,
                           bool sparse)
{
    uint64_t end = growing_round_up(batch->offset + batch->bytes);
    errint_t error = copy_batch(move, batch, sparse);
    struct growing_state after = state_after(move->growing, batch);
    if (!error)
        error = growing_announce(move->growing, &after);
    if (!error)
        error = growing_punch_fd(move->memory, batch->offset, end - batch->offset);
    return error;
}

static errint_t pass_hole(const struct growing_move *move, const struct growing_batch *batch)
{
    struct growing *growing = move->growing;
    struct growing_state after = state_after(growing, batch);
    errint_t error = growing_disk_clear(growing, batch->offset, GROWING_UNIT_BYTES);
    if (!error)
        error = growing_announce(growing, &after);
    if (!error && growing->exclusive)
        error = growing_punch_fd(move->memory, batch->offset, GROWING_UNIT_BYTES);
    return error;
}

/* Whether the first unit of the batch has holes, and is nothing but one. Then it is the batch; else
 * that ends before the first unit that has. */
static errint_t find_holes(struct growing_move *move, struct growing_batch *batch, bool *sparse,
                           bool *hole)
{
    int fd = move->growing->memory_fd;
    uint64_t end = batch->offset + batch->bytes, data;
    errint_t error = 0;
    *sparse = *hole = false;
    if (move->dense_until < end)
        error = growing_find_hole(fd, batch->offset, &move->dense_until);
    if (error || move->dense_until >= end)
        return error;
    size_t dense = (size_t)(move->dense_until - batch->offset);
    *sparse = dense < GROWING_UNIT_BYTES;
    if (!*sparse)
        batch->bytes = dense - dense % GROWING_UNIT_BYTES;
    else if (batch->bytes > GROWING_UNIT_BYTES)
        batch->bytes = GROWING_UNIT_BYTES;
    if (dense)
        return 0;
    error = growing_find_data(fd, batch->offset, &data);
    *hole = data >= batch->offset + batch->bytes &&
            (move->growing->exclusive || !may_have_pages(fd, batch));
    return error;
}

static errint_t move_batch(struct growing_move *move, struct growing_batch batch)
{
    bool sparse, hole;
    if (move->growing->disk.key) /* has no holes on disk */
        return move_alone(move, &batch, false);
    errint_t error = find_holes(move, &batch, &sparse, &hole);
    if (error)
        return error;
    if (hole)
        return pass_hole(move, &batch);
    return move->growing->exclusive ? move_alone(move, &batch, sparse)
                                    : move_shared(move, &batch, sparse);
}

/* --- moving --- */

errint_t growing_explain(errint_t error, struct mob_error *err)
{
    return mob_error_set(err, error, "can't move a file that is being written to disk: %s",
                         strerror(-error));
}

static errint_t check_torn(struct growing *growing, struct mob_error *err)
{
    bool torn;
    errint_t error = growing_is_torn(growing, &torn);
    if (error)
        return growing_explain(error, err);
    if (!torn)
        return 0;
    return mob_error_set(
        err, -EIO,
        "a part of the file that had been moved to disk was written to again, which can't be done "
        "with less memory than the file is large, or was lost when the daemon was killed");
}

void growing_move_close(struct growing_move *move)
{
    mob_cleanup_fd(&move->memory);
    mob_cleanup_fd(&move->direct);
}

errint_t growing_move_open(struct growing_move *move, struct growing *growing,
                           struct growing_mover *mover)
{
    char path[40];
    *move = (struct growing_move){
        .growing = growing, .mover = mover, .memory = growing_open_memory(growing), .direct = -1};
    if (move->memory < 0)
        return move->memory;
    snprintf(path, sizeof path, "/proc/self/fd/%d", growing->disk.fd);
    move->direct = open(path, O_WRONLY | O_DIRECT | O_CLOEXEC);
    return 0;
}

static errint_t move_begin(struct growing_move *move, struct growing *growing,
                           struct growing_mover *mover)
{
    *move = (struct growing_move){.growing = growing, .mover = mover, .memory = -1, .direct = -1};
    if (growing->state.intent || growing->unnoted || (mover->busy && !growing->exclusive))
        return -EBUSY;
    if (!growing->exclusive && !mover->pipes)
        return -EINVAL;
    errint_t error = growing->exclusive ? 0 : growing_drain(mover);
    if (!error)
        error = growing_disk_settle(growing);
    return error ? error : growing_move_open(move, growing, mover);
}

static struct growing_batch batch_at(uint64_t offset, uint64_t end)
{
    uint64_t left = end - offset;
    if (left > GROWING_BATCH_BYTES)
        left = GROWING_BATCH_BYTES;
    return (struct growing_batch){offset, (size_t)left};
}

/* Not the part that the writer is at: there is data behind. (Holes in the unit itself tell nothing:
 * a huge page is there as a whole when its first byte is written.) */
static errint_t cut_to_movable(struct growing_move *move, struct growing_batch *batch)
{
    uint64_t data = UINT64_MAX;
    errint_t error = 0;
    while (batch->bytes && move->data < batch->offset + batch->bytes && !error) {
        error = growing_find_data(move->growing->memory_fd, batch->offset + batch->bytes, &data);
        if (data != UINT64_MAX)
            move->data = data;
        else
            batch->bytes -= GROWING_UNIT_BYTES;
    }
    return error;
}

static errint_t move_units(struct growing_move *move, uint64_t until)
{
    struct growing *growing = move->growing;
    uint64_t size, data = UINT64_MAX;
    errint_t error = growing_size(growing->memory_fd, &size);
    if (until > size)
        until = size;
    /* In a file that is written from its beginning to its end this one look is enough. */
    if (!error && size)
        error = growing_find_data(growing->memory_fd, (size - 1) / PAGE_BYTES * PAGE_BYTES, &data);
    if (!error && data != UINT64_MAX)
        move->data = data;
    while (!error) {
        uint64_t begin = growing_next(growing);
        struct growing_batch batch = batch_at(begin, until > begin ? until : begin);
        batch.bytes -= batch.bytes % GROWING_UNIT_BYTES;
        error = batch.bytes ? cut_to_movable(move, &batch) : 0;
        if (error || !batch.bytes)
            break;
        if (atomic_load(&move->mover->cancelled))
            return -ECANCELED;
        error = move_batch(move, batch);
    }
    return error;
}

errint_t growing_move(struct growing *growing, struct growing_mover *mover, uint64_t until,
                      struct mob_error *err)
{
    errint_t error = check_torn(growing, err);
    if (error)
        return error;
    struct growing_move move;
    error = move_begin(&move, growing, mover);
    if (!error)
        error = move_units(&move, until);
    growing_move_close(&move);
    return error ? growing_explain(error, err) : 0;
}

/* The end of the file may still move away; a unit that was not whole and grew is a tear. */
static errint_t move_rest(struct growing_move *move)
{
    struct growing *growing = move->growing;
    uint64_t size;
    for (;;) {
        errint_t error = growing_size(growing->memory_fd, &size);
        if (error)
            return error;
        uint64_t offset = growing_next(growing);
        if (offset >= size) {
            if (growing_begin(growing) == 0 || size == 0)
                break;
            offset = move->dense_until = 0;
            size = size < GROWING_UNIT_BYTES ? size : GROWING_UNIT_BYTES; /* the head */
        }
        if (atomic_load(&move->mover->cancelled))
            return -ECANCELED;
        struct growing_batch batch = batch_at(offset, size);
        error = move_batch(move, batch);
        if (error || growing->state.torn)
            return error;
    }
    return growing_disk_finish(growing, size);
}

errint_t growing_assemble(struct growing *growing, struct growing_mover *mover,
                          struct mob_error *err)
{
    errint_t error = check_torn(growing, err);
    if (error)
        return error;
    struct growing_move move;
    error = move_begin(&move, growing, mover);
    if (!error)
        error = move_rest(&move);
    growing_move_close(&move);
    return error ? growing_explain(error, err) : check_torn(growing, err);
}
