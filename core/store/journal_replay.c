/* Taking the journal up: where LMDB can be trusted, at its end; else LMDB is made from it. */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "core/base/log.h"
#include "core/base/util.h"
#include "core/store/journal_internal.h"
#include "core/store/meta.h"

/* What a transaction of the replay puts at most, beyond one frame. */
#define REPLAY_BYTES (UINT64_C(32) << 20)

static uint64_t highest_base(const struct journal *journal)
{
    uint64_t highest = 0;
    const struct journal_files *lists[] = {&journal->logs, &journal->snapshots};
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(lists); i++)
        if (lists[i]->count && lists[i]->bases[lists[i]->count - 1] > highest)
            highest = lists[i]->bases[lists[i]->count - 1];
    return highest;
}

/* A new log after `written`; nothing is covered before there is a snapshot. */
static errint_t begin_anew(struct journal *journal, uint64_t written, struct mob_error *err)
{
    int fd;
    errint_t error = journal_make_log(journal, written, &fd);
    if (error)
        return mob_error_set(err, error, "%s: no log can be made: %s", journal->path,
                             strerror(-error));
    journal->written = written;
    journal->next_sequence = written + 1;
    journal->covered = false;
    journal_use_log(journal, fd, written, sizeof(struct journal_file_header));
    return 0;
}

static void note_snapshots(struct journal *journal)
{
    const struct journal_files *files = &journal->snapshots;
    char name[JOURNAL_NAME_BYTES];
    struct stat info;
    if (!files->count)
        return;
    journal->snapshot = files->bases[files->count - 1];
    if (files->count > 1)
        journal->previous = files->bases[files->count - 2];
    if (fstatat(journal->dir_fd, journal_name(journal->snapshot, "snapshot", name), &info, 0) == 0)
        journal->snapshot_bytes = (uint64_t)info.st_size;
}

/* --- the end of the log, where LMDB is as it was left --- */

/* The last frame of what LMDB has carried out; source->size is its end then. -ENOENT: there is none
 * in this file. */
static errint_t find_end(struct journal_source *source, uint64_t last_txn,
                         struct journal_frame *frame)
{
    uint64_t offset;
    errint_t error;
    const uint8_t *operations;
    while (!(error = journal_last(source, &offset, frame)) && frame->txn > last_txn)
        source->size = offset;
    if (error != -EBADMSG)
        return error;
    /* A write that was cut short: what is whole before it counts. */
    struct journal_frame next;
    uint64_t end = offset = sizeof(struct journal_file_header);
    error = -ENOENT;
    while (journal_next(source, &offset, &next, &operations) == 1 && next.txn <= last_txn) {
        *frame = next;
        end = offset;
        error = 0;
    }
    source->size = end;
    return error;
}

/* Of an older file, whole, that ends where the newest log begins. */
static bool ends_with(struct journal *journal, uint64_t base, const char *suffix, uint64_t txn)
{
    struct journal_source source;
    struct journal_frame frame;
    uint64_t offset;
    if (journal_source_open(journal, base, suffix, &source, NULL))
        return false;
    bool same = journal_last(&source, &offset, &frame) == 0 && frame.txn == txn;
    journal_source_close(&source);
    return same;
}

/* Whether what is before an empty newest log is LMDB's last transaction. */
static bool precedes(struct journal *journal, uint64_t base, uint64_t last_txn)
{
    const struct journal_files *logs = &journal->logs;
    if (journal->snapshot == base)
        return ends_with(journal, base, "snapshot", last_txn);
    return logs->count > 1 && ends_with(journal, logs->bases[logs->count - 2], "log", last_txn);
}

/* A log between the snapshot and the newest may not have been synced. */
static void reopen_old_log(struct journal *journal)
{
    const struct journal_files *logs = &journal->logs;
    char name[JOURNAL_NAME_BYTES];
    if (logs->count > 1 && journal->snapshot < logs->bases[logs->count - 1])
        journal->old_fd =
            openat(journal->dir_fd, journal_name(logs->bases[logs->count - 2], "log", name),
                   O_RDWR | O_CLOEXEC | O_NOFOLLOW);
}

static errint_t use_newest(struct journal *journal, uint64_t base, uint64_t end,
                           struct mob_error *err)
{
    char name[JOURNAL_NAME_BYTES];
    journal_name(base, "log", name);
    cleanup_fd int fd = openat(journal->dir_fd, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 || ftruncate(fd, (off_t)end) < 0)
        return mob_error_set(err, -errno, "%s/%s: %s", journal->path, name, strerror(errno));
    journal_use_log(journal, steal_fd(&fd), base, end);
    return 0;
}

errint_t journal_resume(struct journal *journal, uint64_t last_txn, struct mob_error *err)
{
    const struct journal_files *logs = &journal->logs;
    struct journal_source source;
    struct journal_frame frame = {0};
    uint64_t highest = highest_base(journal);
    note_snapshots(journal);
    if (!logs->count)
        return begin_anew(journal, highest, err);
    uint64_t base = logs->bases[logs->count - 1];
    errint_t error = journal_source_open(journal, base, "log", &source, err);
    if (error && error != -EBADMSG)
        return error;
    if (error)
        return begin_anew(journal, highest + 1, err); /* the snapshot that follows replaces it */
    error = find_end(&source, last_txn, &frame);
    uint64_t end = source.size;
    journal_source_close(&source);
    uint64_t written = error ? base : frame.sequence;
    bool same = error ? precedes(journal, base, last_txn) : frame.txn == last_txn;
    if (error && error != -ENOENT)
        return mob_error_set(err, error, "%s: %s", journal->path, strerror(-error));
    if (!same || journal->snapshot == UINT64_MAX || journal->snapshot > written)
        return begin_anew(journal, (written > highest ? written : highest) + 1, err);
    reopen_old_log(journal);
    journal->written = written;
    journal->next_sequence = written + 1;
    journal->synced = journal->snapshot;
    journal->covered = true;
    return use_newest(journal, base, end, err);
}

/* --- replay --- */

struct replay {
    struct journal *journal;
    struct meta *meta;
    MDB_txn *txn;
    uint64_t put_bytes; /* in the transaction */
    uint64_t sequence;  /* carried out up to this */
    bool damaged;
};

static errint_t end_txn(struct replay *replay, errint_t error)
{
    if (!replay->txn)
        return error;
    error = meta_end(replay->txn, error);
    replay->txn = NULL;
    return error;
}

static errint_t operation(struct replay *replay, const uint8_t *bytes, uint64_t left,
                          uint64_t *length)
{
    struct journal_operation head;
    if (left < sizeof head)
        return -EBADMSG;
    memcpy(&head, bytes, sizeof head);
    const uint8_t *key = bytes + sizeof head, *value = key + head.key_bytes;
    *length = sizeof head + head.key_bytes + (uint64_t)head.value_bytes;
    if (*length > left || !head.key_bytes || head.table >= META_TABLE_COUNT)
        return -EBADMSG;
    if (head.kind == OPERATION_PUT)
        return meta_put(replay->meta, replay->txn, head.table, key, head.key_bytes, value,
                        head.value_bytes);
    return head.kind == OPERATION_DELETE
               ? meta_delete(replay->meta, replay->txn, head.table, key, head.key_bytes)
               : -EBADMSG;
}

/* One frame's operations, in a transaction that takes several frames. */
static errint_t carry_out(struct replay *replay, const struct journal_frame *frame,
                          const uint8_t *operations)
{
    errint_t error = 0;
    uint64_t length;
    if (replay->txn && replay->put_bytes + frame->bytes > REPLAY_BYTES)
        error = end_txn(replay, 0);
    if (!error && !replay->txn) {
        error = meta_begin(replay->meta, REPLAY_BYTES + frame->bytes, &replay->txn);
        replay->put_bytes = 0;
        if (error)
            replay->txn = NULL;
    }
    for (uint64_t done = 0; !error && done < frame->bytes; done += length)
        error = operation(replay, operations + done, frame->bytes - done, &length);
    replay->put_bytes += frame->bytes;
    replay->sequence = frame->sequence;
    return error;
}

static void note_gap(struct replay *replay, uint64_t base, const char *suffix, uint64_t offset)
{
    replay->damaged = true;
    mob_log_error("store: %s/%016llx.%s is damaged at byte %llu; what can be read behind it is "
                  "taken",
                  replay->journal->path, (unsigned long long)base, suffix,
                  (unsigned long long)offset);
}

/* Frames above replay->sequence, up to `until`. */
static errint_t replay_log(struct replay *replay, uint64_t base, uint64_t until,
                           struct mob_error *err)
{
    struct journal_source source;
    struct journal_frame frame;
    const uint8_t *operations;
    uint64_t offset = sizeof(struct journal_file_header);
    errint_t error = journal_source_open(replay->journal, base, "log", &source, err);
    if (error == -EBADMSG) {
        mob_log_error("store: %s", err ? err->message : "a log is damaged");
        replay->damaged = true;
        return 0;
    }
    if (error)
        return error;
    for (int got; !error && (got = journal_next(&source, &offset, &frame, &operations)) != 0;) {
        uint64_t bad = offset;
        if (got == -EBADMSG && !journal_skip(&source, &offset))
            break; /* a torn end */
        if (got == -EBADMSG)
            note_gap(replay, base, "log", bad);
        else if (got < 0)
            error = got;
        else if (frame.kind == FRAME_CHANGES && frame.sequence > replay->sequence &&
                 frame.sequence <= until)
            error = carry_out(replay, &frame, operations);
    }
    journal_source_close(&source);
    return error ? mob_error_set(err, error, "%s/%016llx.log: %s", replay->journal->path,
                                 (unsigned long long)base, strerror(-error))
                 : 0;
}

/* All of it, or 1 if it isn't whole and good and `salvage` is false. */
static errint_t replay_snapshot(struct replay *replay, uint64_t base, bool salvage,
                                struct mob_error *err)
{
    struct journal_source source;
    struct journal_frame frame;
    const uint8_t *operations;
    bool whole = false;
    uint64_t offset = sizeof(struct journal_file_header);
    errint_t error = journal_source_open(replay->journal, base, "snapshot", &source, err);
    if (error)
        return error == -EBADMSG ? 1 : error;
    for (int got; !error && (got = journal_next(&source, &offset, &frame, &operations)) != 0;) {
        uint64_t bad = offset;
        if (got == 1 && frame.kind == FRAME_SNAPSHOT_END)
            whole = true;
        else if (got == 1)
            error = frame.kind == FRAME_SNAPSHOT ? carry_out(replay, &frame, operations) : 1;
        else if (got != -EBADMSG)
            error = got;
        else if (!salvage || !journal_skip(&source, &offset))
            break;
        else
            note_gap(replay, base, "snapshot", bad);
    }
    journal_source_close(&source);
    if (!error && !whole && salvage)
        note_gap(replay, base, "snapshot", offset);
    else if (!error && !whole)
        error = 1;
    replay->sequence = base;
    return error;
}

static errint_t empty_tables(struct replay *replay)
{
    MDB_txn *txn;
    errint_t error = meta_begin(replay->meta, 0, &txn);
    if (error)
        return error;
    int code = 0;
    for (unsigned table = 0; table < META_TABLE_COUNT && !code; table++)
        code = mdb_drop(txn, replay->meta->tables[table], 0);
    return meta_end(txn, meta_error(code, "drop"));
}

/* The newest snapshot that is whole; if there is none, what can be read of the newest. */
static errint_t replay_snapshots(struct replay *replay, struct mob_error *err)
{
    const struct journal_files *files = &replay->journal->snapshots;
    for (size_t i = files->count; i-- > 0;) {
        errint_t error = end_txn(replay, replay_snapshot(replay, files->bases[i], false, err));
        if (error != 1)
            return error;
        mob_log_error("store: the snapshot %016llx in %s is damaged%s",
                      (unsigned long long)files->bases[i], replay->journal->path,
                      i ? "; the one before it is used, and the logs since" : "");
        error = empty_tables(replay);
        if (error)
            return mob_error_set(err, error, "the tables can't be emptied: %s", strerror(-error));
    }
    if (!files->count)
        return mob_error_set(err, -EIO, "%s has no snapshot", replay->journal->path);
    replay->damaged = true;
    errint_t error =
        end_txn(replay, replay_snapshot(replay, files->bases[files->count - 1], true, err));
    return error == 1
               ? mob_error_set(err, -EIO, "no snapshot in %s can be read", replay->journal->path)
               : error;
}

/* Each log goes to where the next one begins; what is missing there is damage. */
static errint_t replay_logs(struct replay *replay, struct mob_error *err)
{
    const struct journal_files *logs = &replay->journal->logs;
    if (logs->count && logs->bases[0] > replay->sequence) {
        mob_log_error("store: the log after snapshot %016llx is missing in %s",
                      (unsigned long long)replay->sequence, replay->journal->path);
        replay->damaged = true;
    }
    for (size_t i = 0; i < logs->count; i++) {
        bool last = i + 1 == logs->count;
        uint64_t until = last ? UINT64_MAX : logs->bases[i + 1];
        if (until <= replay->sequence)
            continue;
        errint_t error = end_txn(replay, replay_log(replay, logs->bases[i], until, err));
        if (error)
            return error;
        if (!last && replay->sequence < until) {
            mob_log_error("store: %s/%016llx.log ends too early: the last changes in it are lost",
                          replay->journal->path, (unsigned long long)logs->bases[i]);
            replay->damaged = true;
            replay->sequence = until;
        }
    }
    return 0;
}

errint_t journal_replay(struct journal *journal, struct meta *meta, bool *damaged,
                        struct mob_error *err)
{
    struct replay replay = {.journal = journal, .meta = meta};
    struct mob_error why = {0};
    note_snapshots(journal);
    errint_t error = replay_snapshots(&replay, &why);
    if (!error)
        error = replay_logs(&replay, &why);
    if (error)
        return mob_error_set(err, error, "%s", why.message);
    *damaged = replay.damaged;
    return begin_anew(journal, replay.sequence, err);
}
