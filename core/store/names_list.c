/* Names: listing directories, walking all of them. */
#include <string.h>

#include "core/store/store_internal.h"

/* Staged files of a directory with keys from `cursor` on: the `limit` lowest, in order. They are
 * few, so the whole table is looked through. */
static size_t lowest_staged(struct store *store, uint64_t directory, uint64_t cursor,
                            struct name_entry *out, size_t limit)
{
    size_t count = 0;
    for (size_t i = 0; i < store->staged_names.bucket_count; i++) {
        for (struct hash_node *node = store->staged_names.buckets[i]; node; node = node->next) {
            const struct staged *staged = hash_entry(node, struct staged, by_name);
            if (staged->parent != directory || staged->key < cursor)
                continue;
            if (count == limit && staged->key + 1 >= out[count - 1].cursor)
                continue;
            size_t at = count < limit ? count++ : count - 1;
            for (; at && out[at - 1].cursor > staged->key + 1; at--)
                out[at] = out[at - 1];
            staged_set_info(staged, &out[at].info);
            out[at].cursor = staged->key + 1;
            memcpy(out[at].name, staged->name, staged->name_bytes);
            out[at].name[staged->name_bytes] = '\0';
        }
    }
    return count;
}

/* The staged ones first, then what is in LMDB: a file that is committed in between is in both, and
 * since its key stays the same it is told once. */
static size_t merge(const struct name_entry *staged, size_t staged_count, size_t *next_staged,
                    uint64_t key, struct name_entry *out, size_t count, size_t limit)
{
    while (count < limit && *next_staged < staged_count && staged[*next_staged].cursor <= key + 1)
        out[count++] = staged[(*next_staged)++];
    return count;
}

static ssize_t list_stored(struct store *store, MDB_cursor *cursor, uint64_t directory,
                           uint64_t from, const struct name_entry *staged, size_t staged_count,
                           struct name_entry *out, size_t limit)
{
    struct name_key start = name_key_make(directory, from);
    MDB_val key = {sizeof start, &start}, value;
    size_t count = 0, next_staged = 0;
    int code = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
    for (; !code && count < limit; code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) {
        if (key.mv_size != sizeof start || memcmp(key.mv_data, start.parent, 8) != 0)
            break;
        uint64_t parent, position;
        struct name_record record;
        if (!meta_unseal(META_NAMES, &key, &value) ||
            !name_record_decode(&key, &value, &parent, &position, &record))
            continue;
        count = merge(staged, staged_count, &next_staged, position, out, count, limit);
        if (count == limit || (count && out[count - 1].cursor == position + 1))
            continue;
        struct name_entry *entry = &out[count++];
        name_record_info(store, directory, &record, &entry->info);
        entry->cursor = position + 1;
        memcpy(entry->name, record.name, record.name_bytes);
        entry->name[record.name_bytes] = '\0';
    }
    if (code && code != MDB_NOTFOUND)
        return meta_error(code, "list");
    return (ssize_t)merge(staged, staged_count, &next_staged, UINT64_MAX - 1, out, count, limit);
}

ssize_t names_list(struct store *store, uint64_t directory, uint64_t cursor, struct name_entry *out,
                   size_t count)
{
    if (!count)
        return -EINVAL;
    cleanup_free struct name_entry *staged = NULL;
    size_t staged_count = 0;
    pthread_mutex_lock(&store->tree_lock);
    const struct directory *found = directory_get(store, directory);
    unsigned depth = directory_depth(store, found) + 1;
    size_t limit = store->staged_names.count < count ? store->staged_names.count : count;
    if (found && limit && (staged = calloc(limit, sizeof *staged)))
        staged_count = lowest_staged(store, directory, cursor, staged, limit);
    pthread_mutex_unlock(&store->tree_lock);
    if (!found)
        return -ENOENT;
    if (limit && !staged)
        return -ENOMEM;
    for (size_t i = 0; i < staged_count; i++)
        staged[i].info.depth = depth;
    struct meta_reader *reader;
    errint_t error = meta_read_begin(&store->meta, &reader);
    if (error)
        return error;
    ssize_t listed =
        list_stored(store, reader->names, directory, cursor, staged, staged_count, out, count);
    meta_read_end(reader);
    return listed;
}

errint_t names_symlink_text(struct store *store, uint64_t number, char **text)
{
    struct meta_reader *reader;
    const void *value;
    size_t bytes;
    errint_t error = meta_read_begin(&store->meta, &reader);
    if (error)
        return error;
    error = meta_get_number(&store->meta, reader->txn, META_SYMLINKS, number, &value, &bytes);
    if (!error && (!bytes || bytes > 4095 || memchr(value, '\0', bytes)))
        error = -EIO;
    if (!error && !(*text = strndup(value, bytes)))
        error = -ENOMEM;
    meta_read_end(reader);
    return error;
}

errint_t names_each_job(struct store *store, int (*each)(void *argument, const struct mob_id *job),
                        void *argument)
{
    struct meta_reader *reader;
    MDB_val key, value;
    errint_t error = meta_read_begin(&store->meta, &reader);
    if (error)
        return error;
    int result = 0;
    int code = mdb_cursor_get(reader->names, &key, &value, MDB_FIRST);
    for (; !code && !result; code = mdb_cursor_get(reader->names, &key, &value, MDB_NEXT)) {
        uint64_t parent, position;
        struct name_record record;
        if (meta_unseal(META_NAMES, &key, &value) &&
            name_record_decode(&key, &value, &parent, &position, &record) &&
            record.type == NAME_JOB)
            result = each(argument, &record.target);
    }
    meta_read_end(reader);
    if (code && code != MDB_NOTFOUND)
        return meta_error(code, "walk");
    return result;
}
