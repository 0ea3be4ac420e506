/* Names: finding, making and removing them. Renaming is in names_rename.c, listing in names_list.c.
 */
#include "core/store/names.h"

#include <string.h>
#include <sys/stat.h>

#include "core/store/store_internal.h"

errint_t name_check(const char *name, size_t *name_bytes)
{
    size_t bytes = strnlen(name, NAMES_LENGTH_LIMIT + 1);
    if (bytes > NAMES_LENGTH_LIMIT)
        return -ENAMETOOLONG;
    if (!bytes || memchr(name, '/', bytes) || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return -EINVAL;
    *name_bytes = bytes;
    return 0;
}

/* The secret keeps users from choosing names that collide. */
uint64_t name_hash(const struct store *store, const char *name, size_t name_bytes)
{
    return XXH3_64bits_withSecret(name, name_bytes, store->secret, sizeof store->secret) >>
           (64 - NAME_HASH_BITS);
}

errint_t name_look_stored(MDB_cursor *cursor, struct name_place *place, unsigned *taken)
{
    struct name_key start = name_key_make(place->parent, place->hash);
    MDB_val key = {sizeof start, &start}, value;
    int code = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
    for (; !code; code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) {
        if (key.mv_size != sizeof start || memcmp(key.mv_data, start.parent, 8) != 0)
            return 0;
        uint64_t parent, position = meta_load_be((const uint8_t *)key.mv_data + 8);
        if (position - place->hash >= NAME_PROBES)
            return 0;
        *taken |= 1u << (position - place->hash);
        struct name_record record;
        if (!meta_unseal(META_NAMES, &key, &value) ||
            !name_record_decode(&key, &value, &parent, &position, &record))
            continue;
        if (record.name_bytes != place->name_bytes ||
            memcmp(record.name, place->name, record.name_bytes) != 0)
            continue;
        place->exists = true;
        place->key = position;
        place->record = record;
        return 0;
    }
    return code == MDB_NOTFOUND ? 0 : meta_error(code, "names");
}

static void look_staged(struct store *store, struct name_place *place, unsigned *taken)
{
    for (unsigned i = 0; i < NAME_PROBES && store->staged_names.count; i++) {
        struct staged *staged = staged_at(store, place->parent, place->hash + i);
        if (!staged)
            continue;
        *taken |= 1u << i;
        if (staged->name_bytes != place->name_bytes ||
            memcmp(staged->name, place->name, place->name_bytes) != 0)
            continue;
        place->exists = true;
        place->key = staged->key;
        place->staged = staged;
        return;
    }
}

errint_t name_look(struct store *store, MDB_cursor *cursor, uint64_t parent, const char *name,
                   struct name_place *out)
{
    unsigned taken = 0;
    memset(out, 0, sizeof *out);
    errint_t error = name_check(name, &out->name_bytes);
    if (error)
        return error;
    if (!directory_get(store, parent))
        return -ENOENT;
    out->parent = parent;
    out->name = name;
    out->hash = name_hash(store, name, out->name_bytes);
    look_staged(store, out, &taken);
    if (out->exists)
        return 0;
    error = name_look_stored(cursor, out, &taken);
    if (error || out->exists)
        return error;
    unsigned free = 0;
    while (free < NAME_PROBES && taken >> free & 1)
        free++;
    out->full = free == NAME_PROBES;
    out->key = out->hash + free;
    return 0;
}

void name_record_info(struct store *store, uint64_t parent, const struct name_record *record,
                      struct name_info *out)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->tree_lock);
    const struct directory *directory =
        record->type == NAME_DIRECTORY ? directory_get(store, record->number) : NULL;
    if (directory) {
        directory_set_info(store, directory, out);
        return;
    }
    *out = (struct name_info){
        .type = record->type,
        .number = record->number,
        .target = record->target,
        .parent = parent,
        .depth = directory_depth(store, directory_get(store, parent)) + 1,
        .mode = record->type == NAME_DIRECTORY ? S_IFDIR | record->mode : S_IFLNK | 0777,
        .uid = record->uid,
        .gid = record->gid,
        .mtime_ns = record->mtime_ns,
        .links = 1,
    };
}

void staged_set_info(const struct staged *staged, struct name_info *out)
{
    *out = (struct name_info){
        .type = NAME_STAGED,
        .number = staged->number,
        .parent = staged->parent,
        .mode = S_IFREG | staged->mode,
        .uid = staged->uid,
        .gid = staged->gid,
        .links = 1,
    };
}

/* Staged files are asked first: a staged file's name goes into LMDB before it leaves the table, so
 * that a name is always in at least one of them. */
static errint_t find_staged(struct store *store, const struct name_place *place,
                            struct name_info *out)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->tree_lock);
    const struct directory *directory = directory_get(store, place->parent);
    struct name_place found = *place;
    unsigned taken = 0;
    if (!directory)
        return -ENOENT;
    look_staged(store, &found, &taken);
    if (!found.exists)
        return 1;
    staged_set_info(found.staged, out);
    out->depth = directory_depth(store, directory) + 1;
    return 0;
}

errint_t names_find(struct store *store, uint64_t parent, const char *name, struct name_info *out)
{
    struct name_place place = {.parent = parent, .name = name};
    errint_t error = name_check(name, &place.name_bytes);
    if (error)
        return error == -EINVAL ? -ENOENT : error;
    place.hash = name_hash(store, name, place.name_bytes);
    error = find_staged(store, &place, out);
    if (error <= 0)
        return error;
    struct meta_reader *reader;
    unsigned taken = 0;
    error = meta_read_begin(&store->meta, &reader);
    if (error)
        return error;
    error = name_look_stored(reader->names, &place, &taken);
    if (!error && !place.exists)
        error = -ENOENT;
    if (!error)
        name_record_info(store, parent, &place.record, out);
    meta_read_end(reader);
    return error;
}

errint_t names_directory(struct store *store, uint64_t number, struct name_info *out)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->tree_lock);
    const struct directory *directory = directory_get(store, number);
    if (!directory)
        return -ENOENT;
    directory_set_info(store, directory, out);
    return 0;
}

/* --- making --- */

errint_t name_put_alone(struct store *store, uint64_t parent, uint64_t key,
                        const struct name_record *record, const char *text)
{
    MDB_txn *txn;
    errint_t error = meta_begin(&store->meta, 8192, &txn);
    if (error)
        return error;
    error = name_record_put(&store->meta, txn, parent, key, record);
    if (!error && text)
        error =
            meta_put_number(&store->meta, txn, META_SYMLINKS, record->number, text, strlen(text));
    return meta_end(txn, error);
}

/* Finds the place for a new name, writer held. -EEXIST. */
static errint_t place_new(struct store *store, uint64_t parent, const char *name,
                          struct name_place *place)
{
    struct meta_reader *reader;
    errint_t error = meta_read_begin(&store->meta, &reader);
    if (error)
        return error;
    error = name_look(store, reader->names, parent, name, place);
    meta_read_end(reader);
    if (error)
        return error;
    if (place->exists)
        return -EEXIST;
    return place->full ? -ENOSPC : 0;
}

/* Makes a name that is no directory. `record` lacks only the name itself. */
static errint_t make_name(struct store *store, uint64_t parent, const char *name,
                          struct name_record *record, const char *text, struct name_info *out)
{
    struct name_place place;
    store_names_lock(store);
    errint_t error = place_new(store, parent, name, &place);
    if (!error) {
        record->name = name;
        record->name_bytes = place.name_bytes;
        error = name_put_alone(store, parent, place.key, record, text);
    }
    if (!error) {
        pthread_mutex_lock(&store->tree_lock);
        directory_count(store, parent, 1, record->mtime_ns);
        pthread_mutex_unlock(&store->tree_lock);
        atomic_fetch_add(&store->names, 1);
        name_record_info(store, parent, record, out);
    }
    store_names_unlock(store);
    return error;
}

static errint_t make_directory_locked(struct store *store, struct directory *directory,
                                      const char *name, struct name_info *out)
{
    struct name_place place;
    errint_t error = place_new(store, directory->parent, name, &place);
    if (error)
        return error;
    if (directory_depth(store, directory_get(store, directory->parent)) + 1 >= NAMES_DEPTH_LIMIT)
        return -EMLINK;
    struct name_record record;
    directory->key = place.key;
    directory_record(directory, &record);
    error = name_put_alone(store, directory->parent, place.key, &record, NULL);
    if (error)
        return error;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->tree_lock);
    directory_attach(store, directory);
    directory_count(store, directory->parent, 1, directory->mtime_ns);
    atomic_fetch_add(&store->names, 1);
    directory_set_info(store, directory, out);
    return 0;
}

errint_t names_make_directory(struct store *store, uint64_t parent, const char *name, mode_t mode,
                              uid_t uid, gid_t gid, struct name_info *out)
{
    uint64_t number;
    size_t name_bytes;
    errint_t error = name_check(name, &name_bytes);
    if (!error)
        error = store_new_number(store, &number);
    if (error)
        return error;
    struct directory *directory = directory_new(number, parent, 0, name, name_bytes);
    if (!directory)
        return -ENOMEM;
    directory->mode = mode & 07777;
    directory->uid = uid;
    directory->gid = gid;
    directory->mtime_ns = store_wall_ns(store);
    directory->known = true;
    store_names_lock(store);
    error = make_directory_locked(store, directory, name, out);
    store_names_unlock(store);
    if (error)
        directory_free(directory);
    return error;
}

errint_t names_link_object(struct store *store, uint64_t parent, const char *name,
                           const struct mob_id *id, uid_t uid, gid_t gid, struct name_info *out)
{
    struct name_record record = {.type = NAME_OBJECT,
                                 .uid = uid,
                                 .gid = gid,
                                 .target = *id,
                                 .mtime_ns = store_wall_ns(store)};
    errint_t error = object_link(store, id, &record.number);
    if (error)
        return error;
    error = make_name(store, parent, name, &record, NULL, out);
    if (error)
        object_unlink(store, id);
    objects_settle(store);
    return error;
}

errint_t names_link_job(struct store *store, uint64_t parent, const char *name,
                        const struct mob_id *job, uid_t uid, gid_t gid, struct name_info *out)
{
    struct name_record record = {
        .type = NAME_JOB, .uid = uid, .gid = gid, .target = *job, .mtime_ns = store_wall_ns(store)};
    return make_name(store, parent, name, &record, NULL, out);
}

/* A text that ends in an ID, as a component of its own. */
static bool text_ends_in_id(const char *text, size_t bytes, struct mob_id *id)
{
    if (bytes < MOB_ID_DIGITS || (bytes > MOB_ID_DIGITS && text[bytes - MOB_ID_DIGITS - 1] != '/'))
        return false;
    return mob_id_parse(text + bytes - MOB_ID_DIGITS, MOB_ID_DIGITS, id);
}

errint_t names_make_symlink(struct store *store, uint64_t parent, const char *name,
                            const char *text, uid_t uid, gid_t gid, struct name_info *out)
{
    struct mob_id id;
    size_t text_bytes = strnlen(text, 4096);
    if (!text_bytes)
        return -ENOENT;
    if (text_bytes > 4095)
        return -ENAMETOOLONG;
    if (text_ends_in_id(text, text_bytes, &id)) {
        struct object_info info;
        if (store_find(store, &id, &info) == 0) {
            errint_t error = names_link_object(store, parent, name, &id, uid, gid, out);
            if (error != -ENOENT || store_find(store, &id, &info) == 0)
                return error;
        }
    }
    struct name_record record = {.type = NAME_SYMLINK,
                                 .mode = 0777,
                                 .uid = uid,
                                 .gid = gid,
                                 .mtime_ns = store_wall_ns(store)};
    errint_t error = store_new_number(store, &record.number);
    return error ? error : make_name(store, parent, name, &record, text, out);
}

errint_t names_set_directory(struct store *store, uint64_t number, unsigned valid, mode_t mode,
                             uid_t uid, gid_t gid, uint64_t mtime_ns, struct name_info *out)
{
    struct name_record record;
    store_names_lock(store);
    struct directory *directory = directory_get(store, number);
    if (!directory) {
        store_names_unlock(store);
        return -ENOENT;
    }
    directory_record(directory, &record);
    if (valid & NAMES_SET_MODE)
        record.mode = mode & 07777;
    if (valid & NAMES_SET_UID)
        record.uid = uid;
    if (valid & NAMES_SET_GID)
        record.gid = gid;
    if (valid & NAMES_SET_MTIME) {
        record.mtime_ns = mtime_ns;
        record.set_ns = store_wall_ns(store);
    }
    errint_t error = name_put_alone(store, directory->parent, directory->key, &record, NULL);
    if (!error) {
        pthread_mutex_lock(&store->tree_lock);
        directory->mode = (uint16_t)record.mode;
        directory->uid = record.uid;
        directory->gid = record.gid;
        directory->mtime_ns = record.mtime_ns;
        directory->set_ns = record.set_ns;
        directory_set_info(store, directory, out);
        pthread_mutex_unlock(&store->tree_lock);
    }
    store_names_unlock(store);
    return error;
}

/* --- removing --- */

errint_t name_delete(struct store *store, MDB_txn *txn, const struct name_place *place)
{
    struct name_key key = name_key_make(place->parent, place->key);
    errint_t error = meta_delete(&store->meta, txn, META_NAMES, &key, sizeof key);
    if (!error && place->record.type == NAME_SYMLINK)
        error = meta_delete_number(&store->meta, txn, META_SYMLINKS, place->record.number);
    return error;
}

errint_t name_delete_alone(struct store *store, const struct name_place *place)
{
    MDB_txn *txn;
    errint_t error = meta_begin(&store->meta, 0, &txn);
    if (error)
        return error;
    error = name_delete(store, txn, place);
    return meta_end(txn, error);
}

/* Finds an existing name, writer held. The strings of `place->record` are gone when it returns. */
static errint_t place_old(struct store *store, uint64_t parent, const char *name,
                          struct name_place *place)
{
    struct meta_reader *reader;
    errint_t error = meta_read_begin(&store->meta, &reader);
    if (error)
        return error;
    error = name_look(store, reader->names, parent, name, place);
    meta_read_end(reader);
    if (!error && !place->exists)
        error = -ENOENT;
    return error;
}

errint_t names_remove_directory(struct store *store, uint64_t parent, const char *name)
{
    struct name_place place;
    struct directory *directory = NULL;
    if (!parent)
        return -EBUSY;
    store_names_lock(store);
    errint_t error = place_old(store, parent, name, &place);
    if (!error && (place.staged || place.record.type != NAME_DIRECTORY))
        error = -ENOTDIR;
    if (!error && !(directory = directory_get(store, place.record.number)))
        error = -EIO;
    if (!error && directory->entries)
        error = -ENOTEMPTY;
    if (!error)
        error = name_delete_alone(store, &place);
    if (!error) {
        pthread_mutex_lock(&store->tree_lock);
        directory_detach(store, directory);
        directory_count(store, parent, -1, store_wall_ns(store));
        pthread_mutex_unlock(&store->tree_lock);
        atomic_fetch_sub(&store->names, 1);
    }
    store_names_unlock(store);
    if (!error)
        directory_free(directory);
    return error;
}

static errint_t unlink_locked(struct store *store, struct name_place *place)
{
    if (place->staged) {
        staged_unlink_locked(store, place->staged);
        return 0;
    }
    if (place->record.type == NAME_DIRECTORY)
        return -EISDIR;
    errint_t error = name_delete_alone(store, place);
    if (error)
        return error;
    pthread_mutex_lock(&store->tree_lock);
    directory_count(store, place->parent, -1, store_wall_ns(store));
    pthread_mutex_unlock(&store->tree_lock);
    atomic_fetch_sub(&store->names, 1);
    return 0;
}

errint_t names_unlink(struct store *store, uint64_t parent, const char *name, bool *was_job,
                      struct mob_id *job)
{
    struct name_place place;
    if (was_job)
        *was_job = false;
    store_names_lock(store);
    errint_t error = place_old(store, parent, name, &place);
    if (!error)
        error = unlink_locked(store, &place);
    store_names_unlock(store);
    if (error)
        return error;
    if (!place.staged && place.record.type == NAME_OBJECT)
        object_unlink(store, &place.record.target);
    if (!place.staged && place.record.type == NAME_JOB) {
        if (was_job)
            *was_job = true;
        if (job)
            *job = place.record.target;
    }
    objects_settle(store);
    return 0;
}
