/* The journal: its files, frames that are appended, and making them durable. */
#include "core/store/journal.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/base/log.h"
#include "core/base/util.h"
#include "core/store/journal_internal.h"

enum {
    STEP_BYTES = 4 << 20,
    ADD_RESERVE_BYTES = 1 << 20, /* what removes may use when nothing can be added */
    REMOVE_RESERVE_BYTES = 64 << 10,
    BUFFER_KEPT_BYTES = 16 << 20,
};
/* Is there while `covered` isn't, after a failure: a server that is killed then leaves it. */
#define FAILED_NAME "failed"

/* --- frames --- */

void journal_buffer_clear(struct journal_buffer *buffer)
{
    if (buffer->capacity > BUFFER_KEPT_BYTES) {
        free(buffer->bytes);
        buffer->bytes = NULL;
        buffer->capacity = 0;
    }
    buffer->used = sizeof(struct journal_frame);
    buffer->later = 0;
}

static errint_t reserve(struct journal_buffer *buffer, size_t bytes)
{
    if (buffer->used + bytes <= buffer->capacity)
        return 0;
    size_t capacity = buffer->capacity ? buffer->capacity : 64 << 10;
    while (capacity < buffer->used + bytes)
        capacity *= 2;
    uint8_t *grown = realloc(buffer->bytes, capacity);
    if (!grown)
        return -ENOMEM;
    buffer->bytes = grown;
    buffer->capacity = capacity;
    return 0;
}

errint_t journal_buffer_add(struct journal_buffer *buffer, enum journal_operation_kind kind,
                            unsigned table, const void *key, size_t key_bytes, const void *value,
                            size_t value_bytes)
{
    struct journal_operation operation = {.kind = (uint8_t)kind,
                                          .table = (uint8_t)table,
                                          .key_bytes = (uint16_t)key_bytes,
                                          .value_bytes = (uint32_t)value_bytes};
    if (value_bytes > JOURNAL_FRAME_LIMIT ||
        buffer->used + sizeof operation + key_bytes + value_bytes > JOURNAL_FRAME_LIMIT)
        return -EFBIG;
    errint_t error = reserve(buffer, sizeof operation + key_bytes + value_bytes);
    if (error)
        return error;
    uint8_t *place = buffer->bytes + buffer->used;
    memcpy(place, &operation, sizeof operation);
    memcpy(place + sizeof operation, key, key_bytes);
    if (value && value_bytes)
        memcpy(place + sizeof operation + key_bytes, value, value_bytes);
    buffer->used += sizeof operation + key_bytes + value_bytes;
    return 0;
}

errint_t journal_buffer_write(struct journal_buffer *buffer, int fd, uint64_t offset, uint64_t base,
                              struct journal_frame frame, uint64_t *length)
{
    uint64_t bytes = journal_buffer_bytes(buffer), all = journal_frame_length(bytes);
    if (bytes > JOURNAL_FRAME_LIMIT)
        return -EFBIG;
    errint_t error = reserve(buffer, (size_t)all - buffer->used);
    if (error)
        return error;
    memset(buffer->bytes + buffer->used, 0, (size_t)all - buffer->used);
    XXH128_hash_t sum = XXH3_128bits(buffer->bytes + sizeof frame, journal_padded(bytes));
    frame.magic = JOURNAL_FRAME_MAGIC;
    frame.bytes = bytes;
    frame.sum[0] = sum.low64;
    frame.sum[1] = sum.high64;
    frame.header_sum =
        XXH3_64bits_withSeed(&frame, offsetof(struct journal_frame, header_sum), base);
    memcpy(buffer->bytes, &frame, sizeof frame);
    memcpy(buffer->bytes + all - sizeof all, &all, sizeof all);
    *length = all;
    return mob_pwrite_full(fd, buffer->bytes, (size_t)all, (off_t)offset);
}

/* --- files --- */

char *journal_name(uint64_t base, const char *suffix, char out[JOURNAL_NAME_BYTES])
{
    snprintf(out, JOURNAL_NAME_BYTES, "%016llx.%s", (unsigned long long)base, suffix);
    return out;
}

errint_t journal_note_base(struct journal_files *files, uint64_t base)
{
    for (size_t i = 0; i < files->count; i++)
        if (files->bases[i] == base)
            return 0;
    uint64_t *bases = realloc(files->bases, (files->count + 1) * sizeof *bases);
    if (!bases)
        return -ENOMEM;
    files->bases = bases;
    size_t i = files->count++;
    for (; i && bases[i - 1] > base; i--)
        bases[i] = bases[i - 1];
    bases[i] = base;
    return 0;
}

static errint_t note_name(struct journal *journal, const char *name)
{
    char expected[JOURNAL_NAME_BYTES];
    uint64_t base = strtoull(name, NULL, 16);
    journal->failed |= !strcmp(name, FAILED_NAME);
    if (base > JOURNAL_SEQUENCE_LIMIT / 2)
        return 0;
    if (!strcmp(name, journal_name(base, "log", expected)))
        return journal_note_base(&journal->logs, base);
    if (!strcmp(name, journal_name(base, "snapshot", expected)))
        return journal_note_base(&journal->snapshots, base);
    if (!strcmp(name, journal_name(base, "new", expected)))
        unlinkat(journal->dir_fd, name, 0); /* a snapshot that was not finished */
    return 0;
}

static errint_t list_files(struct journal *journal)
{
    int fd = openat(journal->dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        errint_t error = -errno;
        mob_cleanup_fd(&fd);
        return error;
    }
    errint_t error = 0;
    const struct dirent *entry;
    errno = 0;
    while (!error && (entry = readdir(dir))) {
        error = note_name(journal, entry->d_name);
        errno = 0;
    }
    if (!error)
        error = -errno;
    closedir(dir);
    return error;
}

/* What is synced in it must be found again. */
static errint_t make_directory(struct journal *journal)
{
    bool made = mkdir(journal->path, 0700) == 0;
    if (!made && errno != EEXIST)
        return -errno;
    journal->dir_fd = open(journal->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (journal->dir_fd < 0 || !made)
        return journal->dir_fd < 0 ? -errno : 0;
    cleanup_fd int parent = openat(journal->dir_fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return parent < 0 || fsync(parent) < 0 ? -errno : 0;
}

errint_t journal_open(const struct journal_options *options, struct journal **out,
                      struct mob_error *err)
{
    struct journal *journal = calloc(1, sizeof *journal);
    if (!journal)
        return mob_error_set(err, -ENOMEM, "no memory");
    journal->dir_fd = journal->fd = journal->old_fd = -1;
    journal->snapshot = journal->previous = UINT64_MAX;
    journal->next_sequence = 1;
    memcpy(journal->owner, options->owner, sizeof journal->owner);
    journal->writer = options->writer;
    journal->log_limit = options->log_bytes ? options->log_bytes : JOURNAL_LOG_DEFAULT_BYTES;
    pthread_mutex_init(&journal->lock, NULL);
    pthread_cond_init(&journal->changed, NULL);
    errint_t error = asprintf(&journal->path, "%s/journal", options->state_dir) < 0 ? -ENOMEM : 0;
    if (error)
        journal->path = NULL;
    if (!error)
        error = make_directory(journal);
    if (!error)
        error = list_files(journal);
    if (error) {
        mob_error_set(err, error, "%s/journal: %s", options->state_dir, strerror(-error));
        journal_close(journal);
        return error;
    }
    *out = journal;
    return 0;
}

void journal_close(struct journal *journal)
{
    if (!journal)
        return;
    pthread_mutex_lock(&journal->lock);
    atomic_store(&journal->stop, true);
    pthread_cond_broadcast(&journal->changed);
    pthread_mutex_unlock(&journal->lock);
    if (journal->runs)
        pthread_join(journal->thread, NULL);
    mob_cleanup_fd(&journal->fd);
    mob_cleanup_fd(&journal->old_fd);
    mob_cleanup_fd(&journal->dir_fd);
    pthread_cond_destroy(&journal->changed);
    pthread_mutex_destroy(&journal->lock);
    free(journal->logs.bases);
    free(journal->snapshots.bases);
    free(journal->buffer.bytes);
    free(journal->path);
    free(journal);
}

bool journal_has_snapshot(const struct journal *journal)
{
    return journal->snapshots.count > 0;
}

bool journal_has_logs(const struct journal *journal)
{
    return journal->logs.count > 0;
}

errint_t journal_write_header(struct journal *journal, int fd, uint64_t base)
{
    struct journal_file_header header = {.version = JOURNAL_VERSION, .byte_order = 1, .base = base};
    memcpy(header.magic, JOURNAL_MAGIC, sizeof header.magic);
    memcpy(header.owner, journal->owner, sizeof header.owner);
    header.sum = XXH3_64bits(&header, offsetof(struct journal_file_header, sum));
    return mob_pwrite_full(fd, &header, sizeof header, 0);
}

/* Before the log is used: on a full disk, what only removes must find room in it. */
static errint_t allocate_first(int fd)
{
    static const off_t rooms[] = {ADD_RESERVE_BYTES, REMOVE_RESERVE_BYTES};
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(rooms); i++)
        if (fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, rooms[i]) == 0 || errno == EOPNOTSUPP)
            return 0;
    return errno == EDQUOT ? -ENOSPC : -errno;
}

/* Under its name only with a header: one that is cut short must not pass for the log that frames
 * go to, nor take the place of the one in use. */
errint_t journal_make_log(struct journal *journal, uint64_t base, int *fd)
{
    char new_name[JOURNAL_NAME_BYTES], name[JOURNAL_NAME_BYTES];
    errint_t error = journal_note_base(&journal->logs, base);
    if (error)
        return error;
    journal_name(base, "new", new_name);
    journal_name(base, "log", name);
    cleanup_fd int made = openat(journal->dir_fd, new_name,
                                 O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (made < 0)
        return -errno;
    error = allocate_first(made);
    if (!error)
        error = journal_write_header(journal, made, base);
    if (!error && renameat(journal->dir_fd, new_name, journal->dir_fd, name) < 0)
        error = -errno;
    if (error) {
        unlinkat(journal->dir_fd, new_name, 0);
        return error;
    }
    *fd = steal_fd(&made);
    return 0;
}

void journal_use_log(struct journal *journal, int fd, uint64_t base, uint64_t end)
{
    journal->fd = fd;
    journal->base = base;
    journal->end = journal->log_bytes = end;
    journal->allocated = 0;
    journal->broken = false;
    journal->dir_changes++;
}

/* --- a transaction --- */

static errint_t allocate_to(struct journal *journal, uint64_t bytes)
{
    if (fallocate(journal->fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)bytes) == 0) {
        journal->allocated = bytes;
        return 0;
    }
    if (errno == EOPNOTSUPP) { /* the filesystem can't promise anything */
        journal->allocated = UINT64_MAX;
        return 0;
    }
    return errno == EDQUOT ? -ENOSPC : -errno;
}

errint_t journal_begin(struct journal *journal, uint64_t new_bytes)
{
    journal_buffer_clear(&journal->buffer);
    if (journal->broken)
        return -EIO;
    uint64_t need = journal->end + new_bytes + new_bytes / 8 +
                    (new_bytes ? ADD_RESERVE_BYTES : REMOVE_RESERVE_BYTES);
    if (need <= journal->allocated)
        return 0;
    errint_t error = allocate_to(journal, (need / STEP_BYTES + 1) * STEP_BYTES);
    return error == -ENOSPC ? allocate_to(journal, need) : error;
}

void journal_fill(struct journal *journal)
{
    struct journal_buffer *buffer = &journal->buffer;
    if (buffer->later && buffer->later_bytes)
        memcpy(buffer->bytes + buffer->later, buffer->later_place, buffer->later_bytes);
    buffer->later = 0;
}

errint_t journal_put(struct journal *journal, unsigned table, const void *key, size_t key_bytes,
                     const void *value, size_t value_bytes)
{
    return journal_buffer_add(&journal->buffer, OPERATION_PUT, table, key, key_bytes, value,
                              value_bytes);
}

errint_t journal_delete(struct journal *journal, unsigned table, const void *key, size_t key_bytes)
{
    return journal_buffer_add(&journal->buffer, OPERATION_DELETE, table, key, key_bytes, NULL, 0);
}

errint_t journal_put_later(struct journal *journal, unsigned table, const void *key,
                           size_t key_bytes, const void *place, size_t value_bytes)
{
    struct journal_buffer *buffer = &journal->buffer;
    errint_t error =
        journal_buffer_add(buffer, OPERATION_PUT, table, key, key_bytes, NULL, value_bytes);
    if (error)
        return error;
    buffer->later = buffer->used - value_bytes;
    buffer->later_place = place;
    buffer->later_bytes = value_bytes;
    return 0;
}

/* Removes what is behind `end`, and with it what was allocated there. False: nothing more can be
 * written to this log. */
static bool cut(struct journal *journal)
{
    if (journal->allocated != UINT64_MAX)
        journal->allocated = 0;
    journal->broken = ftruncate(journal->fd, (off_t)journal->end) < 0;
    return !journal->broken;
}

errint_t journal_append(struct journal *journal, uint64_t txn)
{
    uint64_t length;
    journal_fill(journal);
    if (!journal_buffer_bytes(&journal->buffer)) {
        journal->last_length = 0;
        return 0;
    }
    pthread_mutex_lock(&journal->lock);
    struct journal_frame frame = {.kind = FRAME_CHANGES,
                                  .sequence = journal->next_sequence,
                                  .txn = txn,
                                  .previous = journal->written,
                                  .durable = journal->synced};
    pthread_mutex_unlock(&journal->lock);
    errint_t error = journal_buffer_write(&journal->buffer, journal->fd, journal->end,
                                          journal->base, frame, &length);
    cleanup_lock pthread_mutex_t *lock = mob_lock(&journal->lock);
    if (error) {
        journal->last_length = 0;
        if (!cut(journal)) {
            journal->wanted = true;
            pthread_cond_broadcast(&journal->changed);
        }
        return error;
    }
    journal->end += length;
    journal->log_bytes = journal->end;
    journal->last_length = length;
    journal->last_before = journal->written;
    journal->written = journal->next_sequence++;
    uint64_t limit = 2 * journal->snapshot_bytes;
    if (limit < journal->log_limit)
        limit = journal->log_limit;
    if (!journal->wanted && journal->end > limit) {
        journal->wanted = true;
        pthread_cond_broadcast(&journal->changed);
    }
    return 0;
}

/* Its number isn't given again: somebody may be syncing up to it. */
void journal_take_back(struct journal *journal)
{
    if (!journal->last_length)
        return;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&journal->lock);
    journal->end -= journal->last_length;
    journal->log_bytes = journal->end;
    journal->last_length = 0;
    journal->written = journal->last_before;
    /* No frame may claim that what comes in its place was durable. */
    if (journal->synced > journal->written)
        journal->synced = journal->written;
    if (journal->target > journal->written)
        journal->target = journal->written;
    if (!cut(journal)) {
        /* A replay would carry it out: only a snapshot says again what is. */
        journal_note_failure(journal, -EIO);
        journal->wanted = true;
    }
    pthread_cond_broadcast(&journal->changed);
}

/* --- durability --- */

uint64_t journal_written(struct journal *journal)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&journal->lock);
    return journal->written;
}

/* The mark is for the next server, if this one is killed: the kernel reports a failure once, and
 * then calls the pages that it has dropped clean. */
void journal_note_failure(struct journal *journal, errint_t error)
{
    journal->usage.errors++;
    journal->covered = false;
    journal->failures++;
    journal->last_error = error;
    int fd =
        openat(journal->dir_fd, FAILED_NAME, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    journal->failed = true;
    mob_cleanup_fd(&fd);
}

void journal_forget_failure(struct journal *journal)
{
    if (journal->failed && unlinkat(journal->dir_fd, FAILED_NAME, 0) < 0 && errno != ENOENT)
        mob_log_error("store: %s/%s: %s", journal->path, FAILED_NAME, strerror(errno));
    journal->failed = false;
}

/* Waits for an attempt to make a snapshot that begins after this call. Locked. */
static errint_t wait_for_snapshot(struct journal *journal)
{
    uint64_t until = journal->attempts + 1 + journal->attempting;
    if (!journal->runs || atomic_load(&journal->stop))
        return -EIO;
    journal->wanted = journal->urgent = true;
    pthread_cond_broadcast(&journal->changed);
    while (journal->attempts < until && !journal->covered && !atomic_load(&journal->stop))
        pthread_cond_wait(&journal->changed, &journal->lock);
    return journal->covered ? 0 : journal->last_error ? journal->last_error : -EIO;
}

/* Locked; unlocks meanwhile. */
static void sync_files(struct journal *journal)
{
    unsigned changes = journal->dir_changes;
    bool dir_too = changes != journal->dir_synced;
    int fd = journal->fd, old_fd = journal->old_fd;
    journal->target = journal->written;
    journal->syncing = true;
    pthread_mutex_unlock(&journal->lock);
    errint_t error = old_fd >= 0 && fdatasync(old_fd) < 0 ? -errno : 0;
    if (!error && fdatasync(fd) < 0)
        error = -errno;
    if (!error && dir_too && fsync(journal->dir_fd) < 0)
        error = -errno;
    pthread_mutex_lock(&journal->lock);
    journal->syncing = false;
    if (!error)
        journal->dir_synced = changes;
    journal->usage.syncs++;
    if (error) {
        /* What the disk has, nobody can say: the kernel drops what it could not write. */
        mob_log_error("store: %s can't be synced: %s", journal->path, strerror(-error));
        journal_note_failure(journal, error);
    } else if (journal->target > journal->synced) {
        journal->synced = journal->target;
    }
    pthread_cond_broadcast(&journal->changed);
}

errint_t journal_sync(struct journal *journal, uint64_t sequence)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&journal->lock);
    /* What was taken back since is not waited for. */
    while (!journal->covered ||
           (journal->synced < sequence && journal->synced < journal->written)) {
        if (journal->syncing) {
            pthread_cond_wait(&journal->changed, &journal->lock);
        } else if (!journal->covered) {
            errint_t error = wait_for_snapshot(journal);
            if (error)
                return error;
        } else {
            sync_files(journal);
        }
    }
    return 0;
}

void journal_usage(struct journal *journal, struct journal_usage *out)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&journal->lock);
    *out = journal->usage;
    out->durable = journal->covered;
    out->bytes = journal->log_bytes + journal->snapshot_bytes;
}
