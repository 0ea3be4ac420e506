/* Snapshots: the tables, written whole, so that older logs can go. One thread makes them. */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "core/base/log.h"
#include "core/base/util.h"
#include "core/store/journal_internal.h"
#include "core/store/meta.h"

enum { FRAME_BYTES = 1 << 20 };
/* After a failure, before the next attempt that nobody waits for. */
#define RETRY_SECONDS 10

struct writer {
    struct journal *journal;
    struct journal_buffer buffer;
    int fd;
    uint64_t sequence, txn, end;
    uint64_t breaks; /* of the journal, when it began */
};

static errint_t write_frame(struct writer *writer, enum journal_frame_kind kind)
{
    uint64_t length;
    struct journal_frame frame = {.kind = kind, .sequence = writer->sequence, .txn = writer->txn};
    errint_t error = journal_buffer_write(&writer->buffer, writer->fd, writer->end,
                                          writer->sequence, frame, &length);
    if (error)
        return error;
    writer->end += length;
    journal_buffer_clear(&writer->buffer);
    return atomic_load(&writer->journal->stop) ? -ECANCELED : 0;
}

static errint_t write_table(struct writer *writer, MDB_txn *txn, unsigned table)
{
    MDB_cursor *cursor;
    MDB_val key, value;
    struct meta *meta = writer->journal->meta;
    int code = mdb_cursor_open(txn, meta->tables[table], &cursor);
    if (code)
        return meta_error(code, "snapshot");
    errint_t error = 0;
    while (!error && (code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) == 0) {
        if (!meta_unseal(table, &key, &value))
            continue; /* damaged: it was logged, and must not come to look whole */
        error = journal_buffer_add(&writer->buffer, OPERATION_PUT, table, key.mv_data, key.mv_size,
                                   value.mv_data, value.mv_size);
        if (!error && journal_buffer_bytes(&writer->buffer) >= FRAME_BYTES)
            error = write_frame(writer, FRAME_SNAPSHOT);
    }
    mdb_cursor_close(cursor);
    if (error || code == MDB_NOTFOUND)
        return error;
    return meta_error(code, "snapshot");
}

static errint_t write_tables(struct writer *writer, MDB_txn *txn)
{
    struct journal *journal = writer->journal;
    journal_buffer_clear(&writer->buffer);
    errint_t error = journal_write_header(journal, writer->fd, writer->sequence);
    writer->end = sizeof(struct journal_file_header);
    for (unsigned table = 0; table < META_TABLE_COUNT && !error; table++)
        error = write_table(writer, txn, table);
    if (!error && journal_buffer_bytes(&writer->buffer))
        error = write_frame(writer, FRAME_SNAPSHOT);
    if (!error)
        error = write_frame(writer, FRAME_SNAPSHOT_END);
    if (!error && fsync(writer->fd) < 0)
        error = -errno;
    return error;
}

/* Under its own name only when it is whole and on disk. */
static errint_t write_snapshot(struct writer *writer, MDB_txn *txn)
{
    struct journal *journal = writer->journal;
    char new_name[JOURNAL_NAME_BYTES], name[JOURNAL_NAME_BYTES];
    journal_name(writer->sequence, "new", new_name);
    cleanup_fd int fd = openat(journal->dir_fd, new_name,
                               O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -errno;
    writer->fd = fd;
    errint_t error = write_tables(writer, txn);
    journal_name(writer->sequence, "snapshot", name);
    if (!error && renameat(journal->dir_fd, new_name, journal->dir_fd, name) < 0)
        error = -errno;
    if (!error && fsync(journal->dir_fd) < 0)
        error = -errno;
    if (error)
        unlinkat(journal->dir_fd, new_name, 0);
    return error;
}

/* The log before the last one need not be kept open once it was synced. */
static void retire_old_log(struct journal *journal)
{
    pthread_mutex_lock(&journal->lock);
    int fd = journal->old_fd;
    pthread_mutex_unlock(&journal->lock);
    if (fd < 0)
        return;
    errint_t error = fdatasync(fd) < 0 ? -errno : 0;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&journal->lock);
    while (journal->syncing)
        pthread_cond_wait(&journal->changed, &journal->lock);
    if (error) {
        mob_log_error("store: a log in %s can't be synced: %s", journal->path, strerror(-error));
        journal->usage.errors++;
        journal->covered = false;
    }
    journal->old_fd = -1;
    close(fd);
}

/* The state that the snapshot is of: a reading transaction, and the log ends there. */
static errint_t begin(struct journal *journal, struct writer *writer, MDB_txn **txn)
{
    int fd = -1;
    cleanup_lock pthread_mutex_t *writing = mob_lock(journal->writer);
    cleanup_lock pthread_mutex_t *lock = mob_lock(&journal->lock);
    bool empty = journal->end == sizeof(struct journal_file_header) && !journal->broken &&
                 journal->base == journal->written;
    errint_t error = empty ? 0 : journal_make_log(journal, journal->written, &fd);
    if (!error)
        error = meta_error(mdb_txn_begin(journal->meta->env, NULL, MDB_RDONLY, txn), "snapshot");
    if (error) {
        mob_cleanup_fd(&fd); /* an empty log does no harm */
        return error;
    }
    writer->breaks = journal->breaks;
    writer->sequence = journal->written;
    writer->txn = mdb_txn_id(*txn);
    if (!empty) {
        journal->old_fd = journal->fd;
        journal_use_log(journal, fd, journal->written, sizeof(struct journal_file_header));
    }
    return 0;
}

static void remove_older(struct journal *journal, struct journal_files *files, const char *suffix,
                         uint64_t least)
{
    char name[JOURNAL_NAME_BYTES];
    size_t kept = 0;
    for (size_t i = 0; i < files->count; i++) {
        if (files->bases[i] >= least)
            files->bases[kept++] = files->bases[i];
        else
            unlinkat(journal->dir_fd, journal_name(files->bases[i], suffix, name), 0);
    }
    files->count = kept;
}

static errint_t note_base(struct journal_files *files, uint64_t base)
{
    if (files->count && files->bases[files->count - 1] == base)
        return 0;
    uint64_t *bases = realloc(files->bases, (files->count + 1) * sizeof *bases);
    if (!bases)
        return -ENOMEM;
    files->bases = bases;
    files->bases[files->count++] = base;
    return 0;
}

static void complete(struct journal *journal, const struct writer *writer)
{
    pthread_mutex_lock(&journal->lock);
    /* Unless the new log was broken meanwhile. Who asked for a snapshot since it began has it; a
     * log that is too long will say so again. */
    journal->covered = journal->breaks == writer->breaks;
    journal->wanted = !journal->covered;
    if (writer->sequence > journal->synced)
        journal->synced = writer->sequence;
    if (journal->snapshot != writer->sequence)
        journal->previous = journal->snapshot;
    journal->snapshot = writer->sequence;
    journal->snapshot_bytes = writer->end;
    journal->usage.snapshots++;
    uint64_t least = journal->previous == UINT64_MAX ? journal->snapshot : journal->previous;
    pthread_mutex_unlock(&journal->lock);
    if (note_base(&journal->logs, journal->base) ||
        note_base(&journal->snapshots, writer->sequence))
        return; /* no memory to note them with: older ones are removed another time */
    remove_older(journal, &journal->snapshots, "snapshot", least);
    remove_older(journal, &journal->logs, "log", least);
}

static errint_t attempt(struct journal *journal)
{
    struct writer writer = {.journal = journal};
    MDB_txn *txn;
    retire_old_log(journal);
    errint_t error = begin(journal, &writer, &txn);
    if (error)
        return error;
    retire_old_log(journal);
    error = write_snapshot(&writer, txn);
    mdb_txn_abort(txn);
    free(writer.buffer.bytes);
    if (!error)
        complete(journal, &writer);
    return error;
}

/* Locked. Waits until a snapshot is wanted; after a failure, for some time. */
static void wait_until_wanted(struct journal *journal, bool failed)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += RETRY_SECONDS;
    while (!journal->wanted && !atomic_load(&journal->stop)) {
        if (!failed)
            pthread_cond_wait(&journal->changed, &journal->lock);
        else if (pthread_cond_timedwait(&journal->changed, &journal->lock, &until) == ETIMEDOUT)
            journal->wanted = true;
    }
}

static void *snapshot_main(void *argument)
{
    struct journal *journal = argument;
    errint_t error = 0;
    pthread_mutex_lock(&journal->lock);
    for (;;) {
        wait_until_wanted(journal, error);
        if (atomic_load(&journal->stop))
            break;
        journal->wanted = false;
        pthread_mutex_unlock(&journal->lock);
        error = attempt(journal);
        if (error && error != -ECANCELED)
            mob_log_error("store: no snapshot can be written to %s: %s", journal->path,
                          strerror(-error));
        pthread_mutex_lock(&journal->lock);
        journal->usage.errors += error != 0;
        journal->last_error = error;
        journal->attempts++;
        pthread_cond_broadcast(&journal->changed);
    }
    pthread_mutex_unlock(&journal->lock);
    return NULL;
}

errint_t journal_start(struct journal *journal, struct meta *meta)
{
    journal->meta = meta;
    journal->wanted = !journal->covered;
    int code = pthread_create(&journal->thread, NULL, snapshot_main, journal);
    journal->runs = !code;
    if (!code)
        pthread_setname_np(journal->thread, "journal");
    return -code;
}
