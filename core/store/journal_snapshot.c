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
    uint64_t frames;   /* written */
    uint64_t failures; /* of the log when it began */
};

static errint_t write_frame(struct writer *writer, enum journal_frame_kind kind)
{
    uint64_t length;
    struct journal_frame frame = {.kind = kind,
                                  .sequence = writer->sequence,
                                  .txn = writer->txn,
                                  .previous = writer->frames,
                                  .durable = writer->sequence};
    errint_t error = journal_buffer_write(&writer->buffer, writer->fd, writer->end,
                                          writer->sequence, frame, &length);
    if (error)
        return error;
    writer->end += length;
    writer->frames++;
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
        uint64_t bytes = journal_buffer_bytes(&writer->buffer);
        if (bytes && bytes + value.mv_size >= FRAME_BYTES)
            error = write_frame(writer, FRAME_SNAPSHOT);
        if (!error)
            error = journal_buffer_add(&writer->buffer, OPERATION_PUT, table, key.mv_data,
                                       key.mv_size, value.mv_data, value.mv_size);
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
    else if (!error)
        error = journal_note_base(&journal->snapshots, writer->sequence);
    if (!error && fsync(journal->dir_fd) < 0)
        error = -errno;
    if (error)
        unlinkat(journal->dir_fd, new_name, 0);
    return error;
}

/* The log before the last one need not be kept open once it was synced. False: it can't be. */
static bool retire_old_log(struct journal *journal)
{
    pthread_mutex_lock(&journal->lock);
    int fd = journal->old_fd;
    pthread_mutex_unlock(&journal->lock);
    if (fd < 0)
        return true;
    errint_t error = fdatasync(fd) < 0 ? -errno : 0;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&journal->lock);
    journal->old_fd = -1;
    if (error) {
        mob_log_error("store: a log in %s can't be synced: %s", journal->path, strerror(-error));
        journal_note_failure(journal, error);
    }
    /* One that is under way may still use it; those that follow don't. */
    uint64_t syncs = journal->usage.syncs;
    while (journal->syncing && journal->usage.syncs == syncs)
        pthread_cond_wait(&journal->changed, &journal->lock);
    close(fd);
    return !error;
}

/* The state that the snapshot is of: a reading transaction, and the log ends there. */
static errint_t begin(struct journal *journal, struct writer *writer, MDB_txn **txn)
{
    int fd = -1;
    cleanup_lock pthread_mutex_t *writing = mob_lock(journal->writer);
    cleanup_lock pthread_mutex_t *lock = mob_lock(&journal->lock);
    bool empty = journal->end == sizeof(struct journal_file_header) && !journal->broken &&
                 journal->base == journal->written && !journal->failed;
    errint_t error =
        meta_error(mdb_txn_begin(journal->meta->env, NULL, MDB_RDONLY, txn), "snapshot");
    if (error)
        return error;
    /* Last: once there is a new log, frames must go to it, or a replay would not find them. */
    error = empty ? 0 : journal_make_log(journal, journal->written, &fd);
    if (error) {
        mdb_txn_abort(*txn);
        return error;
    }
    writer->failures = journal->failures;
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

static void complete(struct journal *journal, const struct writer *writer)
{
    pthread_mutex_lock(&journal->lock);
    /* What was written to the log since then may be lost, if a sync of it has failed meanwhile. */
    if (journal->failures == writer->failures) {
        journal->covered = true;
        journal->urgent = false;
        journal_forget_failure(journal);
    }
    if (writer->sequence > journal->synced)
        journal->synced = writer->sequence;
    if (journal->snapshot != writer->sequence)
        journal->previous = journal->snapshot;
    journal->snapshot = writer->sequence;
    journal->snapshot_bytes = writer->end;
    journal->usage.snapshots++;
    uint64_t least = journal->previous == UINT64_MAX ? journal->snapshot : journal->previous;
    pthread_mutex_unlock(&journal->lock);
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
    if (!retire_old_log(journal))
        writer.failures++; /* the snapshot says what is in that log */
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
    while (!journal->urgent && !atomic_load(&journal->stop)) {
        if (!failed && journal->wanted)
            break;
        if (!failed)
            pthread_cond_wait(&journal->changed, &journal->lock);
        else if (pthread_cond_timedwait(&journal->changed, &journal->lock, &until) == ETIMEDOUT)
            break;
    }
}

static void *snapshot_main(void *argument)
{
    struct journal *journal = argument;
    bool failed = false;
    pthread_mutex_lock(&journal->lock);
    for (;;) {
        wait_until_wanted(journal, failed);
        if (atomic_load(&journal->stop))
            break;
        journal->wanted = journal->urgent = false;
        journal->attempting = true;
        pthread_mutex_unlock(&journal->lock);
        errint_t error = attempt(journal);
        if (error && error != -ECANCELED)
            mob_log_error("store: no snapshot can be written to %s: %s", journal->path,
                          strerror(-error));
        pthread_mutex_lock(&journal->lock);
        journal->usage.errors += error != 0;
        if (error)
            journal->last_error = error;
        journal->attempting = false;
        journal->attempts++;
        failed = error || !journal->covered;
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
