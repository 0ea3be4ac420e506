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

static void raise_to(uint64_t *most, uint64_t value)
{
    if (*most < value)
        *most = value;
}

static errint_t scan_log(struct journal *journal, uint64_t base, uint64_t *durable, uint64_t *seen)
{
    struct journal_source source;
    struct journal_frame frame;
    const uint8_t *operations;
    struct mob_error why;
    bool good;
    uint64_t offset = sizeof(struct journal_file_header);
    errint_t error = journal_source_open_any(journal, base, "log", &source, &good, &why);
    if (error)
        return error;
    for (int got; (got = journal_next(&source, &offset, &frame, &operations)) != 0;) {
        if (got != 1 && (got != -EBADMSG || !journal_skip(&source, &offset)))
            break;
        if (got != 1 || frame.kind != FRAME_CHANGES)
            continue;
        raise_to(seen, frame.sequence);
        if (frame.durable < frame.sequence)
            raise_to(durable, frame.durable);
    }
    journal_source_close(&source);
    return 0;
}

/* All that can be read of the logs: up to which number everything was durable, and the highest. */
static errint_t scan_logs(struct journal *journal, uint64_t *durable, uint64_t *seen)
{
    errint_t error = 0;
    for (size_t i = 0; i < journal->logs.count && !error; i++)
        error = scan_log(journal, journal->logs.bases[i], durable, seen);
    return error;
}

/* A new log after `written`; nothing is covered before there is a snapshot. Numbers up to `seen`
 * are not given again. */
static errint_t begin_anew(struct journal *journal, uint64_t written, uint64_t seen,
                           struct mob_error *err)
{
    int fd;
    errint_t error = journal_make_log(journal, written, &fd);
    if (error)
        return mob_error_set(err, error, "%s: no log can be made: %s", journal->path,
                             strerror(-error));
    journal->written = written;
    journal->next_sequence = (written > seen ? written : seen) + 1;
    journal->covered = false;
    journal_use_log(journal, fd, written, sizeof(struct journal_file_header));
    return 0;
}

/* The same, where the log does not go on from what is there: a number is left out, so that a replay
 * sees it. What is there serves until there is a snapshot, and no longer. */
static errint_t begin_apart(struct journal *journal, struct mob_error *err)
{
    uint64_t durable = 0, seen = highest_base(journal);
    errint_t error = scan_logs(journal, &durable, &seen);
    if (error)
        return mob_error_set(err, error, "%s: %s", journal->path, strerror(-error));
    journal->snapshot = journal->previous = UINT64_MAX;
    journal->snapshot_bytes = 0;
    return begin_anew(journal, seen + 1, 0, err);
}

/* The last of the first `count` is the one in use. */
static void note_snapshots(struct journal *journal, size_t count)
{
    const struct journal_files *files = &journal->snapshots;
    char name[JOURNAL_NAME_BYTES];
    struct stat info;
    if (!count)
        return;
    journal->snapshot = files->bases[count - 1];
    if (count > 1)
        journal->previous = files->bases[count - 2];
    if (fstatat(journal->dir_fd, journal_name(journal->snapshot, "snapshot", name), &info, 0) == 0)
        journal->snapshot_bytes = (uint64_t)info.st_size;
}

/* --- the end of the log, where LMDB is as it was left --- */

/* The last frame of what LMDB has carried out; source->size is its end then. -ENOENT: there is none
 * in this file. *seen: the highest sequence number. */
static errint_t find_end(struct journal_source *source, uint64_t last_txn,
                         struct journal_frame *frame, uint64_t *seen)
{
    uint64_t offset;
    errint_t error;
    const uint8_t *operations;
    *seen = 0;
    while (!(error = journal_last(source, &offset, frame))) {
        raise_to(seen, frame->sequence);
        if (frame->txn <= last_txn)
            break;
        source->size = offset;
    }
    if (error != -EBADMSG)
        return error;
    /* A write that was cut short: what is whole before it counts. */
    struct journal_frame next;
    uint64_t end = offset = sizeof(struct journal_file_header);
    bool behind = false;
    error = -ENOENT;
    while (journal_next(source, &offset, &next, &operations) == 1) {
        raise_to(seen, next.sequence);
        behind |= next.txn > last_txn;
        if (behind)
            continue;
        *frame = next;
        end = offset;
        error = 0;
    }
    source->size = end;
    return error;
}

/* Is the last frame of this file the one with this sequence number? */
static bool ends_with(struct journal *journal, uint64_t base, const char *suffix, uint64_t sequence,
                      struct journal_frame *frame)
{
    struct journal_source source;
    uint64_t offset;
    struct mob_error why;
    if (journal_source_open(journal, base, suffix, &source, &why))
        return false;
    bool same = journal_last(&source, &offset, frame) == 0 && frame->sequence == sequence;
    journal_source_close(&source);
    return same;
}

/* Do the newest snapshot and the logs since make up what precedes the newest log? *frame: the last
 * one there. */
static bool is_chain(struct journal *journal, struct journal_frame *frame)
{
    const struct journal_files *logs = &journal->logs;
    if (journal->snapshot == UINT64_MAX ||
        !ends_with(journal, journal->snapshot, "snapshot", journal->snapshot, frame) ||
        frame->kind != FRAME_SNAPSHOT_END)
        return false;
    size_t i = 0;
    while (i < logs->count && logs->bases[i] < journal->snapshot)
        i++;
    if (i == logs->count || logs->bases[i] != journal->snapshot)
        return false;
    for (; i + 1 < logs->count; i++)
        if (!ends_with(journal, logs->bases[i], "log", logs->bases[i + 1], frame))
            return false;
    return true;
}

/* A log between the snapshot and the newest may not have been synced. */
static errint_t reopen_old_log(struct journal *journal)
{
    const struct journal_files *logs = &journal->logs;
    char name[JOURNAL_NAME_BYTES];
    if (logs->count < 2 || journal->snapshot == logs->bases[logs->count - 1])
        return 0;
    journal->old_fd =
        openat(journal->dir_fd, journal_name(logs->bases[logs->count - 2], "log", name),
               O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    return journal->old_fd < 0 ? -errno : 0;
}

static errint_t use_newest(struct journal *journal, uint64_t base, uint64_t end,
                           struct mob_error *err)
{
    char name[JOURNAL_NAME_BYTES];
    struct stat info;
    journal_name(base, "log", name);
    cleanup_fd int fd = openat(journal->dir_fd, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    errint_t error = fd < 0 || fstat(fd, &info) < 0 ? -errno : reopen_old_log(journal);
    /* Only if need be: it gives up what was allocated behind the end, too. */
    if (!error && (uint64_t)info.st_size != end && ftruncate(fd, (off_t)end) < 0)
        error = -errno;
    if (error)
        return mob_error_set(err, error, "%s/%s: %s", journal->path, name, strerror(-error));
    journal_use_log(journal, steal_fd(&fd), base, end);
    return 0;
}

errint_t journal_resume(struct journal *journal, uint64_t last_txn, struct mob_error *err)
{
    const struct journal_files *logs = &journal->logs;
    struct journal_source source;
    struct journal_frame frame = {0}, before = {0};
    struct mob_error why = {0};
    uint64_t seen;
    if (!logs->count && !journal->snapshots.count)
        return begin_anew(journal, 0, 0, err);
    note_snapshots(journal, journal->snapshots.count);
    if (!logs->count)
        return begin_apart(journal, err);
    uint64_t base = logs->bases[logs->count - 1];
    errint_t error = journal_source_open(journal, base, "log", &source, &why);
    if (error == -EBADMSG)
        return begin_apart(journal, err);
    if (error)
        return mob_error_set(err, error, "%s", why.message);
    error = find_end(&source, last_txn, &frame, &seen);
    uint64_t end = source.size;
    journal_source_close(&source);
    if (error && error != -ENOENT)
        return mob_error_set(err, error, "%s: %s", journal->path, strerror(-error));
    bool chain = is_chain(journal, &before);
    if (!chain || journal->failed || (error ? before.txn : frame.txn) != last_txn)
        return begin_apart(journal, err);
    journal->written = error ? base : frame.sequence;
    journal->next_sequence = (seen > journal->written ? seen : journal->written) + 1;
    journal->covered = true; /* and synced once it is asked for */
    return use_newest(journal, base, end, err);
}

/* --- replay --- */

struct replay {
    struct journal *journal;
    struct meta *meta;
    MDB_txn *txn;
    uint64_t put_bytes; /* in the transaction */
    uint64_t sequence;  /* carried out up to this */
    uint64_t seen;      /* the highest sequence number of all frames */
    bool scanned;
    uint64_t durable; /* everything up to this was; once the logs were scanned */
    size_t used;      /* which snapshot */
    bool damaged;
    bool ended; /* what follows is not taken */
};

static errint_t end_txn(struct replay *replay, errint_t error)
{
    if (!replay->txn)
        return error;
    error = meta_end(replay->txn, error);
    replay->txn = NULL;
    return error;
}

/* 0: there is none that can be carried out. */
static uint64_t operation_length(const struct replay *replay, const uint8_t *bytes, uint64_t left,
                                 struct journal_operation *head)
{
    if (left < sizeof *head)
        return 0;
    memcpy(head, bytes, sizeof *head);
    uint64_t length = sizeof *head + head->key_bytes + (uint64_t)head->value_bytes;
    return length <= left && head->table < META_TABLE_COUNT && head->key_bytes &&
                   head->key_bytes <= mdb_env_get_maxkeysize(replay->meta->env) &&
                   (head->kind == OPERATION_PUT ||
                    (head->kind == OPERATION_DELETE && !head->value_bytes))
               ? length
               : 0;
}

static bool is_well_formed(const struct replay *replay, const uint8_t *operations, uint64_t bytes)
{
    struct journal_operation head;
    uint64_t length;
    for (uint64_t done = 0; done < bytes; done += length)
        if (!(length = operation_length(replay, operations + done, bytes - done, &head)))
            return false;
    return true;
}

static errint_t operation(struct replay *replay, const uint8_t *bytes, uint64_t left,
                          uint64_t *length)
{
    struct journal_operation head;
    *length = operation_length(replay, bytes, left, &head);
    const uint8_t *key = bytes + sizeof head;
    return head.kind == OPERATION_PUT
               ? meta_put(replay->meta, replay->txn, head.table, key, head.key_bytes,
                          key + head.key_bytes, head.value_bytes)
               : meta_delete(replay->meta, replay->txn, head.table, key, head.key_bytes);
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

/* Something is missing after replay->sequence, and there is more behind it, in this log: is that
 * taken? */
static errint_t note_gap(struct replay *replay, uint64_t base)
{
    const struct journal_files *snapshots = &replay->journal->snapshots;
    errint_t error = 0;
    if (!replay->scanned) {
        if (snapshots->count) /* there is none of what wasn't */
            replay->durable = snapshots->bases[snapshots->count - 1];
        error = scan_logs(replay->journal, &replay->durable, &replay->seen);
    }
    if (error)
        return error;
    replay->scanned = true;
    bool lost = replay->durable > replay->sequence;
    const char *what = lost ? "is damaged: what follows transaction"
                            : "had not been written whole: it ends with transaction";
    mob_log(lost ? MOB_LOG_ERROR : MOB_LOG_WARNING, "store: %s/%016llx.log %s %llu%s",
            replay->journal->path, (unsigned long long)base, what,
            (unsigned long long)replay->sequence,
            lost ? " is lost; what can be read behind it is taken" : "");
    replay->damaged |= lost;
    replay->ended = !lost;
    return 0;
}

/* A frame's place in the chain. */
static errint_t take(struct replay *replay, uint64_t base, const struct journal_frame *frame,
                     const uint8_t *operations)
{
    errint_t error = 0;
    if (frame->previous != replay->sequence)
        error = note_gap(replay, base);
    return error || replay->ended ? error : carry_out(replay, frame, operations);
}

/* Nothing behind `offset` is a frame. Whether what was there had been durable, nobody can tell: the
 * next frame would have said so. */
static void note_end(const struct replay *replay, const struct journal_source *source,
                     uint64_t offset)
{
    mob_log_warning("store: %s/%016llx.log: its last %llu bytes are no whole transaction: they had "
                    "not been written whole, or are damaged; it ends with transaction %llu",
                    replay->journal->path, (unsigned long long)source->base,
                    (unsigned long long)(source->size - offset),
                    (unsigned long long)replay->sequence);
}

/* Frames above replay->sequence, up to `until`. */
static errint_t replay_frames(struct replay *replay, struct journal_source *source, uint64_t until)
{
    struct journal_frame frame;
    const uint8_t *operations;
    uint64_t offset = sizeof(struct journal_file_header);
    errint_t error = 0;
    while (!error && !replay->ended && replay->sequence < until) {
        int got = journal_next(source, &offset, &frame, &operations);
        if (got == 0)
            break;
        if (got == -EBADMSG && !journal_skip(source, &offset)) {
            if (until == UINT64_MAX) /* else the next log tells that something is missing */
                note_end(replay, source, offset);
            break;
        }
        if (got == -EBADMSG)
            continue;
        if (got < 0)
            return got;
        raise_to(&replay->seen, frame.sequence);
        if (frame.kind == FRAME_CHANGES && frame.sequence > replay->sequence &&
            frame.sequence <= until && is_well_formed(replay, operations, frame.bytes))
            error = take(replay, source->base, &frame, operations);
    }
    return error;
}

static errint_t replay_log(struct replay *replay, uint64_t base, uint64_t until,
                           struct mob_error *err)
{
    struct journal_source source;
    bool good;
    errint_t error = journal_source_open_any(replay->journal, base, "log", &source, &good, err);
    if (error)
        return error;
    if (base > replay->sequence)
        error = note_gap(replay, base);
    if (base > replay->sequence && !error && !replay->ended)
        replay->sequence = base;
    uint64_t before = replay->sequence;
    if (!error)
        error = replay_frames(replay, &source, until);
    journal_source_close(&source);
    if (!good && replay->sequence > before) {
        mob_log_error("store: %s/%016llx.log: its header is damaged", replay->journal->path,
                      (unsigned long long)base);
        replay->damaged = true;
    }
    return error ? mob_error_set(err, error, "%s/%016llx.log: %s", replay->journal->path,
                                 (unsigned long long)base, strerror(-error))
                 : 0;
}

static void note_bad_snapshot(struct replay *replay, uint64_t base, uint64_t offset)
{
    replay->damaged = true;
    mob_log_error("store: %s/%016llx.snapshot is damaged at byte %llu; what can be read behind it "
                  "is taken",
                  replay->journal->path, (unsigned long long)base, (unsigned long long)offset);
}

/* All of it, or 1 if it isn't whole and good and `salvage` is false. */
static errint_t replay_snapshot(struct replay *replay, uint64_t base, bool salvage,
                                struct mob_error *err)
{
    struct journal_source source;
    struct journal_frame frame;
    const uint8_t *operations;
    bool whole = false, good;
    uint64_t offset = sizeof(struct journal_file_header), frames = 0;
    errint_t error =
        journal_source_open_any(replay->journal, base, "snapshot", &source, &good, err);
    if (error)
        return error;
    while (!error && !whole && (good || salvage)) {
        uint64_t bad = offset;
        int got = journal_next(&source, &offset, &frame, &operations);
        bool ours = got == 1 && frame.sequence == base && (salvage || frame.previous == frames++) &&
                    is_well_formed(replay, operations, frame.bytes);
        if (ours && frame.kind == FRAME_SNAPSHOT_END)
            whole = true;
        else if (ours && frame.kind == FRAME_SNAPSHOT)
            error = carry_out(replay, &frame, operations);
        else if (got < 0 && got != -EBADMSG)
            error = got;
        else if (!got || !salvage || (got < 0 && !journal_skip(&source, &offset)))
            break;
        else
            note_bad_snapshot(replay, base, bad);
    }
    journal_source_close(&source);
    if (!error && !whole && salvage)
        note_bad_snapshot(replay, base, offset);
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
    struct journal *journal = replay->journal;
    const struct journal_files *files = &journal->snapshots;
    for (size_t i = files->count; i-- > 0;) {
        errint_t error = end_txn(replay, replay_snapshot(replay, files->bases[i], false, err));
        if (error != 1) {
            replay->used = i;
            return error;
        }
        mob_log_error("store: the snapshot %016llx in %s is damaged%s",
                      (unsigned long long)files->bases[i], journal->path,
                      i ? "; the one before it is used, and the logs since" : "");
        error = empty_tables(replay);
        if (error)
            return mob_error_set(err, error, "the tables can't be emptied: %s", strerror(-error));
    }
    if (!files->count)
        return mob_error_set(err, -EIO, "%s has no snapshot", journal->path);
    replay->damaged = true;
    replay->used = files->count - 1;
    return end_txn(replay, replay_snapshot(replay, files->bases[replay->used], true, err));
}

/* Whether frames go to this log: one that has no header yet may be what a power cut has left. */
static bool has_begun(struct journal *journal, uint64_t base)
{
    struct journal_source source;
    struct journal_frame frame;
    const uint8_t *operations;
    struct mob_error why;
    bool good;
    uint64_t offset = sizeof(struct journal_file_header);
    if (journal_source_open_any(journal, base, "log", &source, &good, &why))
        return true;
    bool begun = good || journal_next(&source, &offset, &frame, &operations) == 1;
    journal_source_close(&source);
    return begun;
}

/* Each log goes to where the next one begins. */
static errint_t replay_logs(struct replay *replay, struct mob_error *err)
{
    struct journal *journal = replay->journal;
    const struct journal_files *logs = &journal->logs;
    for (size_t i = 0; i < logs->count && !replay->ended; i++) {
        size_t next = i + 1;
        while (next < logs->count && !has_begun(journal, logs->bases[next]))
            next++;
        uint64_t until = next < logs->count ? logs->bases[next] : UINT64_MAX;
        if (until <= replay->sequence)
            continue;
        errint_t error = end_txn(replay, replay_log(replay, logs->bases[i], until, err));
        if (error)
            return error;
    }
    return 0;
}

/* A server that was killed may have left what only the kernel has. Once the tables are made of it,
 * files are removed that it doesn't name. */
static void sync_read(struct journal *journal)
{
    char name[JOURNAL_NAME_BYTES];
    for (size_t i = 0; i < journal->logs.count; i++) {
        cleanup_fd int fd =
            openat(journal->dir_fd, journal_name(journal->logs.bases[i], "log", name),
                   O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0 || fdatasync(fd) < 0)
            mob_log_warning("store: %s/%s can't be synced: %s", journal->path, name,
                            strerror(errno));
    }
    if (fsync(journal->dir_fd) < 0)
        mob_log_warning("store: %s can't be synced: %s", journal->path, strerror(errno));
}

errint_t journal_replay(struct journal *journal, struct meta *meta, bool *damaged,
                        struct mob_error *err)
{
    struct replay replay = {.journal = journal, .meta = meta};
    struct mob_error why = {0};
    errint_t error = replay_snapshots(&replay, &why);
    if (!error)
        error = replay_logs(&replay, &why);
    if (error)
        return mob_error_set(err, error, "%s", why.message[0] ? why.message : strerror(-error));
    *damaged = replay.damaged;
    sync_read(journal);
    if (replay.sequence < highest_base(journal))
        return begin_apart(journal, err);
    note_snapshots(journal, replay.used + 1);
    return begin_anew(journal, replay.sequence, replay.seen, err);
}
