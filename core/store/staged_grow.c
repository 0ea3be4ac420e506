/* Staged files that outgrow memory: their older part goes to disk while they are written.
 *
 * A file begins in memory while there is plenty (staged.c: begins_on_disk()). When memory is short
 * although all that could be evicted was, the part that was written first moves to a file on disk
 * (growing.h), which in the end has all of it and becomes the object's. With passthrough a thread
 * does it, and stops the writers (hold.h) while they are faster than the disk; without, whoever
 * writes does it itself, and so is slowed to what the disk takes.
 *
 * Only a file that nobody has open for reading can be moved: the kernel would read holes. Who opens
 * it later reads through us. */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "core/store/store_internal.h"

/* Of the memory budget: files move, and their writers are slowed, from the high watermark on, or
 * earlier, but not below this. */
#define LEAST_MARK 0.30
#define EARLY_BYTES (UINT64_C(144) << 20)
#define LONGEST_STOP_NS UINT64_C(150000000)
enum { SLICE_UNITS = 8, LEAST_UNITS = 4, HELD_FILES = 7 };

/* The share, or less: what is between it and the end of memory (some more than the budget,
 * tools/places.c) must be enough for what is written until the writers have been stopped. */
uint64_t grow_mark(const struct store *store)
{
    uint64_t share = spill_mark(store, SPILL_HIGH_WATERMARK), least = spill_mark(store, LEAST_MARK);
    uint64_t early = store->memory_bytes > EARLY_BYTES ? store->memory_bytes - EARLY_BYTES : 0;
    if (early < least)
        early = least;
    return early < share ? early : share;
}

/* --- one file --- */

static errint_t note(void *argument, const struct growing_state *state)
{
    struct staged *staged = argument;
    struct store *store = staged->store;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->tree_lock);
    struct growing_state old = staged->grown_state;
    staged->grown_state = *state;
    errint_t error = staged->gone ? 0 : records_write(&store->records, staged);
    if (error)
        staged->grown_state = old;
    return error;
}

static errint_t init(struct store *store, struct staged *staged, const struct growing_state *state)
{
    struct growing_disk disk = {.fd = staged->grown.fd,
                                .key = staged->grown.encrypted ? store->key : NULL,
                                .file = staged->grown.file};
    struct growing *growing = malloc(sizeof *growing);
    if (!growing)
        return -ENOMEM;
    errint_t error =
        growing_init(growing, staged->data.fd, &disk, staged->grown_alone, state, note, staged);
    if (error)
        free(growing);
    else
        staged->growing = growing;
    return error;
}

/* False: somebody reads it, or its time is over. From now on who opens it is told. */
static bool mark_split(struct store *store, struct staged *staged)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->tree_lock);
    if (staged->committed || staged->gone || (staged_is_direct(staged) && !staged->write_only))
        return false;
    staged->split = true;
    return true;
}

static void unmark_split(struct store *store, struct staged *staged)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->tree_lock);
    staged->split = false;
}

/* Its lock is held. */
static errint_t start(struct store *store, struct staged *staged)
{
    unsigned dir = DISK_NO_DIR;
    if (staged->growing)
        return 0;
    if (!mark_split(store, staged))
        return -EBUSY;
    errint_t error = store_new_number(store, &staged->grown.file);
    if (!error) {
        int fd = disk_make_file(&store->disk, staged->grown.file, GROWING_UNIT_BYTES, O_RDWR, &dir);
        error = fd < 0 ? fd : 0;
        staged->grown.fd = fd < 0 ? -1 : fd;
        staged->grown.dir = (uint8_t)dir;
        staged->grown.encrypted = store->key != NULL;
        staged->grown_alone = !staged_is_direct(staged);
    }
    if (!error)
        error = init(store, staged, NULL);
    if (!error)
        return 0;
    if (staged->grown.fd >= 0) {
        mob_cleanup_fd(&staged->grown.fd);
        disk_remove_file(&store->disk, dir, staged->grown.file, 0);
    }
    staged->grown.file = 0;
    unmark_split(store, staged);
    return error;
}

static void count(struct store *store, struct staged *staged)
{
    uint64_t moved = growing_moved(staged->growing);
    disk_count(&store->disk, (int64_t)(moved - staged->grown_bytes));
    atomic_fetch_add(&store->spill.spilled_bytes,
                     moved > staged->grown_bytes ? moved - staged->grown_bytes : 0);
    staged->grown_bytes = moved;
    staged_settle(store, staged);
}

static errint_t move(struct store *store, struct staged *staged, struct growing_mover *mover,
                     uint64_t units)
{
    struct mob_error err = {0};
    uint64_t room = disk_room(&store->disk) / GROWING_UNIT_BYTES;
    if (!room)
        return -ENOSPC;
    if (units > room)
        units = room;
    errint_t error = start(store, staged);
    if (error)
        return error;
    uint64_t before = growing_moved(staged->growing);
    uint64_t begin = before ? before : staged->grown_alone ? 0 : GROWING_UNIT_BYTES;
    error = growing_move(staged->growing, mover, begin + units * GROWING_UNIT_BYTES, &err);
    count(store, staged);
    if (error && error != -ECANCELED)
        mob_log_warning("store: %s", err.message);
    bool torn; /* if that can't be read either, it is tried again */
    if (error == -EIO)
        staged->torn = !growing_is_torn(staged->growing, &torn) && torn;
    return error ? error : growing_moved(staged->growing) > before ? 0 : -EAGAIN;
}

bool grow_is_possible(const struct store *store, const struct staged *staged)
{
    return store->disk.count && !staged_is_direct(staged) && staged->data.dir == DISK_NO_DIR;
}

/* In an encrypted file holes take room as all else does. -ENOSPC: more than the disk's budget and
 * memory have together. */
static errint_t check_holes(struct store *store, struct staged *staged, struct mob_error *err)
{
    struct stat info;
    uint64_t moved = growing_moved(staged->growing);
    if (!staged->grown.encrypted || fstat(staged->data.fd, &info) < 0 ||
        (uint64_t)info.st_size <= moved ||
        (uint64_t)info.st_size - moved <= disk_room(&store->disk) + store->memory_bytes)
        return 0;
    return mob_error_set(err, -ENOSPC,
                         "%s: the spill directories have no room for its holes, which are "
                         "encrypted as all else",
                         staged->name);
}

/* All of it goes to disk; the mover's lock is held. */
static errint_t assemble(struct store *store, struct staged *staged, struct mob_error *err)
{
    errint_t error = check_holes(store, staged, err);
    if (error)
        return error;
    error = growing_assemble(staged->growing, &store->grow.mover, err);
    count(store, staged);
    return error;
}

errint_t grow_make_room(struct store *store, struct staged *staged)
{
    struct grow *grow = &store->grow;
    if (!staged->growing && staged->charged_bytes <= GROWING_UNIT_BYTES)
        return -EAGAIN; /* what it is at */
    cleanup_lock pthread_mutex_t *lock = mob_lock(&grow->mover_lock);
    return move(store, staged, &grow->mover, SLICE_UNITS);
}

/* The size is set first: what is a hole takes no memory, and goes to disk as one. */
errint_t grow_claim(struct store *store, struct staged *staged, uint64_t end)
{
    struct mob_error err = {0};
    struct grow *grow = &store->grow;
    struct stat info;
    if (fstat(staged->data.fd, &info) < 0)
        return -errno;
    uint64_t size = (uint64_t)info.st_size;
    if (disk_room(&store->disk) < GROWING_UNIT_BYTES + (end > size ? end - size : 0))
        return -ENOSPC;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&grow->mover_lock);
    errint_t error = start(store, staged);
    if (!error && end > size)
        error = growing_truncate(staged->growing, end);
    if (!error)
        error = growing_assemble(staged->growing, &grow->mover, &err);
    if (error && end > size && staged->growing && growing_truncate(staged->growing, size))
        mob_log_warning("store: %s keeps a hole at its end", staged->name);
    if (staged->growing)
        count(store, staged);
    return error == -EBUSY ? -ENOSPC : error;
}

errint_t staged_settle_growth(struct store *store, uint64_t number, struct mob_error *err)
{
    struct grow *grow = &store->grow;
    struct staged *staged = staged_get(store, number);
    errint_t error = 0;
    if (!staged)
        return 0;
    pthread_mutex_lock(&staged->lock);
    if (staged->growing && !staged->committed) {
        cleanup_lock pthread_mutex_t *lock = mob_lock(&grow->mover_lock);
        grow->mover.hold = NULL;
        error = check_holes(store, staged, err);
        if (!error)
            error = growing_move(staged->growing, &grow->mover, UINT64_MAX, err);
        count(store, staged);
    }
    pthread_mutex_unlock(&staged->lock);
    staged_put(store, staged);
    objects_settle(store);
    return error;
}

errint_t grow_assemble(struct store *store, struct staged *staged, struct mob_error *err)
{
    struct grow *grow = &store->grow;
    /* Another file's move must not be under way. */
    cleanup_lock pthread_mutex_t *lock = mob_lock(&grow->mover_lock);
    grow->mover.hold = NULL; /* nobody writes */
    return assemble(store, staged, err);
}

ssize_t staged_pread(struct staged *staged, void *buffer, size_t bytes, uint64_t offset)
{
    if (staged->growing)
        return growing_read(staged->growing, buffer, bytes, offset);
    if (!staged->data.encrypted)
        return mob_pread_full(staged->data.fd, buffer, bytes, (off_t)offset);
    /* By what was synced. */
    struct stat info;
    if (fstat(staged->data.fd, &info) < 0)
        return -errno;
    struct cipher_file file = {.fd = staged->data.fd,
                               .number = staged->data.file,
                               .size = data_bytes(&staged->data, &info)};
    ssize_t got = cipher_pread(staged->store->key, &file, buffer, bytes, offset, NULL);
    return got == -EBADMSG || got == -ENODATA ? -EIO : got;
}

void grow_end(struct store *store, struct staged *staged)
{
    if (staged->growing) {
        growing_destroy(staged->growing);
        free(staged->growing);
        staged->growing = NULL;
    }
    if (staged->grown.file && staged->gone) {
        disk_drop(store, &staged->grown, staged->grown_bytes);
        staged->grown = (struct data_file){.fd = -1, .dir = DISK_NO_DIR};
        disk_settle(store);
    }
    mob_cleanup_fd(&staged->grown.fd);
}

errint_t grow_adopt(struct store *store, struct staged *staged, const struct staged_record *record,
                    unsigned dir)
{
    struct growing_state state = {.moved = record->grown_moved,
                                  .intent = record->grown_intent,
                                  .head_moved = record->grown_head_moved,
                                  .torn = record->grown_torn,
                                  .filled = record->grown_filled,
                                  .redo = record->grown_redo};
    staged->store = store;
    staged->grown = (struct data_file){.file = record->grown_file,
                                       .fd = -1,
                                       .dir = (uint8_t)dir,
                                       .encrypted = record->grown_encrypted};
    if (staged->grown.encrypted && !store->key)
        return 1;
    staged->grown.fd = disk_open_file(&store->disk, dir, record->grown_file, O_RDWR);
    if (staged->grown.fd < 0)
        return 1;
    staged->split = true;
    staged->write_only = true;
    staged->grown_state = state;
    staged->grown_alone = record->grown_alone;
    store->grow.has_shared |= !staged->grown_alone;
    errint_t error = init(store, staged, &state);
    if (error)
        return error == -EINVAL ? 1 : error; /* it says what can't be */
    staged->grown_bytes = growing_moved(staged->growing);
    disk_count(&store->disk, (int64_t)staged->grown_bytes);
    return 0;
}

/* --- the thread --- */

/* The largest files in memory that may move, the largest first. One that is torn would fail each
 * time, and keep the others from moving. */
struct candidates {
    uint64_t numbers[HELD_FILES + 1], blocks[HELD_FILES + 1];
    size_t count;
};

static void look_at(void *argument, const struct staged_info *info)
{
    struct candidates *found = argument;
    if (info->on_disk || info->committed || !info->moves ||
        info->blocks * 512 <= (uint64_t)LEAST_UNITS * GROWING_UNIT_BYTES)
        return;
    size_t at = found->count;
    while (at && found->blocks[at - 1] < info->blocks)
        at--;
    if (at > HELD_FILES)
        return;
    if (found->count <= HELD_FILES)
        found->count++;
    for (size_t i = found->count - 1; i > at; i--) {
        found->numbers[i] = found->numbers[i - 1];
        found->blocks[i] = found->blocks[i - 1];
    }
    found->numbers[at] = info->number;
    found->blocks[at] = info->blocks;
}

/* The others' writers wait while the largest file moves: else they would take what it gives. (Who
 * writes through us waits for room by itself.) */
struct stopped {
    struct staged *staged[HELD_FILES];
    struct hold_token *tokens[HELD_FILES];
    size_t count;
};

static void stop_others(struct store *store, const struct candidates *found,
                        struct stopped *stopped)
{
    const uint64_t longest_ns = UINT64_C(20000000);
    for (size_t i = 1; i < found->count && store->grow.hold; i++) {
        struct staged *staged = staged_get(store, found->numbers[i]);
        struct hold_token *token;
        if (staged && staged_is_direct(staged) &&
            !hold_begin(store->grow.hold, staged->data.fd, HOLD_ANYWHERE, longest_ns, &token)) {
            stopped->staged[stopped->count] = staged;
            stopped->tokens[stopped->count++] = token;
        } else if (staged) {
            staged_put(store, staged);
        }
    }
}

static void let_go(struct store *store, struct stopped *stopped)
{
    for (size_t i = 0; i < stopped->count; i++) {
        hold_end(stopped->tokens[i]);
        staged_put(store, stopped->staged[i]);
    }
}

/* False: no file can give anything. */
static bool move_largest(struct store *store)
{
    struct grow *grow = &store->grow;
    struct candidates found = {.count = 0};
    struct stopped stopped = {.count = 0};
    staged_each(store, look_at, &found);
    struct staged *staged = found.count ? staged_get(store, found.numbers[0]) : NULL;
    if (!staged)
        return false;
    uint64_t until_ns = mob_monotonic_ns() + LONGEST_STOP_NS;
    errint_t error;
    /* These first: who has them may be about to use a file that is held. */
    pthread_mutex_lock(&staged->lock);
    pthread_mutex_lock(&grow->mover_lock);
    stop_others(store, &found, &stopped);
    grow->mover.hold = grow->hold;
    do
        error = staged->committed ? -EBUSY : move(store, staged, &grow->mover, SLICE_UNITS);
    while (!error && spill_memory_used(store) > grow_mark(store) / 4 * 3 &&
           mob_monotonic_ns() < until_ns && !spill_is_stopping(store));
    let_go(store, &stopped);
    pthread_mutex_unlock(&grow->mover_lock);
    pthread_mutex_unlock(&staged->lock);
    staged_put(store, staged);
    objects_settle(store);
    return !error;
}

static void *grow_main(void *argument)
{
    struct store *store = argument;
    struct spill *spill = &store->spill;
    struct grow *grow = &store->grow;
    spill_hurry(-15);
    pthread_mutex_lock(&spill->lock);
    while (!spill->stop) {
        if (!grow->wanted) {
            pthread_cond_wait(&grow->wake, &spill->lock);
            continue;
        }
        grow->wanted = false;
        pthread_mutex_unlock(&spill->lock);
        while (spill_memory_used(store) > grow_mark(store) && move_largest(store) &&
               !spill_is_stopping(store))
            continue;
        pthread_mutex_lock(&spill->lock);
    }
    pthread_mutex_unlock(&spill->lock);
    return NULL;
}

void grow_look(struct store *store)
{
    struct spill *spill = &store->spill;
    if (!store->grow.runs || spill_memory_used(store) <= grow_mark(store))
        return;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&spill->lock);
    store->grow.wanted = true;
    pthread_cond_signal(&store->grow.wake);
}

/* --- beginning and end --- */

static void resume_one(void *argument, const struct staged_info *info)
{
    struct store *store = argument;
    struct staged *staged = info->split ? staged_get(store, info->number) : NULL;
    struct mob_error err = {0};
    if (!staged)
        return;
    pthread_mutex_lock(&staged->lock);
    if (staged->growing && growing_resume(staged->growing, &store->grow.mover, &err))
        mob_log_error("store: %s: %s", staged->name, err.message);
    pthread_mutex_unlock(&staged->lock);
    staged_put(store, staged);
}

static errint_t open_pipes(struct grow *grow, struct mob_error *err)
{
    if (grow->pipes)
        return 0;
    errint_t error = growing_pipes_open(&grow->own_pipes, err);
    if (!error)
        grow->pipes = &grow->own_pipes;
    return error;
}

errint_t grow_open(struct store *store, struct mob_error *err)
{
    struct grow *grow = &store->grow;
    struct mob_error why = {0};
    pthread_cond_init(&grow->wake, NULL);
    pthread_mutex_init(&grow->mover_lock, NULL);
    /* A file that began to grow with passthrough goes on that way. */
    bool wanted = store->passthrough || grow->has_shared;
    bool can_move = wanted && open_pipes(grow, &why) == 0;
    if (wanted && !can_move)
        mob_log_warning("store: a file that outgrows memory gets ENOSPC: %s", why.message);
    if (can_move && store->passthrough && hold_open(&grow->hold, HELD_FILES + 1, &why))
        mob_log_warning("store: writers can't be stopped when memory is short: %s", why.message);
    errint_t error = growing_mover_open(&grow->mover, can_move ? grow->pipes : NULL);
    if (!error) {
        staged_each(store, resume_one, store);
        grow->runs = can_move && store->passthrough;
        error = grow->runs ? -pthread_create(&grow->thread, NULL, grow_main, store) : 0;
        grow->runs &= !error;
    }
    if (error)
        return mob_error_set(err, error, "files can't be moved to disk: %s", strerror(-error));
    if (grow->runs)
        pthread_setname_np(grow->thread, "mover");
    return 0;
}

void grow_close(struct store *store)
{
    struct grow *grow = &store->grow;
    if (grow->runs) {
        atomic_store(&grow->mover.cancelled, true);
        pthread_mutex_lock(&store->spill.lock);
        pthread_cond_signal(&grow->wake);
        pthread_mutex_unlock(&store->spill.lock);
        pthread_join(grow->thread, NULL);
        grow->runs = false;
    }
    if (grow->mover.buffer)
        growing_mover_close(&grow->mover);
    hold_close(grow->hold);
    grow->hold = NULL;
    if (grow->pipes == &grow->own_pipes)
        growing_pipes_close(&grow->own_pipes);
    grow->pipes = NULL;
}
