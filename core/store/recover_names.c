/* Recovery of names, and of what lists objects: which give the objects' links. Names of objects
 * that were lost are removed, and logged. See recover.c. */
#include <string.h>

#include "core/store/recover_internal.h"

/* --- what was lost --- */

static int compare_ids(const void *a, const void *b)
{
    return memcmp(a, b, MOB_ID_BYTES);
}

static bool is_lost(const struct recovery *it, const struct mob_id *id)
{
    return it->lost_count && bsearch(id, it->lost, it->lost_count, sizeof *id, compare_ids);
}

static errint_t add_name(struct recovery *it, uint64_t parent, uint64_t key,
                         const struct mob_id *target)
{
    if (it->name_count == it->name_capacity) {
        size_t capacity = it->name_capacity ? it->name_capacity * 2 : 64;
        struct lost_name *names = realloc(it->names, capacity * sizeof *names);
        if (!names)
            return -ENOMEM;
        it->names = names;
        it->name_capacity = capacity;
    }
    it->names[it->name_count++] = (struct lost_name){parent, key, *target};
    return 0;
}

static void log_lost(struct store *store, const struct lost_name *lost, const char *name)
{
    char id[MOB_ID_STRING_BYTES];
    cleanup_free char *path = NULL;
    mob_id_format(&lost->target, id);
    if (names_path(store, lost->parent, name, &path) == 0)
        mob_log_error("lost: %s (%s)", path, id);
    else
        mob_log_error("lost: %s (%s)", name, id);
}

static errint_t remove_name(struct store *store, MDB_txn *txn, const struct lost_name *lost)
{
    struct name_key place = name_key_make(lost->parent, lost->key);
    const void *bytes;
    size_t count;
    errint_t error = meta_get(&store->meta, txn, META_NAMES, &place, sizeof place, &bytes, &count);
    if (error)
        return error == -ENOENT ? 0 : error;
    MDB_val key = {sizeof place, &place}, value = {count, (void *)bytes};
    uint64_t parent, position;
    struct name_record record;
    if (name_record_decode(&key, &value, &parent, &position, &record)) {
        char name[NAMES_LENGTH_LIMIT + 1];
        memcpy(name, record.name, record.name_bytes);
        name[record.name_bytes] = '\0';
        log_lost(store, lost, name);
    }
    return meta_delete(&store->meta, txn, META_NAMES, &place, sizeof place);
}

errint_t recover_remove_lost(struct recovery *it)
{
    struct store *store = it->store;
    MDB_txn *txn;
    if (!it->name_count && !it->lost_count)
        return 0;
    errint_t error = meta_begin(&store->meta, 0, &txn);
    if (error)
        return error;
    for (size_t i = 0; i < it->name_count && !error; i++)
        error = remove_name(store, txn, &it->names[i]);
    for (size_t i = 0; i < it->lost_count && !error; i++) {
        static const enum meta_table tables[] = {META_OBJECTS, META_REFS, META_XATTRS, META_SUMS};
        for (size_t t = 0; t < MOB_ARRAY_LENGTH(tables) && !error; t++)
            error = meta_delete_number(&store->meta, txn, tables[t], it->lost_numbers[i]);
        if (!error)
            error = meta_delete_number(&store->meta, txn, META_BLOCKS, it->lost_files[i]);
    }
    if (!error && it->lost_count)
        mob_log_error("store: %zu objects were lost: neither memory nor a spill directory has them",
                      it->lost_count);
    return meta_end(txn, error);
}

/* --- names and directories --- */

/* A directory may be met as a parent before its own record. */
static struct directory *directory_meet(struct store *store, uint64_t number)
{
    struct directory *directory = directory_get(store, number);
    if (directory)
        return directory;
    directory = directory_new(number, 0, 0, "?", 1);
    if (directory)
        hash_insert(&store->directories, &directory->by_number, hash_number(number));
    return directory;
}

static errint_t load_directory(struct recovery *it, uint64_t parent, uint64_t key,
                               const struct name_record *record)
{
    struct directory *directory = directory_meet(it->store, record->number);
    char *name = strndup(record->name, record->name_bytes);
    if (!directory || !name) {
        free(name);
        return -ENOMEM;
    }
    if (directory->known) {
        mob_log_error("store: directory %llu has two names; one is removed",
                      (unsigned long long)record->number);
        free(name);
        return add_name(it, parent, key, &record->target);
    }
    free(directory->name);
    directory->name = name;
    directory->name_bytes = (uint8_t)record->name_bytes;
    directory->known = true;
    directory->parent = parent;
    directory->key = key;
    directory->mode = (uint16_t)record->mode;
    directory->uid = record->uid;
    directory->gid = record->gid;
    /* What came after the last setting of the time has moved it on since. */
    if (!record->set_ns || directory->mtime_ns < record->set_ns)
        directory->mtime_ns = record->set_ns                           ? record->mtime_ns
                              : directory->mtime_ns > record->mtime_ns ? directory->mtime_ns
                                                                       : record->mtime_ns;
    directory->set_ns = record->set_ns;
    return 0;
}

static void note_staged(struct store *store, uint64_t number, uint64_t staged)
{
    struct table_shard *shard;
    struct object *object = table_lock_number(&store->table, number, &shard);
    if (!object)
        return;
    object->staged = staged;
    table_unlock(shard);
}

static errint_t each_name(void *argument, const MDB_val *key, const MDB_val *value)
{
    struct recovery *it = argument;
    struct store *store = it->store;
    uint64_t parent, position;
    struct name_record record;
    if (!name_record_decode(key, value, &parent, &position, &record))
        return 0;
    if (record.number > it->highest)
        it->highest = record.number;
    if (record.type == NAME_OBJECT && is_lost(it, &record.target))
        return add_name(it, parent, position, &record.target);
    if (parent) {
        struct directory *directory = directory_meet(store, parent);
        if (!directory)
            return -ENOMEM;
        directory->entries++;
        if (record.mtime_ns >
            (directory->set_ns > directory->mtime_ns ? directory->set_ns : directory->mtime_ns))
            directory->mtime_ns = record.mtime_ns;
        atomic_fetch_add(&store->names, 1);
    }
    if (record.type == NAME_DIRECTORY)
        return load_directory(it, parent, position, &record);
    if (record.type != NAME_OBJECT)
        return 0;
    if (record.staged)
        note_staged(store, record.number, record.staged);
    return object_link_or_note(store, &record.target);
}

static errint_t make_root(struct store *store, uint64_t number, const char *name)
{
    struct directory *root = directory_get(store, number);
    if (root && root->known && !root->parent)
        return 0;
    struct name_record record = {.type = NAME_DIRECTORY,
                                 .mode = 01777,
                                 .uid = geteuid(),
                                 .gid = getegid(),
                                 .number = number,
                                 .mtime_ns = store_wall_ns(store),
                                 .name = name,
                                 .name_bytes = strlen(name)};
    errint_t error = name_put_alone(store, 0, number, &record, NULL);
    struct recovery it = {.store = store};
    return error ? error : load_directory(&it, 0, number, &record);
}

static bool reaches_root(struct store *store, const struct directory *directory)
{
    for (unsigned depth = 0; depth <= NAMES_DEPTH_LIMIT && directory; depth++) {
        if (!directory->known)
            return false;
        if (!directory->parent)
            return directory->number == NAMES_STAGING || directory->number == NAMES_RUN;
        directory = directory_get(store, directory->parent);
    }
    return false;
}

/* Links children to their parents. A directory that hangs on nothing can't come from our
 * transactions; it is logged and left out, as its entries are. */
static void link_directories(struct store *store)
{
    struct directory *bad = NULL;
    for (size_t i = 0; i < store->directories.bucket_count; i++) {
        for (struct hash_node *node = store->directories.buckets[i]; node; node = node->next) {
            struct directory *directory = hash_entry(node, struct directory, by_number);
            if (!reaches_root(store, directory)) {
                directory->next_sibling = bad;
                bad = directory;
                continue;
            }
            struct directory *parent = directory_get(store, directory->parent);
            directory->next_sibling = parent ? parent->first_child : NULL;
            if (parent && parent->first_child)
                parent->first_child->previous_sibling = directory;
            if (parent) {
                parent->first_child = directory;
                parent->subdirectories++;
            }
        }
    }
    while (bad) {
        struct directory *next = bad->next_sibling;
        mob_log_error("store: directory %llu hangs on nothing; it is left out",
                      (unsigned long long)bad->number);
        hash_remove(&store->directories, &bad->by_number);
        directory_free(bad);
        bad = next;
    }
}

errint_t recover_names(struct recovery *it)
{
    struct store *store = it->store;
    if (it->lost_count)
        qsort(it->lost, it->lost_count, sizeof *it->lost, compare_ids);
    errint_t error = recover_walk(store, META_NAMES, it, each_name);
    if (!error)
        error = make_root(store, NAMES_STAGING, "staging");
    if (!error)
        error = make_root(store, NAMES_RUN, "run");
    if (!error)
        link_directories(store);
    return error;
}

/* --- references between objects --- */

static errint_t each_refs(void *argument, const MDB_val *key, const MDB_val *value)
{
    struct recovery *it = argument;
    struct table_shard *shard;
    const struct mob_id *ids;
    size_t count;
    if (key->mv_size != 8)
        return 0;
    uint64_t number = meta_load_be(key->mv_data);
    struct object *object = table_lock_number(&it->store->table, number, &shard);
    if (!object)
        return 0;
    object->flags |= OBJECT_HAS_REFS;
    table_unlock(shard);
    if (!refs_decode(number, value->mv_data, value->mv_size, &ids, &count))
        return 0;
    errint_t error = 0;
    for (size_t i = 0; i < count && !error; i++)
        error = object_link_or_note(it->store, &ids[i]);
    return error;
}

errint_t recover_references(struct recovery *it)
{
    return recover_walk(it->store, META_REFS, it, each_refs);
}

/* --- links to what did not come back --- */

static errint_t each_unresolved_name(void *argument, const MDB_val *key, const MDB_val *value)
{
    struct recovery *it = argument;
    uint64_t parent, position;
    struct name_record record;
    struct object_info info;
    if (!name_record_decode(key, value, &parent, &position, &record) ||
        record.type != NAME_OBJECT || store_find(it->store, &record.target, &info) == 0)
        return 0;
    return add_name(it, parent, position, &record.target);
}

static void forget_unresolved(struct store *store)
{
    for (size_t i = 0; i < store->unresolved.bucket_count; i++) {
        while (store->unresolved.buckets[i]) {
            struct hash_node *node = store->unresolved.buckets[i];
            hash_remove(&store->unresolved, node);
            free(hash_entry(node, struct unresolved, node));
        }
    }
}

void store_drop_unresolved(struct store *store)
{
    struct recovery it = {.store = store};
    store_names_lock(store);
    errint_t error = 0;
    if (store->unresolved.count) {
        error = recover_walk(store, META_NAMES, &it, each_unresolved_name);
        if (!error)
            error = recover_remove_lost(&it);
        pthread_mutex_lock(&store->tree_lock);
        for (size_t i = 0; i < it.name_count && !error; i++) {
            directory_count(store, it.names[i].parent, -1, store_wall_ns(store));
            atomic_fetch_sub(&store->names, 1);
        }
        forget_unresolved(store);
        pthread_mutex_unlock(&store->tree_lock);
    }
    store_names_unlock(store);
    if (error)
        mob_log_error("store: names of objects that are gone can't be removed: %s",
                      strerror(-error));
    free(it.names);
}
