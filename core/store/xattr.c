/* Extended attributes: of staged files until their commit, and of objects.
 *
 * All of a file's are one value: for each a header, the name, the value. */
#include <string.h>
#include <sys/xattr.h>

#include "core/store/store_internal.h"

enum { NAME_LIMIT = 255, VALUE_LIMIT = 65536, COUNT_LIMIT = 128 };

struct header {
    uint32_t name_bytes, value_bytes;
};

bool xattr_next(const char *list, size_t list_bytes, size_t *offset, const char **name,
                size_t *name_bytes, const char **value, size_t *value_bytes)
{
    struct header header;
    if (list_bytes - *offset < sizeof header)
        return false;
    memcpy(&header, list + *offset, sizeof header);
    size_t left = list_bytes - *offset - sizeof header;
    if (!header.name_bytes || header.name_bytes > NAME_LIMIT || header.value_bytes > VALUE_LIMIT ||
        left < (size_t)header.name_bytes + header.value_bytes)
        return false;
    *name = list + *offset + sizeof header;
    *name_bytes = header.name_bytes;
    *value = *name + header.name_bytes;
    *value_bytes = header.value_bytes;
    *offset += sizeof header + header.name_bytes + header.value_bytes;
    return true;
}

static size_t append(char *list, size_t at, const char *name, size_t name_bytes, const void *value,
                     size_t value_bytes)
{
    struct header header = {(uint32_t)name_bytes, (uint32_t)value_bytes};
    memcpy(list + at, &header, sizeof header);
    memcpy(list + at + sizeof header, name, name_bytes);
    if (value_bytes)
        memcpy(list + at + sizeof header + name_bytes, value, value_bytes);
    return at + sizeof header + name_bytes + value_bytes;
}

static bool find(const char *list, size_t list_bytes, const char *wanted, const char **value,
                 size_t *value_bytes)
{
    size_t offset = 0, name_bytes, wanted_bytes = strlen(wanted);
    const char *name;
    while (xattr_next(list, list_bytes, &offset, &name, &name_bytes, value, value_bytes))
        if (name_bytes == wanted_bytes && memcmp(name, wanted, name_bytes) == 0)
            return true;
    return false;
}

static size_t count_of(const char *list, size_t list_bytes)
{
    size_t offset = 0, name_bytes, value_bytes, count = 0;
    const char *name, *value;
    while (xattr_next(list, list_bytes, &offset, &name, &name_bytes, &value, &value_bytes))
        count++;
    return count;
}

/* A copy without `left_out`, with room for `more` bytes. */
static char *copy_without(const char *list, size_t list_bytes, const char *left_out, size_t more,
                          size_t *bytes)
{
    size_t offset = 0, name_bytes, value_bytes, left_out_bytes = strlen(left_out);
    const char *name, *value;
    char *out = malloc(list_bytes + more + 1);
    *bytes = 0;
    while (out && xattr_next(list, list_bytes, &offset, &name, &name_bytes, &value, &value_bytes))
        if (name_bytes != left_out_bytes || memcmp(name, left_out, name_bytes) != 0)
            *bytes = append(out, *bytes, name, name_bytes, value, value_bytes);
    return out;
}

static bool is_own(const char *name, size_t name_bytes)
{
    const size_t prefix = sizeof XATTR_OWN - 1;
    return name_bytes >= prefix && memcmp(name, XATTR_OWN, prefix) == 0;
}

errint_t xattr_without_own(const char *list, size_t list_bytes, char **out, size_t *out_bytes)
{
    size_t offset = 0, name_bytes, value_bytes;
    const char *name, *value;
    *out = NULL;
    *out_bytes = 0;
    if (!list_bytes)
        return 0;
    char *copy = malloc(list_bytes);
    if (!copy)
        return -ENOMEM;
    while (xattr_next(list, list_bytes, &offset, &name, &name_bytes, &value, &value_bytes))
        if (!is_own(name, name_bytes))
            *out_bytes = append(copy, *out_bytes, name, name_bytes, value, value_bytes);
    if (*out_bytes) {
        *out = copy;
    } else {
        free(copy);
    }
    return 0;
}

static errint_t check_name(const char *name)
{
    size_t bytes = strnlen(name, NAME_LIMIT + 1);
    if (strncmp(name, "user.", 5) != 0)
        return -EOPNOTSUPP;
    if (bytes > NAME_LIMIT)
        return -ERANGE;
    if (bytes == 5)
        return -EINVAL;
    return is_own(name, bytes) && strcmp(name, XATTR_REFS) != 0 ? -EPERM : 0;
}

/* --- staged files --- */

static struct staged *get_locked(struct store *store, uint64_t number)
{
    struct staged *staged = staged_get(store, number);
    if (staged)
        pthread_mutex_lock(&staged->lock);
    return staged;
}

static void put_locked(struct store *store, struct staged *staged)
{
    pthread_mutex_unlock(&staged->lock);
    staged_put(store, staged);
    objects_settle(store);
}

/* On disk, then in memory: `list` is taken over. */
static errint_t keep(struct store *store, struct staged *staged, char *list, size_t list_bytes)
{
    MDB_txn *txn;
    store_write_lock(store);
    errint_t error = meta_begin(&store->meta, list_bytes, &txn);
    if (!error) {
        if (list_bytes)
            error =
                meta_put_number(&store->meta, txn, META_XATTRS, staged->number, list, list_bytes);
        else
            error = meta_delete_number(&store->meta, txn, META_XATTRS, staged->number);
        error = meta_end(txn, error);
    }
    store_write_unlock(store);
    if (error) {
        free(list);
        return error;
    }
    free(staged->xattrs);
    staged->xattrs = list;
    staged->xattrs_bytes = list_bytes;
    return 0;
}

struct new_refs {
    struct mob_id *ids;
    size_t count;
    bool from_content;
};

static errint_t read_refs(struct store *store, const void *value, size_t bytes,
                          struct new_refs *out, struct mob_error *err)
{
    memset(out, 0, sizeof *out);
    if (bytes == 7 && memcmp(value, "content", 7) == 0) {
        out->from_content = true;
        return 0;
    }
    errint_t error = refs_parse(value, bytes, &out->ids, &out->count, err);
    if (error)
        return error;
    error = refs_hold(store, out->ids, out->count, err);
    if (error) {
        free(out->ids);
        out->ids = NULL;
    }
    return error;
}

static void set_refs(struct store *store, struct staged *staged, const struct new_refs *refs)
{
    staged_set_refs(store, staged, refs->ids, refs->count);
    staged->refs_from_content = refs->from_content;
}

static errint_t set_value(struct store *store, struct staged *staged, const char *name,
                          const void *value, size_t bytes)
{
    size_t kept_bytes, name_bytes = strlen(name);
    char *list = copy_without(staged->xattrs, staged->xattrs_bytes, name,
                              sizeof(struct header) + name_bytes + bytes, &kept_bytes);
    if (!list)
        return -ENOMEM;
    return keep(store, staged, list, append(list, kept_bytes, name, name_bytes, value, bytes));
}

static errint_t set_locked(struct store *store, struct staged *staged, const char *name,
                           const void *value, size_t bytes, int flags, struct mob_error *err)
{
    const char *old;
    size_t old_bytes;
    bool exists = find(staged->xattrs, staged->xattrs_bytes, name, &old, &old_bytes);
    if (staged->committed)
        return -EPERM;
    if (flags & XATTR_CREATE && exists)
        return -EEXIST;
    if (flags & XATTR_REPLACE && !exists)
        return -ENODATA;
    if (!exists && count_of(staged->xattrs, staged->xattrs_bytes) >= COUNT_LIMIT)
        return -ENOSPC;
    if (strcmp(name, XATTR_REFS) != 0)
        return set_value(store, staged, name, value, bytes);
    struct new_refs refs;
    errint_t error = read_refs(store, value, bytes, &refs, err);
    if (error)
        return error;
    error = set_value(store, staged, name, value, bytes);
    if (!error) {
        set_refs(store, staged, &refs);
        return 0;
    }
    refs_drop(store, refs.ids, refs.count);
    free(refs.ids);
    return error;
}

errint_t staged_xattr_set(struct store *store, uint64_t number, const char *name, const void *value,
                          size_t bytes, int flags, struct mob_error *err)
{
    errint_t error = check_name(name);
    if (error)
        return error;
    if (bytes > VALUE_LIMIT)
        return -E2BIG;
    struct staged *staged = get_locked(store, number);
    if (!staged)
        return -ENOENT;
    error = set_locked(store, staged, name, value, bytes, flags, err);
    put_locked(store, staged);
    return error;
}

static errint_t remove_locked(struct store *store, struct staged *staged, const char *name)
{
    const char *old;
    size_t old_bytes, kept_bytes;
    if (staged->committed)
        return -EPERM;
    if (!find(staged->xattrs, staged->xattrs_bytes, name, &old, &old_bytes))
        return -ENODATA;
    char *list = copy_without(staged->xattrs, staged->xattrs_bytes, name, 0, &kept_bytes);
    if (!list)
        return -ENOMEM;
    errint_t error = keep(store, staged, list, kept_bytes);
    if (!error && strcmp(name, XATTR_REFS) == 0)
        set_refs(store, staged, &(struct new_refs){0});
    return error;
}

errint_t staged_xattr_remove(struct store *store, uint64_t number, const char *name)
{
    errint_t error = check_name(name);
    if (error)
        return error;
    struct staged *staged = get_locked(store, number);
    if (!staged)
        return -ENOENT;
    error = remove_locked(store, staged, name);
    put_locked(store, staged);
    return error;
}

/* --- reading either kind --- */

static ssize_t give_value(const char *list, size_t list_bytes, const char *name, void *out,
                          size_t bytes)
{
    const char *value;
    size_t value_bytes;
    if (!find(list, list_bytes, name, &value, &value_bytes))
        return -ENODATA;
    if (bytes && value_bytes > bytes)
        return -ERANGE;
    if (bytes && value_bytes)
        memcpy(out, value, value_bytes);
    return (ssize_t)value_bytes;
}

static ssize_t give_names(const char *list, size_t list_bytes, char *out, size_t bytes)
{
    size_t offset = 0, name_bytes, value_bytes, used = 0;
    const char *name, *value;
    while (xattr_next(list, list_bytes, &offset, &name, &name_bytes, &value, &value_bytes)) {
        if (bytes && used + name_bytes + 1 > bytes)
            return -ERANGE;
        if (bytes) {
            memcpy(out + used, name, name_bytes);
            out[used + name_bytes] = '\0';
        }
        used += name_bytes + 1;
    }
    return (ssize_t)used;
}

ssize_t staged_xattr_get(struct store *store, uint64_t number, const char *name, void *value,
                         size_t bytes)
{
    struct staged *staged = get_locked(store, number);
    if (!staged)
        return -ENOENT;
    ssize_t got = give_value(staged->xattrs, staged->xattrs_bytes, name, value, bytes);
    put_locked(store, staged);
    return got;
}

ssize_t staged_xattr_list(struct store *store, uint64_t number, char *list, size_t bytes)
{
    struct staged *staged = get_locked(store, number);
    if (!staged)
        return -ENOENT;
    ssize_t got = give_names(staged->xattrs, staged->xattrs_bytes, list, bytes);
    put_locked(store, staged);
    return got;
}

/* Reads an object's list; the reader is to be ended after its last use. -ENODATA: it has none. */
static errint_t object_list(struct store *store, uint64_t number, struct meta_reader **reader,
                            const char **list, size_t *list_bytes)
{
    struct table_shard *shard;
    const struct object *object = table_lock_number(&store->table, number, &shard);
    if (!object)
        return -ENOENT;
    bool any = object->flags & OBJECT_HAS_XATTRS;
    table_unlock(shard);
    if (!any)
        return -ENODATA;
    errint_t error = meta_read_begin(&store->meta, reader);
    if (error)
        return error;
    const void *value;
    error = meta_get_number(&store->meta, (*reader)->txn, META_XATTRS, number, &value, list_bytes);
    if (error)
        meta_read_end(*reader);
    *list = value;
    return error == -ENOENT ? -ENODATA : error;
}

ssize_t store_xattr_get(struct store *store, uint64_t number, const char *name, void *value,
                        size_t bytes)
{
    struct meta_reader *reader;
    const char *list;
    size_t list_bytes;
    errint_t error = object_list(store, number, &reader, &list, &list_bytes);
    if (error)
        return error;
    ssize_t got = give_value(list, list_bytes, name, value, bytes);
    meta_read_end(reader);
    return got;
}

ssize_t store_xattr_list(struct store *store, uint64_t number, char *out, size_t bytes)
{
    struct meta_reader *reader;
    const char *list;
    size_t list_bytes;
    errint_t error = object_list(store, number, &reader, &list, &list_bytes);
    if (error)
        return error == -ENODATA ? 0 : error;
    ssize_t got = give_names(list, list_bytes, out, bytes);
    meta_read_end(reader);
    return got;
}

/* --- after a restart --- */

errint_t staged_xattrs_load(struct store *store, struct staged *staged)
{
    struct meta_reader *reader;
    const void *value;
    size_t bytes;
    errint_t error = meta_read_begin(&store->meta, &reader);
    if (error)
        return error;
    error = meta_get_number(&store->meta, reader->txn, META_XATTRS, staged->number, &value, &bytes);
    if (!error) {
        staged->xattrs = malloc(bytes + 1);
        if (staged->xattrs)
            memcpy(staged->xattrs, value, bytes);
        else
            error = -ENOMEM;
        staged->xattrs_bytes = error ? 0 : bytes;
    }
    meta_read_end(reader);
    if (error == -EIO) {
        mob_log_error("store: the attributes of %s, which was being written, are damaged; it goes "
                      "on without",
                      staged->name);
        error = 0;
    }
    if (error || !staged->xattrs)
        return error == -ENOENT ? 0 : error;
    const char *refs;
    size_t refs_bytes;
    if (!find(staged->xattrs, staged->xattrs_bytes, XATTR_REFS, &refs, &refs_bytes))
        return 0;
    staged->refs_from_content = refs_bytes == 7 && memcmp(refs, "content", 7) == 0;
    if (staged->refs_from_content)
        return 0;
    error = refs_parse(refs, refs_bytes, &staged->refs, &staged->ref_count, NULL);
    for (size_t i = 0; i < staged->ref_count && !error; i++)
        error = object_link_or_note(store, &staged->refs[i]);
    return error;
}
