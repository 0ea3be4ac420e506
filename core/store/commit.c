/* The commit: a staged file becomes an object, and its name a link to it, in one transaction. */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "core/store/store_internal.h"

/* A list of references may be the content of an object of any length; this bounds a mistake. */
#define REFS_CONTENT_LIMIT ((size_t)256 << 20)

/* --- an object's records --- */

static errint_t fill_plain(const struct object_write *write, void *place)
{
    size_t bytes = write->object->size;
    if (write->content || !bytes) {
        if (bytes)
            memcpy(place, write->content, bytes);
        return 0;
    }
    ssize_t got = mob_pread_full(write->fd, place, bytes, 0);
    if (got < 0)
        return (errint_t)got;
    return (size_t)got == bytes ? 0 : -EIO;
}

static size_t stored_bytes(const struct object *object)
{
    return cipher_value_bytes(object->size, object->flags & OBJECT_ENCRYPTED);
}

static errint_t fill(struct store *store, const struct object_write *write, void *place)
{
    const struct object *object = write->object;
    if (!(object->flags & OBJECT_ENCRYPTED))
        return fill_plain(write, place);
    cleanup_free void *plain = malloc(object->size + 1);
    if (!plain)
        return -ENOMEM;
    errint_t error = fill_plain(write, plain);
    return error ? error
                 : cipher_encrypt_value(store->key, META_INLINE, object->number, plain,
                                        object->size, place);
}

errint_t object_write(struct store *store, MDB_txn *txn, const struct object_write *write)
{
    const struct object *object = write->object;
    struct meta *meta = &store->meta;
    bool embedded = object->flags & OBJECT_EMBEDDED;
    void *place;
    struct object_record record = {
        .version = OBJECT_RECORD_VERSION,
        .tier = object->tier == TIER_DISK ? TIER_MEMORY : object->tier,
        .flags = (uint8_t)((write->ref_count ? RECORD_HAS_REFS : 0) |
                           (write->xattrs_bytes ? RECORD_HAS_XATTRS : 0) |
                           (embedded ? RECORD_EMBEDDED : 0) |
                           (object->flags & OBJECT_ON_DISK ? RECORD_ON_DISK : 0) |
                           (object->flags & OBJECT_ENCRYPTED ? RECORD_ENCRYPTED : 0)),
        .mode = object->mode,
        .uid = object->uid,
        .gid = object->gid,
        .size = object->size,
        .mtime_ns = object->mtime_ns,
        .file = object->file,
    };
    memcpy(record.id, object->id.bytes, sizeof record.id);
    errint_t error = meta_reserve(meta, txn, META_OBJECTS, object->number,
                                  sizeof record + (embedded ? stored_bytes(object) : 0), &place);
    if (!error && embedded) {
        void *content = (char *)place + sizeof record;
        error = fill(store, write, content);
        record.content_sum = object_content_sum(content, stored_bytes(object));
    }
    if (!error) {
        memcpy(place, &record, sizeof record);
        meta_seal(META_OBJECTS, object->number, place,
                  sizeof record + (embedded ? stored_bytes(object) : 0));
    }
    if (!error && object->tier == TIER_INLINE && !embedded) {
        error = meta_reserve(meta, txn, META_INLINE, object->number, stored_bytes(object), &place);
        if (!error)
            error = fill(store, write, place);
        if (!error)
            meta_seal(META_INLINE, object->number, place, stored_bytes(object));
    }
    if (!error && write->sums)
        error = blocks_put(meta, txn, object->file, object->size, write->sums);
    if (!error && write->ref_count)
        error = meta_put_number(meta, txn, META_REFS, object->number, write->refs,
                                write->ref_count * sizeof *write->refs);
    if (!error && write->xattrs_bytes)
        error = meta_put_number(meta, txn, META_XATTRS, object->number, write->xattrs,
                                write->xattrs_bytes);
    return error;
}

/* --- the commit of a staged file; its lock is held --- */

struct commit {
    struct store *store;
    struct staged *staged;
    struct object object;
    struct name_record name;
    char *xattrs;
    size_t xattrs_bytes;
    char *content;          /* of a small object, if its file is encrypted; or NULL */
    uint64_t on_disk_bytes; /* what its file on disk was counted as */
    bool entered;           /* the object is in the table, hidden */
    errint_t error;
};

/* Makes staged->refs the IDs that the content lists now, each held. The content is parsed once:
 * what a close has checked is what the commit takes, unless it was changed in between. */
static errint_t take_content_refs(struct store *store, struct staged *staged, struct mob_error *err)
{
    cleanup_free char *content = NULL;
    struct mob_id *refs;
    size_t bytes, count;
    errint_t error = staged_content_of(staged, REFS_CONTENT_LIMIT, &content, &bytes);
    if (error == -EFBIG)
        return mob_error_set_at(err, -EINVAL, 0, 0, XATTR_REFS, "the list of IDs is too long");
    if (error)
        return error;
    XXH128_hash_t sum = XXH3_128bits(content, bytes);
    if (staged->refs_content_known && XXH128_isEqual(sum, staged->refs_content_sum))
        return 0;
    error = refs_parse(content, bytes, &refs, &count, err);
    if (error)
        return error;
    error = refs_hold(store, refs, count, err);
    if (error) {
        free(refs);
        return error;
    }
    staged_set_refs(store, staged, refs, count);
    staged->refs_content_known = true;
    staged->refs_content_sum = sum;
    return 0;
}

/* Before its time is noted, and its record says that it is there. */
static void describe(struct commit *commit, const struct data_file *data)
{
    const struct staged *staged = commit->staged;
    struct object object = commit->object;
    pthread_mutex_lock(&commit->store->tree_lock);
    object.mode = staged->mode & 0555;
    object.uid = staged->uid;
    object.gid = staged->gid;
    pthread_mutex_unlock(&commit->store->tree_lock);
    object_describe(commit->store, &object, data->dir, data->fd, NULL, data->encrypted);
}

/* Somebody may have taken its file out of the spill directory: then it would be an object that
 * nobody can read. What is small goes inline and needs no file. */
static errint_t check_is_there(const struct store *store, const struct staged *staged,
                               struct mob_error *err)
{
    const struct data_file *data = staged_whole(staged);
    struct stat info;
    if (data->dir == DISK_NO_DIR || fstat(data->fd, &info) < 0 || info.st_nlink)
        return 0;
    if (data_bytes(data, &info) <= store->inline_bytes)
        return 0;
    return mob_error_set(err, -EIO, "its file was removed from the spill directory");
}

static errint_t prepare(struct commit *commit, struct mob_error *err)
{
    struct store *store = commit->store;
    struct staged *staged = commit->staged;
    struct object *object = &commit->object;
    struct stat info;
    if (staged_is_direct(staged) && data_has_writers(staged->data.fd))
        return -EBUSY;
    if (fstat(staged->data.fd, &info) < 0)
        return mob_error_set(err, -errno, "fstat: %s", strerror(errno));
    staged_charge(store, staged, &info);
    errint_t error = staged->growing ? grow_assemble(store, staged, err) : 0;
    if (!error)
        error = check_is_there(store, staged, err);
    if (error)
        return error;
    error = xattr_without_own(staged->xattrs, staged->xattrs_bytes, &commit->xattrs,
                              &commit->xattrs_bytes);
    if (!error && staged->refs_from_content)
        error = take_content_refs(store, staged, err);
    if (!error)
        error = mob_id_new(store->owner, 0, &object->id);
    if (error)
        return error;
    const struct data_file *data = staged_whole(staged);
    uint64_t size = data_bytes(&staged->data, &info);
    bool in_line = size <= store->inline_bytes;
    if (in_line && data->encrypted) {
        size_t got;
        error = staged_content_of(staged, (size_t)size, &commit->content, &got);
        if (!error && got != size)
            error = -EIO;
        if (error)
            return mob_error_set(err, error, "its content can't be read: %s", strerror(-error));
    }
    bool on_disk = !in_line && data->dir != DISK_NO_DIR;
    bool encrypted = in_line ? store->key != NULL : on_disk && data->encrypted;
    object->size = size;
    object->mtime_ns = store_wall_ns(store);
    object->file = in_line ? 0 : data->file;
    object->used = spill_now(store);
    object->pages = in_line || on_disk ? 0 : (uint32_t)(staged->charged_bytes / STORE_PAGE_BYTES);
    object->links = 1;
    object->state = OBJECT_READY;
    object->tier = in_line ? TIER_INLINE : on_disk ? TIER_DISK : TIER_MEMORY;
    if (on_disk) { /* just written, through the page cache; its checksums are made in a moment */
        object->disk = data->dir;
        describe(commit, data);
        if (fstat(data->fd, &info) == 0)
            object->verified_ns = staged->sums ? 0 : fetch_changed_ns(&info);
        commit->on_disk_bytes = staged->growing ? staged->grown_bytes : staged->charged_bytes;
    }
    object->flags =
        (uint16_t)(OBJECT_HIDDEN | (on_disk ? OBJECT_ON_DISK : 0) |
                   (encrypted ? OBJECT_ENCRYPTED : 0) | (staged->ref_count ? OBJECT_HAS_REFS : 0) |
                   (commit->xattrs_bytes ? OBJECT_HAS_XATTRS : 0) |
                   (in_line && object->size <= META_EMBEDDED_BYTES ? OBJECT_EMBEDDED : 0));
    return 0;
}

/* What can change until the writer lock is held. */
static errint_t take_name(struct commit *commit, struct name_record *name)
{
    const struct staged *staged = commit->staged;
    if (staged->gone || staged->unlinked)
        return -ENOENT;
    commit->object.staged = staged->number;
    commit->object.mode = staged->mode & 0555;
    commit->object.uid = staged->uid;
    commit->object.gid = staged->gid;
    *name = (struct name_record){
        .type = NAME_OBJECT,
        .uid = staged->uid,
        .gid = staged->gid,
        .number = commit->object.number,
        .mtime_ns = commit->object.mtime_ns,
        .staged = staged->number,
        .target = commit->object.id,
        .name = staged->name,
        .name_bytes = staged->name_bytes,
    };
    return 0;
}

static uint64_t record_bytes(const struct commit *commit)
{
    return (commit->object.tier == TIER_INLINE ? stored_bytes(&commit->object) : 0) +
           commit->staged->ref_count * sizeof *commit->staged->refs + commit->xattrs_bytes + 1024 +
           (commit->staged->synced.any ? synced_bytes(commit->staged) : 0);
}

/* Whether the object is durable as soon as its transaction is. */
static bool is_settled(const struct commit *commit)
{
    return commit->object.tier == TIER_INLINE || commit->staged->sums;
}

static errint_t write_records(const struct commit *commit, MDB_txn *txn)
{
    struct store *store = commit->store;
    struct staged *staged = commit->staged;
    struct object_write write = {
        .object = &commit->object,
        .sums = commit->object.tier == TIER_DISK ? staged->sums : NULL,
        .content = commit->content,
        .fd = staged_whole(staged)->fd,
        .refs = staged->refs,
        .ref_count = staged->ref_count,
        .xattrs = commit->xattrs,
        .xattrs_bytes = commit->xattrs_bytes,
    };
    errint_t error = object_write(store, txn, &write);
    if (!error)
        error = name_record_put(&store->meta, txn, staged->parent, staged->key, &commit->name);
    if (!error && staged->xattrs_bytes)
        error = meta_delete_number(&store->meta, txn, META_XATTRS, staged->number);
    if (!error)
        error = synced_commit(store, txn, staged, commit->object.number, is_settled(commit));
    return error;
}

/* The records of all that have entered, or none. */
static errint_t write_all(struct store *store, const struct commit *commits, size_t count)
{
    MDB_txn *txn;
    uint64_t bytes = 0;
    for (size_t i = 0; i < count; i++)
        bytes += commits[i].entered ? record_bytes(&commits[i]) : 0;
    errint_t error = bytes ? meta_begin(&store->meta, bytes, &txn) : 0;
    if (error || !bytes)
        return error;
    for (size_t i = 0; i < count && !error; i++)
        if (commits[i].entered)
            error = write_records(&commits[i], txn);
    return meta_end(txn, error);
}

static void enter(struct commit *commit)
{
    struct store *store = commit->store;
    /* Numbered here, so that records are added in ascending order. */
    commit->error = store_new_number_locked(store, &commit->object.number);
    if (!commit->error)
        commit->error = take_name(commit, &commit->name);
    if (!commit->error)
        commit->error = table_insert(&store->table, &commit->object);
    commit->entered = !commit->error;
}

/* The object is found before the name is seen as a link: until it leaves the table of staged files,
 * that is what the name is. */
static void publish(struct commit *commit)
{
    struct store *store = commit->store;
    struct staged *staged = commit->staged;
    table_reveal(&store->table, commit->object.number);
    store_count_object(store, &commit->object, 1);
    if (commit->object.tier == TIER_MEMORY)
        spill_add(store, commit->object.number, commit->object.used);
    if (commit->object.tier == TIER_DISK)
        disk_count(&store->disk,
                   (int64_t)(object_disk_bytes(commit->object.size,
                                               commit->object.flags & OBJECT_ENCRYPTED) -
                             commit->on_disk_bytes));
    atomic_fetch_add(&store->names, 1);
    atomic_fetch_add(&store->commits, 1);
    staged->keeps_file = commit->object.tier == TIER_INLINE || staged->growing;
    if (staged->growing && commit->object.tier != TIER_INLINE)
        staged->grown.file = 0; /* it is the object's now */
    staged->ref_count = 0;      /* the object holds them now */
    staged->xattrs_bytes = 0;
    synced_committed(store, staged, is_settled(commit));
    staged_committed_locked(store, staged, &commit->object.id, commit->object.number);
}

/* Those that are without error so far, in one transaction. The writer lock is held. */
static void commit_locked(struct store *store, struct commit *commits, size_t count)
{
    struct object taken;
    for (size_t i = 0; i < count; i++)
        if (!commits[i].error)
            enter(&commits[i]);
    errint_t error = write_all(store, commits, count);
    for (size_t i = 0; i < count; i++) {
        struct commit *commit = &commits[i];
        if (commit->entered && error) {
            table_take(&store->table, commit->object.number, false, &taken);
            commit->entered = false;
            commit->error = error;
        } else if (commit->entered) {
            publish(commit);
        }
    }
}

/* Takes the file's lock, and prepares what is to be committed. */
static void begin(struct store *store, uint64_t number, struct commit *commit,
                  struct mob_error *err)
{
    struct staged *staged = staged_get(store, number);
    *commit = (struct commit){.store = store, .staged = staged};
    if (!staged) {
        commit->error = mob_error_set(err, -ENOENT, "there is no such staged file");
        return;
    }
    pthread_mutex_lock(&staged->lock);
    if (staged->committed)
        commit->error = -EALREADY;
    else if (staged->root != NAMES_STAGING)
        commit->error = mob_error_set(err, -EINVAL, "only files in staging/ become objects");
    else
        commit->error = prepare(commit, err);
}

/* 0 also for what had been committed before. */
static errint_t end(struct commit *commit)
{
    if (commit->entered && commit->object.tier == TIER_DISK && !commit->staged->sums)
        fetch_seal(commit->store, commit->object.number);
    if (commit->staged) {
        pthread_mutex_unlock(&commit->staged->lock);
        staged_put(commit->store, commit->staged);
    }
    free(commit->xattrs);
    free(commit->content);
    return commit->error == -EALREADY ? 0 : commit->error;
}

errint_t staged_commit(struct store *store, uint64_t number, struct mob_id *id,
                       uint64_t *object_number, struct mob_error *err)
{
    struct commit commit;
    begin(store, number, &commit, err);
    if (!commit.error) {
        store_write_lock(store);
        commit_locked(store, &commit, 1);
        store_write_unlock(store);
        if (commit.error)
            mob_error_set(err, commit.error, "the object can't be recorded: %s",
                          strerror(-commit.error));
    }
    if (!commit.error || commit.error == -EALREADY) {
        *id = commit.staged->id;
        if (object_number)
            *object_number = commit.staged->object_number;
    }
    errint_t error = end(&commit);
    objects_settle(store);
    return error;
}

void staged_commit_many(struct store *store, const uint64_t *numbers, size_t count,
                        errint_t *results)
{
    struct commit commits[STAGED_COMMIT_MANY];
    for (size_t i = 0; i < count; i++)
        begin(store, numbers[i], &commits[i], NULL);
    store_write_lock(store);
    commit_locked(store, commits, count);
    store_write_unlock(store);
    for (size_t i = 0; i < count; i++)
        results[i] = end(&commits[i]);
    objects_settle(store);
}

/* --- would it succeed? --- */

static errint_t check_staged(struct store *store, struct staged *staged, struct mob_error *err)
{
    if (staged->committed)
        return 0;
    if (!meta_has_room(&store->meta, store->inline_bytes))
        return mob_error_set(err, -ENOSPC, "no room for the object in %s", store->state_dir);
    errint_t error = check_is_there(store, staged, err);
    return !error && staged->refs_from_content ? take_content_refs(store, staged, err) : error;
}

errint_t staged_check(struct store *store, uint64_t number, struct mob_error *err)
{
    struct staged *staged = staged_get(store, number);
    if (!staged)
        return mob_error_set(err, -ENOENT, "there is no such staged file");
    pthread_mutex_lock(&staged->lock);
    errint_t error = check_staged(store, staged, err);
    pthread_mutex_unlock(&staged->lock);
    staged_put(store, staged);
    objects_settle(store);
    return error;
}
