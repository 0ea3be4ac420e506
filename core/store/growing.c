/* Growing files: moving units from memory to disk, and finishing that after a crash.
 *
 * A unit of a file that others write is moved in these steps. The server may be killed between any
 * two of them, or within one:
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
 * has happened; after it, growing_resume() punches what is moved. */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/store/growing_internal.h"
#include "core/store/hold.h"

enum {
    DISK_BLOCK_BYTES = 4096,     /* as direct I/O wants it */
    ZERO_PIECE_BYTES = 64 << 10, /* of a unit with holes, pieces of zeros are not written */
    COMPARE_TRIES = 32,
};

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif

/* What a move works with. */
struct move {
    struct growing *growing;
    struct growing_mover *mover;
    int memory, direct; /* writable; direct: -1 = the disk file has no direct I/O */
};

/* The unit that is moved. `bytes`: less than a unit's at the end of the file. */
struct unit {
    uint64_t offset;
    size_t bytes;
};

errint_t growing_init(struct growing *growing, int memory_fd, int disk_fd, bool exclusive,
                      const struct growing_state *state, growing_note *note, void *argument)
{
    *growing = (struct growing){
        .memory_fd = memory_fd,
        .disk_fd = disk_fd,
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

static struct growing_state state_after(const struct growing *growing, const struct unit *unit)
{
    struct growing_state state = growing->state;
    uint64_t end = unit->offset + GROWING_UNIT_BYTES;
    state.intent = 0;
    if (unit->offset == 0 && !growing->exclusive)
        state.head_moved = true;
    if (end > state.moved)
        state.moved = end;
    return state;
}

/* --- stopping the writers --- */

/* They are slowed to what the disk takes: between two punches they wait. Where they can't be
 * stopped, they aren't. */
static void hold_writers(const struct move *move)
{
    const uint64_t longest_ns = UINT64_C(100000000);
    struct growing_mover *mover = move->mover;
    if (mover->hold && !mover->held &&
        hold_begin(mover->hold, move->growing->memory_fd, longest_ns, &mover->held))
        mover->held = NULL;
}

static void release_writers(const struct move *move)
{
    if (move->mover->held)
        hold_end(move->mover->held);
    move->mover->held = NULL;
}

/* --- the disk file --- */

/* Waits until it is on disk, as direct I/O does: an error after the punch would be too late. */
static errint_t write_buffered(int fd, const unsigned char *buffer, const struct unit *unit)
{
    off_t offset = (off_t)unit->offset, bytes = (off_t)unit->bytes;
    errint_t error = mob_pwrite_full(fd, buffer, unit->bytes, offset);
    if (error)
        return error;
    if (sync_file_range(fd, offset, bytes,
                        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                            SYNC_FILE_RANGE_WAIT_AFTER) < 0)
        return -errno;
    posix_fadvise(fd, offset, bytes, POSIX_FADV_DONTNEED);
    return 0;
}

/* `buffer` has room for a whole unit. */
static errint_t write_unit(const struct move *move, unsigned char *buffer, const struct unit *unit)
{
    int disk_fd = move->growing->disk_fd;
    size_t whole = (unit->bytes + DISK_BLOCK_BYTES - 1) / DISK_BLOCK_BYTES * DISK_BLOCK_BYTES;
    errint_t error = -EINVAL;
    if (move->direct >= 0) {
        memset(buffer + unit->bytes, 0, whole - unit->bytes);
        error = mob_pwrite_full(move->direct, buffer, whole, (off_t)unit->offset);
    }
    /* EINVAL also from the rest of a short count, which may be at any offset. */
    if (error == -EINVAL)
        error = write_buffered(disk_fd, buffer, unit);
    /* Nothing may be left past the end of the file: it would show up when that grows. */
    if (!error && unit->bytes < GROWING_UNIT_BYTES &&
        ftruncate(disk_fd, (off_t)(unit->offset + unit->bytes)) < 0)
        error = -errno;
    return error;
}

static bool is_zero(const unsigned char *buffer, size_t bytes)
{
    return bytes == 0 || (buffer[0] == 0 && memcmp(buffer, buffer + 1, bytes - 1) == 0);
}

/* A unit with holes: what is zero stays a hole on disk. */
static errint_t write_sparse(const struct move *move, unsigned char *buffer,
                             const struct unit *unit)
{
    int disk_fd = move->growing->disk_fd;
    errint_t error = 0;
    if (unit->bytes < GROWING_UNIT_BYTES)
        return write_unit(move, buffer, unit);
    for (size_t done = 0; done < unit->bytes && !error;) {
        size_t piece = 0;
        while (done + piece < unit->bytes && is_zero(buffer + done + piece, ZERO_PIECE_BYTES))
            piece += ZERO_PIECE_BYTES;
        if (piece)
            error = growing_clear_disk(disk_fd, unit->offset + done, piece);
        done += piece;
        if (done >= unit->bytes || error)
            break;
        struct unit part = {unit->offset + done, ZERO_PIECE_BYTES};
        error = mob_pwrite_full(disk_fd, buffer + done, part.bytes, (off_t)part.offset);
        done += part.bytes;
    }
    if (!error && sync_file_range(disk_fd, (off_t)unit->offset, (off_t)unit->bytes,
                                  SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                                      SYNC_FILE_RANGE_WAIT_AFTER) < 0)
        error = -errno;
    return error;
}

/* --- a unit --- */

/* Whether there are pages in the unit, although it reads as a hole: room that was allocated. Where
 * the kernel can't say: perhaps. */
static bool may_have_pages(int fd, const struct unit *unit)
{
    struct {
        uint64_t offset, bytes;
    } range = {unit->offset, GROWING_UNIT_BYTES};
    struct {
        uint64_t cached, dirty, written_back, evicted, recently_evicted;
    } counts;
    if (syscall(SYS_cachestat, fd, &range, &counts, 0) < 0)
        return true;
    return counts.cached || counts.evicted;
}

/* Reading through a mapping makes pages of holes, and leaves what is there. */
static errint_t fill_holes(int fd, const struct unit *unit)
{
    bool hole;
    void *map = mmap(NULL, unit->bytes, PROT_READ, MAP_SHARED, fd, (off_t)unit->offset);
    if (map == MAP_FAILED)
        return -errno;
    errint_t error = madvise(map, unit->bytes, MADV_POPULATE_READ) < 0 ? -errno : 0;
    munmap(map, unit->bytes);
    if (error == -EFAULT)
        error = -ENOSPC; /* a SIGBUS, had we touched it */
    if (!error)
        error = growing_has_hole(fd, unit->offset, unit->offset + unit->bytes, &hole);
    return error ? error : hole ? -EIO : 0;
}

static errint_t copy_unit(const struct move *move, const struct unit *unit, bool sparse)
{
    unsigned char *buffer = move->mover->buffer;
    ssize_t got =
        mob_pread_full(move->growing->memory_fd, buffer, unit->bytes, (off_t)unit->offset);
    if (got < 0)
        return (errint_t)got;
    if ((size_t)got != unit->bytes)
        return -EIO;
    return sparse ? write_sparse(move, buffer, unit) : write_unit(move, buffer, unit);
}

/* The unit is punched, the lock is held: brings the disk file up to date from the pipes. `sum` is
 * of what is on disk, NULL = not known. */
static errint_t finish_unit(const struct move *move, const struct unit *unit,
                            const XXH128_hash_t *sum)
{
    struct growing *growing = move->growing;
    unsigned char *buffer = move->mover->buffer;
    struct growing_state after = state_after(growing, unit);
    errint_t error = growing_read_frozen(move->mover, buffer, unit->bytes);
    if (!error && (!sum || !XXH128_isEqual(XXH3_128bits(buffer, unit->bytes), *sum)))
        error = write_unit(move, buffer, unit);
    if (!error && unit->bytes < GROWING_UNIT_BYTES) {
        /* A write past the end that we froze may have been punched. */
        uint64_t size;
        error = growing_size(growing->memory_fd, &size);
        after.torn |= !error && size > unit->offset + unit->bytes;
    }
    if (error)
        return error;
    growing->state = after;
    growing->punched = false;
    return 0;
}

/* The state is what it should be: notes it, then lets the pages go. */
static errint_t release_unit(struct growing *growing, struct growing_mover *mover)
{
    mover->busy = growing;
    errint_t error = growing_settle(growing);
    if (!error)
        error = growing_drain(mover);
    if (!error)
        mover->busy = NULL;
    return error;
}

static errint_t punch_unit(const struct move *move, const struct unit *unit,
                           const XXH128_hash_t *sum)
{
    struct growing *growing = move->growing;
    cleanup_growing pthread_rwlock_t *held = growing_lock_alone(growing);
    release_writers(move); /* the punch takes the file's lock */
    errint_t error = growing_punch_fd(move->memory, unit->offset, GROWING_UNIT_BYTES);
    if (error) {
        growing->state.intent = 0;
        return error;
    }
    growing->punched = true;
    hold_writers(move);
    return finish_unit(move, unit, sum);
}

/* The steps 3 to 8. */
static errint_t freeze_unit(const struct move *move, const struct unit *unit)
{
    struct growing *growing = move->growing;
    struct growing_mover *mover = move->mover;
    XXH128_hash_t sum = XXH3_128bits(mover->buffer, unit->bytes);
    struct growing_state state = growing->state;
    state.intent = unit->offset + GROWING_UNIT_BYTES;
    errint_t error = growing_freeze(mover->pipes, growing->memory_fd, unit->offset, unit->bytes);
    if (!error)
        error = growing_announce(growing, &state);
    if (error) {
        errint_t left = growing_drain(mover);
        return left ? left : error;
    }
    error = punch_unit(move, unit, &sum);
    if (growing->punched) {
        mover->busy = growing;
        return error;
    }
    errint_t unsettled = release_unit(growing, mover);
    return error ? error : unsettled;
}

static errint_t move_unit(const struct move *move, const struct unit *unit)
{
    struct growing *growing = move->growing;
    int fd = growing->memory_fd;
    uint64_t end = unit->offset + unit->bytes, data;
    struct growing_state after = state_after(growing, unit);
    bool sparse;
    errint_t error = growing_find_data(fd, unit->offset, &data);
    if (error)
        return error;
    if (data >= end && (growing->exclusive || !may_have_pages(fd, unit))) {
        error = growing_clear_disk(growing->disk_fd, unit->offset, GROWING_UNIT_BYTES);
        if (!error)
            error = growing_announce(growing, &after);
        if (!error && growing->exclusive)
            error = growing_punch_fd(move->memory, unit->offset, GROWING_UNIT_BYTES);
        return error;
    }
    error = growing_has_hole(fd, unit->offset, end, &sparse);
    if (!error && sparse && !growing->exclusive)
        error = fill_holes(fd, unit);
    if (!error)
        error = copy_unit(move, unit, sparse);
    if (error || !growing->exclusive)
        return error ? error : freeze_unit(move, unit);
    error = growing_announce(growing, &after);
    return error ? error : growing_punch_fd(move->memory, unit->offset, GROWING_UNIT_BYTES);
}

/* --- moving --- */

static errint_t explain(errint_t error, struct mob_error *err)
{
    return mob_error_set(err, error, "can't move a file that is being written to disk: %s",
                         strerror(-error));
}

static errint_t check_torn(struct growing *growing, struct mob_error *err)
{
    bool torn;
    errint_t error = growing_is_torn(growing, &torn);
    if (error)
        return explain(error, err);
    if (!torn)
        return 0;
    return mob_error_set(
        err, -EIO,
        "a part of the file that had been moved to disk was written to again; "
        "with less memory than the file is large, it can only be written in order");
}

static void move_end(struct move *move)
{
    mob_cleanup_fd(&move->memory);
    mob_cleanup_fd(&move->direct);
}

static errint_t move_open(struct move *move, struct growing *growing, struct growing_mover *mover)
{
    char path[40];
    *move = (struct move){growing, mover, growing_open_memory(growing), -1};
    if (move->memory < 0)
        return move->memory;
    snprintf(path, sizeof path, "/proc/self/fd/%d", growing->disk_fd);
    move->direct = open(path, O_WRONLY | O_DIRECT | O_CLOEXEC);
    return 0;
}

static errint_t move_begin(struct move *move, struct growing *growing, struct growing_mover *mover)
{
    *move = (struct move){growing, mover, -1, -1};
    if (growing->state.intent || growing->unnoted || mover->busy)
        return -EBUSY;
    if (!growing->exclusive && !mover->pipes)
        return -EINVAL;
    errint_t error = mover->pipes && !growing->exclusive ? growing_drain(mover) : 0;
    return error ? error : move_open(move, growing, mover);
}

static uint64_t next_unit(const struct growing *growing)
{
    uint64_t begin = growing_begin(growing);
    return growing->state.moved > begin ? growing->state.moved : begin;
}

/* Not the part that the writer is at: where there is a hole, and no data behind it. */
static errint_t is_movable(const struct growing *growing, const struct unit *unit, bool *movable)
{
    uint64_t end = unit->offset + unit->bytes, data;
    bool hole;
    errint_t error = growing_find_data(growing->memory_fd, end, &data);
    if (!error && data == UINT64_MAX) {
        error = growing_has_hole(growing->memory_fd, unit->offset, end, &hole);
        *movable = !error && !hole;
    } else {
        *movable = !error;
    }
    return error;
}

static errint_t move_units(const struct move *move, uint64_t until)
{
    struct growing *growing = move->growing;
    uint64_t size;
    errint_t error = growing_size(growing->memory_fd, &size);
    if (until > size)
        until = size;
    while (!error) {
        struct unit unit = {next_unit(growing), GROWING_UNIT_BYTES};
        bool movable = unit.offset < until && until - unit.offset >= GROWING_UNIT_BYTES;
        if (movable)
            error = is_movable(growing, &unit, &movable);
        if (error || !movable)
            break;
        if (atomic_load(&move->mover->cancelled))
            return -ECANCELED;
        hold_writers(move);
        error = move_unit(move, &unit);
    }
    return error;
}

errint_t growing_move(struct growing *growing, struct growing_mover *mover, uint64_t until,
                      struct mob_error *err)
{
    errint_t error = check_torn(growing, err);
    if (error)
        return error;
    struct move move;
    error = move_begin(&move, growing, mover);
    if (!error)
        error = move_units(&move, until);
    release_writers(&move);
    move_end(&move);
    return error ? explain(error, err) : 0;
}

static struct unit unit_at(uint64_t offset, uint64_t size)
{
    uint64_t left = size - offset;
    return (struct unit){offset,
                         left < GROWING_UNIT_BYTES ? (size_t)left : (size_t)GROWING_UNIT_BYTES};
}

/* The end of the file may still move away; a unit that was not whole and grew is a tear. */
static errint_t move_rest(const struct move *move)
{
    struct growing *growing = move->growing;
    uint64_t size;
    for (;;) {
        errint_t error = growing_size(growing->memory_fd, &size);
        if (error)
            return error;
        uint64_t offset = next_unit(growing);
        if (offset >= size) {
            if (growing_begin(growing) == 0 || size == 0)
                break;
            offset = 0; /* the head */
        }
        if (atomic_load(&move->mover->cancelled))
            return -ECANCELED;
        struct unit unit = unit_at(offset, size);
        error = move_unit(move, &unit);
        if (error || growing->state.torn)
            return error;
    }
    return ftruncate(growing->disk_fd, (off_t)size) < 0 ? -errno : 0;
}

errint_t growing_assemble(struct growing *growing, struct growing_mover *mover,
                          struct mob_error *err)
{
    errint_t error = check_torn(growing, err);
    if (error)
        return error;
    struct move move;
    error = move_begin(&move, growing, mover);
    if (!error)
        error = move_rest(&move);
    move_end(&move);
    return error ? explain(error, err) : check_torn(growing, err);
}

/* --- after a crash --- */

static errint_t was_punched(const struct move *move, const struct unit *unit, bool *punched)
{
    const struct growing *growing = move->growing;
    unsigned char *frozen = move->mover->buffer, *other = frozen + GROWING_UNIT_BYTES;
    *punched = true;
    if (growing->punched)
        return 0;
    errint_t error =
        growing_has_hole(growing->memory_fd, unit->offset, unit->offset + unit->bytes, punched);
    if (error || *punched)
        return error;
    for (int i = 0; i < COMPARE_TRIES; i++) {
        error = growing_read_frozen(move->mover, frozen, unit->bytes);
        if (error)
            return error;
        ssize_t got = mob_pread_full(growing->memory_fd, other, unit->bytes, (off_t)unit->offset);
        if (got < 0)
            return (errint_t)got;
        if ((size_t)got == unit->bytes && memcmp(frozen, other, unit->bytes) == 0)
            return 0;
        error = growing_read_frozen(move->mover, other, unit->bytes);
        if (error || memcmp(frozen, other, unit->bytes) != 0)
            return error;
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    *punched = true;
    return 0;
}

static errint_t resume_out(const struct move *move, struct mob_error *err)
{
    struct growing *growing = move->growing;
    struct unit unit = {growing->state.intent - GROWING_UNIT_BYTES, 0};
    bool punched;
    errint_t error = growing_frozen_bytes(move->mover->pipes, &unit.bytes);
    if (error)
        return error;
    if (unit.bytes == 0) {
        struct growing_state state = growing->state;
        state.intent = 0;
        state.torn = true;
        error = growing_announce(growing, &state);
        return error ? error
                     : mob_error_set(err, -EIO, "a part of the file was lost on its way to disk");
    }
    error = was_punched(move, &unit, &punched);
    if (error)
        return error;
    {
        cleanup_growing pthread_rwlock_t *held = growing_lock_alone(growing);
        growing->punched = punched;
        if (punched)
            error = finish_unit(move, &unit, NULL);
        else
            growing->state.intent = 0;
    }
    return error ? error : release_unit(growing, move->mover);
}

/* The unit is on disk as well: nothing was written to it in memory but what came from there. */
static errint_t resume_back(const struct move *move)
{
    struct growing *growing = move->growing;
    {
        cleanup_growing pthread_rwlock_t *held = growing_lock_alone(growing);
        errint_t error = growing_punch_fd(move->memory, growing->state.intent - GROWING_UNIT_BYTES,
                                          GROWING_UNIT_BYTES);
        if (error)
            return error;
        growing->state.intent = 0;
    }
    return growing_settle(growing);
}

static errint_t resume(const struct move *move, struct mob_error *err)
{
    struct growing *growing = move->growing;
    const struct growing_state *state = &growing->state;
    uint64_t data;
    errint_t error = 0;
    if (growing->unnoted)
        error = move->mover->busy == growing ? release_unit(growing, move->mover)
                                             : growing_settle(growing);
    if (!error && state->intent) {
        uint64_t offset = state->intent - GROWING_UNIT_BYTES;
        bool back = offset >= growing_begin(growing) && offset < state->moved;
        error = back ? resume_back(move) : resume_out(move, err);
    }
    if (!error && growing->exclusive) {
        error = growing_find_data(growing->memory_fd, 0, &data);
        if (!error && data < state->moved)
            error = growing_punch_fd(move->memory, 0, state->moved);
    }
    return error ? error : growing_cut_disk(growing);
}

errint_t growing_resume(struct growing *growing, struct growing_mover *mover, struct mob_error *err)
{
    struct move move = {growing, mover, -1, -1};
    struct mob_error told = {0};
    errint_t error = mover->busy && mover->busy != growing && growing->state.intent ? -EBUSY : 0;
    if (!error && growing->state.intent && !growing->exclusive && !mover->pipes)
        error = -EINVAL;
    if (!error)
        error = move_open(&move, growing, mover);
    if (!error)
        error = resume(&move, &told);
    move_end(&move);
    if (!error)
        return 0;
    return told.code ? mob_error_set(err, error, "%s", told.message) : explain(error, err);
}
