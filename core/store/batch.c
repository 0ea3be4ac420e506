/* Batches: what a job changes at once, on disk together or not at all.
 *
 * The order of a commit: everything that can fail without a transaction (memory, links to the
 * files) is prepared, then LMDB's transaction, then memory, which can't fail. Waiters and hooks are
 * called last, without locks. */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "core/store/store_internal.h"

enum op_kind { OP_PUT, OP_DELETE, OP_PENDING, OP_READY, OP_FAIL, OP_LINK };

struct op {
    enum op_kind kind;
    enum store_table table;
    void *key, *value; /* owned; `value` is the content as well of what is made ready */
    size_t key_bytes, value_bytes;
    struct object object; /* what is made pending, or how a ready one will be */
    int fd;
    char *path;
    bool executable;
    struct failure *failure;
    uint64_t staged_number;
    bool *linked;
    struct mob_id job;
    /* During the commit: */
    bool inserted, pinned, file_linked;
    struct waiter *waiters;
};

struct store_batch {
    struct store *store;
    struct op *ops;
    size_t count, capacity;
    struct op *link; /* found at the commit */
    struct staged *staged;
};

errint_t store_batch_new(struct store *store, struct store_batch **out)
{
    struct store_batch *batch = calloc(1, sizeof *batch);
    if (!batch)
        return -ENOMEM;
    batch->store = store;
    *out = batch;
    return 0;
}

static struct op *add(struct store_batch *batch, enum op_kind kind)
{
    if (batch->count == batch->capacity) {
        size_t capacity = batch->capacity ? batch->capacity * 2 : 4;
        struct op *ops = realloc(batch->ops, capacity * sizeof *ops);
        if (!ops)
            return NULL;
        batch->ops = ops;
        batch->capacity = capacity;
    }
    struct op *op = &batch->ops[batch->count++];
    memset(op, 0, sizeof *op);
    op->kind = kind;
    op->fd = -1;
    return op;
}

static void op_destroy(struct op *op)
{
    free(op->key);
    free(op->value);
    free(op->path);
    free(op->failure);
    if (op->fd >= 0)
        close(op->fd);
}

void store_batch_abort(struct store_batch *batch)
{
    if (!batch)
        return;
    for (size_t i = 0; i < batch->count; i++)
        op_destroy(&batch->ops[i]);
    free(batch->ops);
    free(batch);
}

static void *copy_of(const void *bytes, size_t count)
{
    void *copy = malloc(count + 1);
    if (copy && count)
        memcpy(copy, bytes, count);
    return copy;
}

/* --- what goes into a batch --- */

static errint_t add_table(struct store_batch *batch, enum op_kind kind, enum store_table table,
                          const void *key, size_t key_bytes, const void *value, size_t value_bytes)
{
    if ((unsigned)table >= STORE_TABLE_COUNT || !key_bytes || key_bytes > 500 ||
        value_bytes > UINT32_MAX)
        return -EINVAL;
    struct op *op = add(batch, kind);
    if (!op)
        return -ENOMEM;
    op->table = table;
    op->key = copy_of(key, key_bytes);
    op->value = copy_of(value, value_bytes);
    op->key_bytes = key_bytes;
    op->value_bytes = value_bytes;
    if (op->key && op->value)
        return 0;
    op_destroy(op);
    batch->count--;
    return -ENOMEM;
}

errint_t store_batch_put(struct store_batch *batch, enum store_table table, const void *key,
                         size_t key_bytes, const void *value, size_t value_bytes)
{
    return add_table(batch, OP_PUT, table, key, key_bytes, value, value_bytes);
}

errint_t store_batch_delete(struct store_batch *batch, enum store_table table, const void *key,
                            size_t key_bytes)
{
    return add_table(batch, OP_DELETE, table, key, key_bytes, NULL, 0);
}

errint_t store_batch_pending(struct store_batch *batch, const struct mob_id *id, uid_t uid,
                             gid_t gid, mode_t umask, uint64_t preset_number, uint64_t *number)
{
    struct store *store = batch->store;
    uint64_t own_number = preset_number;
    if (preset_number && (preset_number < NAMES_FIRST_FREE_NUMBER ||
                          preset_number >= atomic_load(&store->next_number)))
        return -EINVAL;
    errint_t error = preset_number ? 0 : store_new_number(store, &own_number);
    if (error)
        return error;
    struct op *op = add(batch, OP_PENDING);
    if (!op)
        return -ENOMEM;
    op->object = (struct object){
        .number = own_number,
        .id = *id,
        .mtime_ns = store_wall_ns(store),
        .links = 1,
        .uid = uid,
        .gid = gid,
        .mode = (uint16_t)(0444 & ~umask),
        .state = OBJECT_PENDING,
        .flags = OBJECT_HIDDEN,
    };
    if (number)
        *number = own_number;
    return 0;
}

errint_t store_batch_ready_file(struct store_batch *batch, const struct mob_id *id, int fd,
                                const char *path, bool executable)
{
    struct stat info;
    errint_t error = fstat(fd, &info) < 0 ? -errno : S_ISREG(info.st_mode) ? 0 : -EINVAL;
    char *copy = error ? NULL : strdup(path);
    struct op *op = copy ? add(batch, OP_READY) : NULL;
    if (!op) {
        free(copy);
        close(fd);
        return error ? error : -ENOMEM;
    }
    op->object.id = *id;
    op->fd = fd;
    op->path = copy;
    op->executable = executable;
    return 0;
}

errint_t store_batch_ready_bytes(struct store_batch *batch, const struct mob_id *id,
                                 const void *content, size_t bytes)
{
    void *copy = copy_of(content, bytes);
    struct op *op = copy ? add(batch, OP_READY) : NULL;
    if (!op) {
        free(copy);
        return -ENOMEM;
    }
    op->object.id = *id;
    op->value = copy;
    op->value_bytes = bytes;
    return 0;
}

errint_t store_batch_fail(struct store_batch *batch, const struct mob_id *id, errint_t failure,
                          const char *sentence)
{
    size_t bytes = strlen(sentence) + 1;
    struct failure *copy = malloc(sizeof *copy + bytes);
    struct op *op = copy ? add(batch, OP_FAIL) : NULL;
    if (!op) {
        free(copy);
        return -ENOMEM;
    }
    copy->code = failure < 0 ? failure : -EIO;
    memcpy(copy->sentence, sentence, bytes);
    op->object.id = *id;
    op->failure = copy;
    return 0;
}

errint_t store_batch_link_job(struct store_batch *batch, uint64_t staged, const struct mob_id *job,
                              bool *linked)
{
    for (size_t i = 0; i < batch->count; i++)
        if (batch->ops[i].kind == OP_LINK)
            return -EINVAL;
    struct op *op = add(batch, OP_LINK);
    if (!op)
        return -ENOMEM;
    op->staged_number = staged;
    op->job = *job;
    op->linked = linked;
    return 0;
}

/* --- preparing --- */

static errint_t insert_pending(struct store_batch *batch)
{
    for (size_t i = 0; i < batch->count; i++) {
        struct op *op = &batch->ops[i];
        if (op->kind != OP_PENDING)
            continue;
        errint_t error = table_insert(&batch->store->table, &op->object);
        if (error)
            return error;
        op->inserted = true;
    }
    return 0;
}

/* The pending object that is to be made ready or failed, as it is now; it can't go during the
 * commit. */
static errint_t find_pending(struct store_batch *batch, struct op *op)
{
    struct table_shard *shard;
    struct mob_id id = op->object.id;
    struct object *object = table_lock_id_hidden(&batch->store->table, &id, &shard);
    if (!object)
        return -ENOENT;
    errint_t error = object->state == OBJECT_PENDING ? 0 : -ENOENT;
    op->object = *object;
    if (!error) {
        object->opens++;
        op->pinned = true;
    }
    table_unlock(shard);
    return error;
}

/* What a large object comes from is linked as a data file; its old name goes after the commit, so
 * that a server killed in between leaves it where its successor looks for it. */
static errint_t prepare_ready(struct store_batch *batch, struct op *op, struct mob_error *err)
{
    struct store *store = batch->store;
    struct stat info;
    errint_t error = find_pending(batch, op);
    if (error)
        return error;
    struct object *object = &op->object;
    object->size = op->value_bytes;
    if (op->fd >= 0) {
        if (fstat(op->fd, &info) < 0)
            return -errno;
        object->size = (uint64_t)info.st_size;
    }
    bool in_line = op->fd < 0 || object->size <= store->inline_bytes;
    object->state = OBJECT_READY;
    object->mtime_ns = store_wall_ns(store);
    object->mode = (uint16_t)(object->mode | (op->executable ? object->mode >> 2 & 0111 : 0));
    if (in_line) {
        object->tier = TIER_INLINE;
        object->flags |= object->size <= META_EMBEDDED_BYTES ? OBJECT_EMBEDDED : 0;
        object->flags |= store->key ? OBJECT_ENCRYPTED : 0;
        return 0;
    }
    error = data_adopt(store, op->fd, op->path, object, err);
    op->file_linked = !error;
    return error;
}

static errint_t prepare(struct store_batch *batch, struct mob_error *err)
{
    errint_t error = insert_pending(batch);
    for (size_t i = 0; i < batch->count && !error; i++) {
        struct op *op = &batch->ops[i];
        if (op->kind == OP_READY)
            error = prepare_ready(batch, op, err);
        else if (op->kind == OP_FAIL)
            error = find_pending(batch, op);
    }
    return error;
}

/* A staged file that is gone or unlinked gets no name. */
static errint_t prepare_link(struct store_batch *batch)
{
    struct op *op = batch->link;
    struct staged *staged = batch->staged;
    if (!op)
        return 0;
    if (op->linked)
        *op->linked = false;
    if (!staged || staged->gone || (staged->unlinked && !staged->committed)) {
        batch->link = NULL;
        return 0;
    }
    if (!staged->committed)
        return 0;
    if (!mob_id_equal(&staged->id, &op->job))
        return -EEXIST;
    batch->link = NULL;
    if (op->linked)
        *op->linked = true;
    return 0;
}

static void undo(struct store_batch *batch)
{
    struct store *store = batch->store;
    struct object object;
    for (size_t i = 0; i < batch->count; i++) {
        struct op *op = &batch->ops[i];
        if (op->inserted)
            table_take(&store->table, op->object.number, false, &object);
        if (op->file_linked)
            data_adopt_undo(store, &op->object);
    }
}

/* --- the transaction --- */

static errint_t write_link(struct store_batch *batch, MDB_txn *txn)
{
    const struct staged *staged = batch->staged;
    struct store *store = batch->store;
    struct name_record record = {
        .type = NAME_JOB,
        .uid = staged->uid,
        .gid = staged->gid,
        .mtime_ns = store_wall_ns(store),
        .staged = staged->number,
        .target = batch->link->job,
        .name = staged->name,
        .name_bytes = staged->name_bytes,
    };
    errint_t error = name_record_put(&store->meta, txn, staged->parent, staged->key, &record);
    if (!error && staged->xattrs_bytes)
        error = meta_delete_number(&store->meta, txn, META_XATTRS, staged->number);
    return error;
}

static errint_t write_op(struct store *store, MDB_txn *txn, struct op *op)
{
    enum meta_table table = op->table == STORE_TABLE_JOBS ? META_JOBS : META_JOB_DATA;
    struct object_write write = {.object = &op->object, .content = op->value, .fd = op->fd};
    switch (op->kind) {
    case OP_PUT:
        return meta_put(&store->meta, txn, table, op->key, op->key_bytes, op->value,
                        op->value_bytes);
    case OP_DELETE:
        return meta_delete(&store->meta, txn, table, op->key, op->key_bytes);
    case OP_READY:
        return object_write(store, txn, &write);
    default:
        return 0;
    }
}

static bool touches_disk(const struct store_batch *batch)
{
    for (size_t i = 0; i < batch->count; i++)
        if (batch->ops[i].kind != OP_PENDING && batch->ops[i].kind != OP_FAIL &&
            (batch->ops[i].kind != OP_LINK || batch->link))
            return true;
    return false;
}

static uint64_t new_bytes(const struct store_batch *batch)
{
    uint64_t bytes = 1;
    for (size_t i = 0; i < batch->count; i++) {
        const struct op *op = &batch->ops[i];
        bytes += sizeof(struct object_record) + op->key_bytes + op->value_bytes;
        if (op->kind == OP_READY && op->object.tier == TIER_INLINE)
            bytes += op->object.size;
    }
    return bytes;
}

static errint_t write_all(struct store_batch *batch)
{
    MDB_txn *txn;
    if (!touches_disk(batch))
        return 0;
    errint_t error = meta_begin(&batch->store->meta, new_bytes(batch), &txn);
    if (error)
        return error;
    for (size_t i = 0; i < batch->count && !error; i++)
        error = write_op(batch->store, txn, &batch->ops[i]);
    if (!error && batch->link)
        error = write_link(batch, txn);
    return meta_end(txn, error);
}

/* --- memory --- */

static void reveal_pending(struct store *store, struct op *op)
{
    struct table_shard *shard;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->tree_lock);
    uint32_t links = unresolved_take(store, &op->object.id);
    struct object *object = table_lock_hidden(&store->table, op->object.number, &shard);
    object->links += links;
    object->flags &= (uint16_t)~OBJECT_HIDDEN;
    table_unlock(shard);
    atomic_fetch_add(&store->pending, 1);
}

static void settle_pending(struct store *store, struct op *op)
{
    struct table_shard *shard;
    struct object *object = table_lock_number(&store->table, op->object.number, &shard);
    if (!object || object->state != OBJECT_PENDING) { /* the same ID twice in this batch */
        if (object)
            table_unlock(shard);
        return;
    }
    op->waiters = object->waiters;
    object->waiters = NULL;
    store_count_object(store, object, -1);
    if (op->kind == OP_FAIL) {
        object->state = OBJECT_FAILED;
        object->failure = op->failure;
        op->failure = NULL;
        object->mtime_ns = store_wall_ns(store);
    } else {
        object->size = op->object.size;
        object->file = op->object.file;
        object->pages = op->object.pages;
        object->mtime_ns = op->object.mtime_ns;
        object->mode = op->object.mode;
        object->tier = op->object.tier;
        object->disk = op->object.disk;
        object->used = spill_now(store);
        object->flags |= op->object.flags & (OBJECT_EMBEDDED | OBJECT_ON_DISK | OBJECT_ENCRYPTED);
        object->state = OBJECT_READY;
    }
    store_count_object(store, object, 1);
    bool in_memory = object->state == OBJECT_READY && object->tier == TIER_MEMORY;
    uint32_t used = object->used;
    table_unlock(shard);
    if (in_memory) {
        spill_add(store, op->object.number, used);
        spill_nudge(store);
    }
}

static void change_memory(struct store_batch *batch)
{
    struct store *store = batch->store;
    for (size_t i = 0; i < batch->count; i++)
        if (batch->ops[i].kind == OP_PENDING)
            reveal_pending(store, &batch->ops[i]);
    for (size_t i = 0; i < batch->count; i++) {
        struct op *op = &batch->ops[i];
        if (op->kind != OP_READY && op->kind != OP_FAIL)
            continue;
        settle_pending(store, op);
        atomic_fetch_add(&store->commits, op->kind == OP_READY);
    }
    if (!batch->link)
        return;
    atomic_fetch_add(&store->names, 1);
    batch->staged->xattrs_bytes = 0;
    if (batch->link->linked)
        *batch->link->linked = true;
    staged_committed_locked(store, batch->staged, &batch->link->job, 0);
}

static errint_t commit_locked(struct store_batch *batch, struct mob_error *err)
{
    errint_t error = prepare_link(batch);
    if (!error)
        error = prepare(batch, err);
    if (!error)
        error = write_all(batch);
    if (error)
        undo(batch);
    else
        change_memory(batch);
    return error;
}

/* The old name is gone, which changed the file's time once more. It was just written, through the
 * page cache; its checksums are made in a moment. */
static void seal(struct store *store, const struct op *op)
{
    struct stat info;
    if (fstat(op->fd, &info) == 0)
        fetch_set_verified(store, op->object.number, fetch_changed_ns(&info));
    fetch_seal(store, op->object.number);
}

static void finish(struct store_batch *batch)
{
    struct store *store = batch->store;
    for (size_t i = 0; i < batch->count; i++) {
        struct op *op = &batch->ops[i];
        if (op->kind != OP_READY && op->kind != OP_FAIL)
            continue;
        if (op->path && unlink(op->path) < 0 && errno != ENOENT)
            mob_log_warning("store: %s: %s", op->path, strerror(errno));
        if (op->kind == OP_READY && op->object.tier == TIER_DISK)
            seal(store, op);
        waiters_call(op->waiters, op->object.number,
                     op->kind == OP_READY ? OBJECT_READY : OBJECT_FAILED);
        object_note_change(store, op->object.number);
    }
}

errint_t store_batch_commit(struct store_batch *batch, struct mob_error *err)
{
    struct store *store = batch->store;
    for (size_t i = 0; i < batch->count; i++)
        if (batch->ops[i].kind == OP_LINK)
            batch->link = &batch->ops[i];
    if (batch->link)
        batch->staged = staged_get(store, batch->link->staged_number);
    struct staged *staged = batch->staged;
    if (staged)
        pthread_mutex_lock(&staged->lock);
    store_write_lock(store);
    struct mob_error why = {0};
    errint_t error = commit_locked(batch, &why);
    store_write_unlock(store);
    if (staged) {
        pthread_mutex_unlock(&staged->lock);
        staged_put(store, staged);
    }
    for (size_t i = 0; i < batch->count; i++)
        if (batch->ops[i].pinned)
            store_open_dropped(store, batch->ops[i].object.number);
    if (!error)
        finish(batch);
    else if (why.message[0])
        mob_error_set(err, error, "%s", why.message);
    else
        mob_error_set(err, error, "the change can't be recorded in %s: %s", store->state_dir,
                      strerror(-error));
    store_batch_abort(batch);
    objects_settle(store);
    return error;
}

/* --- reading the tables --- */

static bool table_of(enum store_table table, enum meta_table *out)
{
    *out = table == STORE_TABLE_JOBS ? META_JOBS : META_JOB_DATA;
    return (unsigned)table < STORE_TABLE_COUNT;
}

errint_t store_table_each(struct store *store, enum store_table table,
                          int (*each)(void *argument, const void *key, size_t key_bytes,
                                      const void *value, size_t value_bytes),
                          void *argument)
{
    struct meta_reader *reader;
    enum meta_table meta_table;
    MDB_cursor *cursor;
    MDB_val key, value;
    if (!table_of(table, &meta_table))
        return -EINVAL;
    errint_t error = meta_read_begin(&store->meta, &reader);
    if (error)
        return error;
    int result = 0;
    int code = mdb_cursor_open(reader->txn, store->meta.tables[meta_table], &cursor);
    if (!code) {
        code = mdb_cursor_get(cursor, &key, &value, MDB_FIRST);
        for (; !code && !result; code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT))
            if (meta_unseal(meta_table, &key, &value))
                result = each(argument, key.mv_data, key.mv_size, value.mv_data, value.mv_size);
        mdb_cursor_close(cursor);
    }
    meta_read_end(reader);
    if (code && code != MDB_NOTFOUND)
        return meta_error(code, "walk");
    return result;
}

errint_t store_table_get(struct store *store, enum store_table table, const void *key,
                         size_t key_bytes, void **value, size_t *value_bytes)
{
    struct meta_reader *reader;
    enum meta_table meta_table;
    const void *found;
    if (!table_of(table, &meta_table) || !key_bytes || key_bytes > 500)
        return -EINVAL;
    errint_t error = meta_read_begin(&store->meta, &reader);
    if (error)
        return error;
    error = meta_get(&store->meta, reader->txn, meta_table, key, key_bytes, &found, value_bytes);
    if (!error && !(*value = copy_of(found, *value_bytes)))
        error = -ENOMEM;
    meta_read_end(reader);
    return error;
}
