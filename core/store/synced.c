/* What fsync(2) has made durable of files that are still written. See sync.h. */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "core/store/store_internal.h"

enum { SYNCED_VERSION = 1 };
_Static_assert(sizeof(struct synced_record) == 64, "no padding goes to disk");

bool synced_decode(uint64_t number, const void *value, size_t value_bytes, struct synced_view *out)
{
    struct synced_record *record = &out->record;
    const char *at = value;
    size_t left = value_bytes;
    bool ok = left >= sizeof *record;
    if (ok) {
        memcpy(record, value, sizeof *record);
        at += sizeof *record;
        left -= sizeof *record;
        ok = record->version == SYNCED_VERSION && record->name_bytes &&
             !(record->flags & ~SYNCED_ENCRYPTED) && record->parent < STORE_NUMBER_LIMIT &&
             record->file < STORE_NUMBER_LIMIT && record->object < STORE_NUMBER_LIMIT &&
             record->size <= INT64_MAX && (size_t)record->name_bytes + record->xattrs_bytes <= left;
    }
    if (ok) {
        out->name = at;
        out->xattrs = at + record->name_bytes;
        at += record->name_bytes + (size_t)record->xattrs_bytes;
        left -= record->name_bytes + (size_t)record->xattrs_bytes;
        size_t content_bytes = cipher_value_bytes(record->size, record->flags & SYNCED_ENCRYPTED);
        out->content = record->file ? NULL : at;
        out->sums = record->file ? (const void *)at : NULL;
        ok = record->file ? left / sizeof *out->sums == spill_block_count(record->size) &&
                                left % sizeof *out->sums == 0
                          : left == content_bytes;
        ok = ok && !memchr(out->name, '/', record->name_bytes) &&
             !memchr(out->name, '\0', record->name_bytes);
    }
    if (!ok)
        mob_log_error("store: what was synced of the staged file %llu is damaged; it is left out",
                      (unsigned long long)number);
    return ok;
}

/* --- copying --- */

struct copy {
    struct data_file file; /* .fd is not open; file 0: `content` has it */
    uint64_t size, counted;
    struct spill_sum *sums;
    char *content;
    bool own; /* the file was made for this */
};

static void copy_end(struct store *store, struct copy *copy, bool remove)
{
    if (remove && copy->own)
        disk_remove_file(&store->disk, copy->file.dir, copy->file.file, copy->counted);
    free(copy->sums);
    free(copy->content);
}

/* Block by block, with its lock held for each: its writer may go on meanwhile. `to` -1: only the
 * checksums. */
static errint_t copy_blocks(struct staged *staged, struct copy *copy, int to)
{
    const struct cipher_key *key = copy->file.encrypted ? staged->store->key : NULL;
    cleanup_free char *buffer = malloc(CIPHER_STRIDE_BYTES);
    if (!buffer)
        return -ENOMEM;
    char *block = buffer + CIPHER_HEAD_BYTES;
    for (uint64_t done = 0, i = 0; done < copy->size; done += SPILL_BLOCK_BYTES, i++) {
        size_t bytes =
            copy->size - done < SPILL_BLOCK_BYTES ? (size_t)(copy->size - done) : SPILL_BLOCK_BYTES;
        pthread_mutex_lock(&staged->lock);
        ssize_t got = staged_pread(staged, block, bytes, done);
        pthread_mutex_unlock(&staged->lock);
        if (got < 0)
            return (errint_t)got;
        memset(block + got, 0, bytes - (size_t)got); /* it was truncated meanwhile */
        errint_t error = key ? cipher_encrypt_block(key, copy->file.file, i, buffer, bytes) : 0;
        const char *what = key ? buffer : block;
        size_t what_bytes = key ? CIPHER_HEAD_BYTES + bytes : bytes;
        uint64_t at = key ? cipher_block_offset(i) : done;
        if (!error && to >= 0)
            error = mob_pwrite_full(to, what, what_bytes, (off_t)at);
        if (error)
            return error;
        spill_sum_block(what, what_bytes, &copy->sums[i]);
    }
    return 0;
}

static errint_t sync_name(struct store *store, unsigned dir)
{
    return fsync(store->disk.dirs[dir].objects_fd) < 0 ? -errno : 0;
}

static errint_t copy_to_new_file(struct store *store, struct staged *staged, struct copy *copy)
{
    unsigned dir;
    errint_t error = store_new_number(store, &copy->file.file);
    if (error)
        return error;
    copy->file.encrypted = store->key != NULL;
    copy->counted = object_disk_bytes(copy->size, copy->file.encrypted);
    cleanup_fd int fd = disk_make_file(&store->disk, copy->file.file, copy->counted, O_RDWR, &dir);
    if (fd < 0)
        return fd;
    copy->own = true;
    copy->file.dir = (uint8_t)dir;
    disk_count(&store->disk, (int64_t)copy->counted);
    error = copy_blocks(staged, copy, fd);
    if (!error && fdatasync(fd) < 0)
        error = -errno;
    return error ? error : sync_name(store, dir);
}

/* It is being written on disk: that file will be the object's. */
static errint_t sync_in_place(struct store *store, struct staged *staged, struct copy *copy)
{
    copy->file = staged->data;
    errint_t error = copy_blocks(staged, copy, -1);
    if (!error && fdatasync(staged->data.fd) < 0)
        error = -errno;
    return error ? error : sync_name(store, staged->data.dir);
}

static errint_t copy_staged(struct store *store, struct staged *staged, struct copy *copy,
                            struct mob_error *err)
{
    struct stat info;
    size_t bytes;
    pthread_mutex_lock(&staged->lock);
    errint_t error = fstat(staged->data.fd, &info) < 0 ? -errno : 0;
    copy->size = (uint64_t)info.st_size;
    bool in_place = staged->data.dir != DISK_NO_DIR && !staged->growing;
    bool in_line = !error && copy->size <= store->inline_bytes;
    copy->file.encrypted = in_line && store->key;
    if (in_line) {
        error = staged_content_of(staged, store->inline_bytes, &copy->content, &bytes);
        copy->size = bytes;
    }
    pthread_mutex_unlock(&staged->lock);
    if (error || in_line)
        return error;
    if (!store->disk.count)
        return mob_error_set(err, -EOPNOTSUPP, "there is no spill directory to make it durable in");
    copy->sums = calloc(spill_block_count(copy->size) + 1, sizeof *copy->sums);
    if (!copy->sums)
        return -ENOMEM;
    error = in_place ? sync_in_place(store, staged, copy) : copy_to_new_file(store, staged, copy);
    return error ? mob_error_set(err, error, "the copy on disk: %s", strerror(-error)) : 0;
}

/* --- notes --- */

/* Of the note: what follows its header, name, and attributes. */
static size_t note_bytes(const struct copy *copy)
{
    return copy->content ? cipher_value_bytes(copy->size, copy->file.encrypted)
                         : spill_block_count(copy->size) * sizeof *copy->sums;
}

static errint_t put_note(struct store *store, MDB_txn *txn, const struct staged *staged,
                         const struct copy *copy)
{
    struct synced_record record = {
        .version = SYNCED_VERSION,
        .name_bytes = staged->name_bytes,
        .flags = copy->file.encrypted ? SYNCED_ENCRYPTED : 0,
        .mode = staged->mode,
        .uid = staged->uid,
        .gid = staged->gid,
        .parent = staged->parent,
        .size = copy->size,
        .mtime_ns = store_wall_ns(store),
        .file = copy->file.file,
        .xattrs_bytes = (uint32_t)staged->xattrs_bytes,
    };
    size_t rest = note_bytes(copy);
    void *place;
    errint_t error =
        meta_reserve(&store->meta, txn, META_SYNCED, staged->number,
                     sizeof record + record.name_bytes + record.xattrs_bytes + rest, &place);
    if (error)
        return error;
    char *at = place;
    memcpy(at, &record, sizeof record);
    at += sizeof record;
    memcpy(at, staged->name, record.name_bytes);
    at += record.name_bytes;
    if (record.xattrs_bytes)
        memcpy(at, staged->xattrs, record.xattrs_bytes);
    at += record.xattrs_bytes;
    if (copy->content && copy->file.encrypted)
        error = cipher_encrypt_value(store->key, META_SYNCED, staged->number, copy->content,
                                     copy->size, at);
    else if (rest)
        memcpy(at, copy->content ? (const void *)copy->content : copy->sums, rest);
    if (error)
        return error;
    meta_seal(META_SYNCED, staged->number, place,
              sizeof record + record.name_bytes + record.xattrs_bytes + rest);
    return 0;
}

static errint_t delete_note(struct store *store, uint64_t number)
{
    MDB_txn *txn;
    store_write_lock(store);
    errint_t error = meta_begin(&store->meta, 0, &txn);
    if (!error) {
        error = meta_delete_number(&store->meta, txn, META_SYNCED, number);
        error = meta_end(txn, error);
    }
    store_write_unlock(store);
    return error;
}

/* The file is locked. 1: there is nothing to note, it has no name or is an object by now. */
static errint_t note_locked(struct store *store, struct staged *staged, const struct copy *copy)
{
    MDB_txn *txn;
    size_t bytes = note_bytes(copy);
    store_write_lock(store);
    errint_t error = staged->committed || staged->gone || staged->unlinked ? 1 : 0;
    if (!error)
        error = meta_begin(&store->meta, bytes + staged->xattrs_bytes + 1024, &txn);
    if (!error) {
        error = put_note(store, txn, staged, copy);
        error = meta_end(txn, error);
    }
    store_write_unlock(store);
    return error;
}

static void remove_copy(struct store *store, const struct synced_copy *synced)
{
    if (synced->own)
        disk_drop_durable(store,
                          &(struct data_file){.file = synced->file, .fd = -1, .dir = synced->dir},
                          synced->counted);
}

/* What it has become, or 0. */
static uint64_t object_of(struct store *store, const struct staged *staged)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->tree_lock);
    return staged->committed ? staged->object_number : 0;
}

/* The copy and its note. 1: there is nothing to note. sync_lock is held. */
static errint_t sync_data(struct store *store, struct staged *staged, struct mob_error *err)
{
    struct copy copy = {.file = {.fd = -1, .dir = DISK_NO_DIR}};
    if (staged->data.encrypted) /* recovered: it is what was synced */
        return 0;
    errint_t error = copy_staged(store, staged, &copy, err);
    if (!error) {
        cleanup_lock pthread_mutex_t *lock = mob_lock(&staged->lock);
        error = note_locked(store, staged, &copy);
        if (!error) {
            remove_copy(store, &staged->synced);
            staged->synced = (struct synced_copy){.any = true,
                                                  .own = copy.own,
                                                  .dir = copy.file.dir,
                                                  .file = copy.file.file,
                                                  .counted = copy.counted,
                                                  .note_bytes = note_bytes(&copy)};
        }
    }
    copy_end(store, &copy, error);
    return error;
}

errint_t staged_sync(struct store *store, uint64_t number, struct mob_error *err)
{
    struct staged *staged = staged_get(store, number);
    if (!staged)
        return -ENOENT;
    errint_t error = 1;
    pthread_mutex_lock(&store->spill.sync_lock);
    if (staged->root == NAMES_STAGING && !object_of(store, staged))
        error = sync_data(store, staged, err);
    pthread_mutex_unlock(&store->spill.sync_lock);
    uint64_t object = object_of(store, staged);
    staged_put(store, staged);
    objects_settle(store);
    if (error == 1 && object)
        return store_sync_object(store, object);
    if (error < 0)
        return error;
    error = journal_sync(store->journal, journal_written(store->journal));
    return error ? mob_error_set(err, error, "the journal: %s", strerror(-error)) : 0;
}

uint64_t synced_bytes(const struct staged *staged)
{
    return 1024 + staged->xattrs_bytes + staged->synced.note_bytes;
}

errint_t synced_commit(struct store *store, MDB_txn *txn, struct staged *staged, uint64_t object,
                       bool settled)
{
    const void *value;
    size_t bytes;
    if (!staged->synced.any)
        return 0;
    if (settled)
        return meta_delete_number(&store->meta, txn, META_SYNCED, staged->number);
    errint_t error =
        meta_get_number(&store->meta, txn, META_SYNCED, staged->number, &value, &bytes);
    if (error || bytes < sizeof(struct synced_record))
        return error ? error : -EIO;
    cleanup_free char *copy = malloc(bytes);
    if (!copy)
        return -ENOMEM;
    memcpy(copy, value, bytes);
    memcpy(copy + offsetof(struct synced_record, object), &object, sizeof object);
    return meta_put_number(&store->meta, txn, META_SYNCED, staged->number, copy, bytes);
}

void synced_committed(struct store *store, struct staged *staged, bool settled)
{
    if (!staged->synced.any)
        return;
    if (settled)
        remove_copy(store, &staged->synced);
    else
        settler_add(store, staged->number);
    staged->synced = (struct synced_copy){0};
}

void synced_drop(struct store *store, struct staged *staged)
{
    if (!staged->synced.any)
        return;
    errint_t error = delete_note(store, staged->number);
    if (error)
        mob_log_warning("store: a discarded file may come back after a crash: %s",
                        strerror(-error));
    else
        remove_copy(store, &staged->synced);
    staged->synced = (struct synced_copy){0};
}
