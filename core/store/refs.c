/* References: who counts, and what happens when the last one goes.
 *
 * An object that nothing refers to leaves the table at once: from then on nobody finds it. It waits
 * in a list until its user has been told (objects_settle(), called with no lock held at the end of
 * every call that may drop a reference), then in another until it is taken off the disk. A small
 * object's record is no hurry, so a few are taken off in one transaction; a data file is memory and
 * goes at once. A server killed in between leaves records that nothing refers to, which the next
 * one frees: no reference is kept on disk but names and lists of IDs. */
#include <string.h>

#include "core/store/store_internal.h"

enum { FLUSH_COUNT = 64, FLUSH_STEP = 512 };
/* A data file, or an object that may hold others, is due at once. */
#define WEIGHT_DUE (UINT64_C(4) << 20)

void object_note_change(struct store *store, uint64_t number)
{
    if (!store->hooks.object_changed)
        return;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->dead_lock);
    if (store->changed_count == store->changed_capacity) {
        size_t capacity = store->changed_capacity ? store->changed_capacity * 2 : 64;
        uint64_t *changed = realloc(store->changed, capacity * sizeof *changed);
        if (!changed) {
            mob_log_error("store: no memory to tell of a change with");
            return;
        }
        store->changed = changed;
        store->changed_capacity = capacity;
    }
    store->changed[store->changed_count++] = number;
    atomic_store(&store->dead_any, true);
}

static void tell_changes(struct store *store)
{
    pthread_mutex_lock(&store->dead_lock);
    uint64_t *changed = store->changed;
    size_t count = store->changed_count;
    store->changed = NULL;
    store->changed_count = store->changed_capacity = 0;
    pthread_mutex_unlock(&store->dead_lock);
    for (size_t i = 0; i < count; i++)
        store->hooks.object_changed(store->hooks.context, changed[i]);
    free(changed);
}

/* --- unresolved IDs: links, found at recovery, to objects that jobs make again --- */

static struct unresolved *unresolved_find(struct store *store, const struct mob_id *id)
{
    uint64_t hash;
    memcpy(&hash, id->bytes + MOB_ID_OWNER_BYTES, sizeof hash);
    struct hash_node *node = hash_first(&store->unresolved, hash);
    for (; node; node = hash_next(node)) {
        struct unresolved *entry = hash_entry(node, struct unresolved, node);
        if (mob_id_equal(&entry->id, id))
            return entry;
    }
    return NULL;
}

static errint_t unresolved_add(struct store *store, const struct mob_id *id)
{
    struct unresolved *entry = unresolved_find(store, id);
    if (!entry) {
        uint64_t hash;
        entry = calloc(1, sizeof *entry);
        if (!entry)
            return -ENOMEM;
        entry->id = *id;
        memcpy(&hash, id->bytes + MOB_ID_OWNER_BYTES, sizeof hash);
        hash_insert(&store->unresolved, &entry->node, hash);
    }
    entry->count++;
    return 0;
}

uint32_t unresolved_take(struct store *store, const struct mob_id *id)
{
    struct unresolved *entry = store->unresolved.count ? unresolved_find(store, id) : NULL;
    if (!entry)
        return 0;
    uint32_t count = entry->count;
    hash_remove(&store->unresolved, &entry->node);
    free(entry);
    return count;
}

static void unresolved_drop(struct store *store, const struct mob_id *id)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->tree_lock);
    struct unresolved *entry = store->unresolved.count ? unresolved_find(store, id) : NULL;
    if (!entry || --entry->count)
        return;
    hash_remove(&store->unresolved, &entry->node);
    free(entry);
}

/* --- links --- */

errint_t object_link(struct store *store, const struct mob_id *id, uint64_t *number)
{
    struct table_shard *shard;
    struct object *object = table_lock_id(&store->table, id, &shard);
    if (!object)
        return -ENOENT;
    errint_t error = object->links == UINT32_MAX ? -EMLINK : 0;
    if (!error)
        object->links++;
    uint64_t found = object->number;
    table_unlock(shard);
    if (number)
        *number = found;
    if (!error)
        object_note_change(store, found);
    return error;
}

errint_t object_link_or_note(struct store *store, const struct mob_id *id)
{
    errint_t error = object_link(store, id, NULL);
    return error == -ENOENT ? unresolved_add(store, id) : error;
}

void object_unlink(struct store *store, const struct mob_id *id)
{
    struct table_shard *shard;
    struct object *object = table_lock_id(&store->table, id, &shard);
    if (!object) {
        unresolved_drop(store, id);
        return;
    }
    if (object->links)
        object->links--;
    bool unused = !object->links && !object->opens;
    uint64_t number = object->number;
    table_unlock(shard);
    if (unused)
        object_release(store, number);
    else
        object_note_change(store, number);
}

errint_t store_hold(struct store *store, const struct mob_id *id)
{
    errint_t error = object_link(store, id, NULL);
    objects_settle(store);
    return error;
}

void store_drop(struct store *store, const struct mob_id *id)
{
    object_unlink(store, id);
    objects_settle(store);
}

errint_t store_pin(struct store *store, const struct mob_id *id)
{
    struct table_shard *shard;
    struct object *object = table_lock_id(&store->table, id, &shard);
    if (!object)
        return -ENOENT;
    object->pins = (uint16_t)(object->pins + (object->pins < UINT16_MAX));
    table_unlock(shard);
    return 0;
}

void store_unpin(struct store *store, const struct mob_id *id)
{
    struct table_shard *shard;
    struct object *object = table_lock_id(&store->table, id, &shard);
    if (!object)
        return;
    object->pins = (uint16_t)(object->pins - (object->pins > 0));
    table_unlock(shard);
}

errint_t store_opened(struct store *store, uint64_t number)
{
    struct table_shard *shard;
    struct object *object = table_lock_number(&store->table, number, &shard);
    if (!object)
        return -ENOENT;
    errint_t error = object->opens == UINT32_MAX ? -EMFILE : 0;
    bool again = object->tier == TIER_DISK && object->flags & OBJECT_REOPENED;
    if (!error) {
        object->opens++;
        if (object->tier == TIER_DISK)
            object->flags |= OBJECT_REOPENED;
        if (object->tier == TIER_MEMORY)
            object->used = spill_now(store);
    }
    table_unlock(shard);
    if (again && !error)
        fetch_reopened(store, number);
    return error;
}

void store_open_dropped(struct store *store, uint64_t number)
{
    struct table_shard *shard;
    struct object *object = table_lock_number(&store->table, number, &shard);
    if (!object)
        return;
    if (object->opens)
        object->opens--;
    bool unused = !object->links && !object->opens;
    table_unlock(shard);
    if (unused) {
        object_release(store, number);
        objects_settle(store);
    }
}

/* --- freeing --- */

static uint64_t weight_of(const struct object *object)
{
    if (object->state != OBJECT_READY)
        return 0;
    if (object->file || object->flags & OBJECT_HAS_REFS)
        return WEIGHT_DUE;
    return object->size;
}

void object_release(struct store *store, uint64_t number)
{
    if (!atomic_load(&store->collecting))
        return;
    struct dead *dead = malloc(sizeof *dead);
    if (!dead) {
        /* It stays, unreferenced; the next start frees it. */
        mob_log_error("store: no memory to free an object with");
        return;
    }
    if (!table_take(&store->table, number, true, &dead->object)) {
        free(dead);
        return;
    }
    store_count_object(store, &dead->object, -1);
    atomic_fetch_add(&store->freed, 1);
    dead->next = NULL;
    dead->refs_dropped = false;
    pthread_mutex_lock(&store->dead_lock);
    *store->dead_new_end = dead;
    store->dead_new_end = &dead->next;
    atomic_store(&store->dead_any, true);
    pthread_mutex_unlock(&store->dead_lock);
}

static struct dead *take_new(struct store *store)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->dead_lock);
    struct dead *list = store->dead_new;
    store->dead_new = NULL;
    store->dead_new_end = &store->dead_new;
    atomic_store(&store->dead_any, false);
    return list;
}

/* Tells the user of what has gone. What has nothing on disk ends here, the rest goes to the other
 * list. */
static void tell(struct store *store)
{
    struct dead *dead = take_new(store);
    while (dead) {
        struct dead *next = dead->next;
        struct object *object = &dead->object;
        if (object->state == OBJECT_PENDING)
            waiters_call(object->waiters, object->number, OBJECT_PENDING);
        if (store->hooks.object_freed)
            store->hooks.object_freed(store->hooks.context, object->number, &object->id);
        if (object->state == OBJECT_FAILED)
            free(object->failure);
        if (object->state == OBJECT_READY) {
            cleanup_lock pthread_mutex_t *lock = mob_lock(&store->dead_lock);
            dead->next = store->dead;
            store->dead = dead;
            store->dead_count++;
            store->dead_weight += weight_of(object);
        } else {
            free(dead);
        }
        dead = next;
    }
}

static errint_t drop_refs(struct store *store, MDB_txn *txn, uint64_t number)
{
    const void *value;
    size_t bytes, count;
    const struct mob_id *ids;
    errint_t error = meta_get_number(&store->meta, txn, META_REFS, number, &value, &bytes);
    if (error || !refs_decode(number, value, bytes, &ids, &count))
        return error == -ENOENT || error == -EIO ? 0 : error; /* damaged: logged, none is known */
    for (size_t i = 0; i < count; i++)
        object_unlink(store, &ids[i]);
    return 0;
}

/* The object is out of the table, so that its list of IDs counts no more even if this transaction
 * fails: what it held may be dropped before the commit, once. */
static errint_t erase(struct store *store, MDB_txn *txn, struct dead *dead)
{
    struct meta *meta = &store->meta;
    struct object *object = &dead->object;
    uint64_t number = object->number;
    errint_t error = 0;
    if (object->flags & OBJECT_HAS_REFS) {
        if (!dead->refs_dropped)
            error = drop_refs(store, txn, number);
        if (!error) {
            dead->refs_dropped = true;
            error = meta_delete_number(meta, txn, META_REFS, number);
        }
    }
    if (!error)
        error = meta_delete_number(meta, txn, META_OBJECTS, number);
    if (!error && object->tier == TIER_INLINE && !(object->flags & OBJECT_EMBEDDED))
        error = meta_delete_number(meta, txn, META_INLINE, number);
    if (!error && object->flags & OBJECT_HAS_XATTRS)
        error = meta_delete_number(meta, txn, META_XATTRS, number);
    if (!error && object->flags & OBJECT_HAS_SUM)
        error = meta_delete_number(meta, txn, META_SUMS, number);
    /* One that was being spilled may have them without its flags saying so. */
    if (!error && object->file)
        error = meta_delete_number(meta, txn, META_BLOCKS, object->file);
    return error;
}

static struct dead *take_dead(struct store *store, size_t limit)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->dead_lock);
    struct dead *list = store->dead, *last = list;
    for (size_t i = 1; last && i < limit && last->next; i++)
        last = last->next;
    if (!last)
        return NULL;
    store->dead = last->next;
    last->next = NULL;
    for (const struct dead *dead = list; dead; dead = dead->next) {
        store->dead_count--;
        store->dead_weight -= weight_of(&dead->object);
    }
    return list;
}

static void put_back(struct store *store, struct dead *list)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->dead_lock);
    while (list) {
        struct dead *next = list->next;
        list->next = store->dead;
        store->dead = list;
        store->dead_count++;
        store->dead_weight += weight_of(&list->object);
        list = next;
    }
}

static errint_t erase_list(struct store *store, struct dead *list)
{
    MDB_txn *txn;
    store_write_lock(store);
    errint_t error = meta_begin(&store->meta, 0, &txn);
    if (!error) {
        for (struct dead *dead = list; dead && !error; dead = dead->next)
            error = erase(store, txn, dead);
        error = meta_end(txn, error);
    }
    store_write_unlock(store);
    return error;
}

static void remove_files(struct store *store, const struct object *object)
{
    fetch_forget(store, object->number);
    if (!object->file)
        return;
    data_remove(store, object->file);
    if (object->tier == TIER_MEMORY)
        atomic_fetch_sub(&store->memory_used, (int_fast64_t)object_memory(object));
    if (!(object->flags & OBJECT_ON_DISK))
        return;
    struct data_file file = {.file = object->file, .fd = -1, .dir = object->disk};
    uint64_t bytes = object_disk_bytes(object->size, object->flags & OBJECT_ENCRYPTED);
    if (object->flags & OBJECT_DURABLE)
        disk_drop_durable(store, &file, bytes);
    else
        disk_drop(store, &file, bytes);
}

/* Takes up to FLUSH_STEP dead objects off the disk. False: there are none, or it failed (they stay
 * in the list, for the next time). */
static bool flush_some(struct store *store)
{
    struct dead *list = take_dead(store, FLUSH_STEP);
    if (!list)
        return false;
    if (erase_list(store, list)) {
        mob_log_warning("store: freed objects can't be taken off the disk now; trying again later");
        put_back(store, list);
        return false;
    }
    while (list) {
        struct dead *next = list->next;
        remove_files(store, &list->object);
        free(list);
        list = next;
    }
    disk_settle(store);
    return true;
}

static bool flush_is_due(struct store *store)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->dead_lock);
    return store->dead_count >= FLUSH_COUNT || store->dead_weight >= WEIGHT_DUE;
}

void objects_settle(struct store *store)
{
    while (atomic_load(&store->dead_any)) {
        staged_finish_gone(store);
        tell(store);
        tell_changes(store);
        if (flush_is_due(store) && !flush_some(store))
            return;
    }
    table_trim(&store->table);
}

void objects_flush(struct store *store)
{
    do {
        staged_finish_gone(store);
        tell(store);
        tell_changes(store);
    } while (flush_some(store));
}

/* --- lists of IDs --- */

/* Keeps the first of each ID. A table of places in `ids`, + 1, at most half full. */
static errint_t make_unique(struct mob_id *ids, size_t *count)
{
    size_t slots = 16, kept = 0;
    while (slots < *count * 2)
        slots *= 2;
    cleanup_free uint32_t *table = calloc(slots, sizeof *table);
    if (!table)
        return -ENOMEM;
    for (size_t i = 0; i < *count; i++) {
        size_t slot = XXH3_64bits(&ids[i], sizeof ids[i]) & (slots - 1);
        while (table[slot] && !mob_id_equal(&ids[table[slot] - 1], &ids[i]))
            slot = (slot + 1) & (slots - 1);
        if (table[slot])
            continue;
        ids[kept++] = ids[i];
        table[slot] = (uint32_t)kept;
    }
    *count = kept;
    return 0;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

errint_t refs_parse(const char *text, size_t bytes, struct mob_id **out, size_t *out_count,
                    struct mob_error *err)
{
    cleanup_free struct mob_id *ids = malloc((bytes / MOB_ID_DIGITS + 1) * sizeof *ids);
    size_t count = 0, i = 0;
    if (!ids)
        return -ENOMEM;
    while (i < bytes) {
        if (is_space(text[i])) {
            i++;
            continue;
        }
        size_t start = i;
        while (i < bytes && !is_space(text[i]))
            i++;
        if (!mob_id_parse(text + start, i - start, &ids[count]))
            return mob_error_set_at(err, -EINVAL, 0, 0, XATTR_REFS,
                                    "word %zu is not an ID of 40 lower-case hexadecimal digits",
                                    count + 1);
        count++;
    }
    errint_t error = make_unique(ids, &count);
    if (error)
        return error;
    *out = steal_pointer(&ids);
    *out_count = count;
    return 0;
}

errint_t refs_hold(struct store *store, const struct mob_id *ids, size_t count,
                   struct mob_error *err)
{
    for (size_t i = 0; i < count; i++) {
        errint_t error = object_link(store, &ids[i], NULL);
        if (!error)
            continue;
        char text[MOB_ID_STRING_BYTES];
        refs_drop(store, ids, i);
        return mob_error_set_at(err, -EINVAL, 0, 0, XATTR_REFS, "there is no object %s",
                                mob_id_format(&ids[i], text));
    }
    return 0;
}

void refs_drop(struct store *store, const struct mob_id *ids, size_t count)
{
    for (size_t i = 0; i < count; i++)
        object_unlink(store, &ids[i]);
}

static bool has_refs(struct store *store, uint64_t number)
{
    struct table_shard *shard;
    const struct object *object = table_lock_number(&store->table, number, &shard);
    if (!object)
        return false;
    bool has = object->state == OBJECT_READY && object->flags & OBJECT_HAS_REFS;
    table_unlock(shard);
    return has;
}

errint_t store_refs(struct store *store, uint64_t number, char **text, size_t *bytes)
{
    struct object_info info;
    errint_t error = store_info(store, number, &info);
    if (error)
        return error;
    struct meta_reader *reader;
    error = meta_read_begin(&store->meta, &reader);
    if (error)
        return error;
    const void *value;
    const struct mob_id *ids;
    size_t value_bytes, count = 0;
    error = meta_get_number(&store->meta, reader->txn, META_REFS, number, &value, &value_bytes);
    if (!error && !refs_decode(number, value, value_bytes, &ids, &count))
        error = -EIO;
    if (error == -ENOENT) /* what has a damaged key is not found: is there none? */
        error = has_refs(store, number) ? -EIO : 0;
    char *out = error ? NULL : malloc(count * MOB_ID_STRING_BYTES + 1);
    if (!error && !out)
        error = -ENOMEM;
    for (size_t i = 0; i < count && out; i++) {
        mob_id_format(&ids[i], out + i * MOB_ID_STRING_BYTES);
        out[i * MOB_ID_STRING_BYTES + MOB_ID_DIGITS] = '\n';
    }
    meta_read_end(reader);
    if (error)
        return error;
    out[count * MOB_ID_STRING_BYTES] = '\0';
    *text = out;
    *bytes = count * MOB_ID_STRING_BYTES;
    return 0;
}

void staged_set_refs(struct store *store, struct staged *staged, struct mob_id *ids, size_t count)
{
    refs_drop(store, staged->refs, staged->ref_count);
    free(staged->refs);
    staged->refs = ids;
    staged->ref_count = count;
    staged->refs_content_known = false;
}
