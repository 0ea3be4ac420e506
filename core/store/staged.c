/* Staged files: making, naming, opening and ending them. Their data is in staged_data.c. */
#include "core/store/staged.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "core/store/store_internal.h"

/* --- finding --- */

static uint64_t place_hash(uint64_t parent, uint64_t key)
{
    return hash_number(key ^ parent * UINT64_C(0x9e3779b97f4a7c15));
}

static struct staged *find(struct store *store, uint64_t number)
{
    uint64_t hash = hash_number(number);
    struct hash_node *node = hash_first(&store->staged_numbers, hash);
    for (; node; node = hash_next(node)) {
        struct staged *staged = hash_entry(node, struct staged, by_number);
        if (staged->number == number)
            return staged;
    }
    return NULL;
}

struct staged *staged_at(struct store *store, uint64_t parent, uint64_t key)
{
    uint64_t hash = place_hash(parent, key);
    struct hash_node *node = hash_first(&store->staged_names, hash);
    for (; node; node = hash_next(node)) {
        struct staged *staged = hash_entry(node, struct staged, by_name);
        if (staged->parent == parent && staged->key == key)
            return staged;
    }
    return NULL;
}

struct staged *staged_get(struct store *store, uint64_t number)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->tree_lock);
    struct staged *staged = find(store, number);
    if (staged)
        atomic_fetch_add(&staged->users, 1);
    return staged;
}

bool staged_is_direct(const struct staged *staged)
{
    return staged->store->passthrough && !staged->mediated;
}

struct staged *staged_new(const char *name, size_t name_bytes)
{
    struct staged *staged = calloc(1, sizeof *staged);
    if (!staged)
        return NULL;
    staged->name = strndup(name, name_bytes);
    if (!staged->name) {
        free(staged);
        return NULL;
    }
    staged->name_bytes = (uint8_t)name_bytes;
    staged->data = (struct data_file){.fd = -1, .dir = DISK_NO_DIR};
    staged->grown = staged->data;
    staged->slot = RECORD_SLOTS;
    staged->keeps_file = true;
    atomic_store(&staged->users, 1);
    pthread_mutex_init(&staged->lock, NULL);
    return staged;
}

void staged_free(struct staged *staged)
{
    if (staged->data.fd >= 0)
        close(staged->data.fd);
    pthread_mutex_destroy(&staged->lock);
    free(staged->name);
    free(staged->xattrs);
    free(staged->sums);
    free(staged->refs);
    free(staged);
}

/* --- ending --- */

static void delete_xattrs(struct store *store, uint64_t number)
{
    MDB_txn *txn;
    store_write_lock(store);
    errint_t error = meta_begin(&store->meta, 0, &txn);
    if (!error) {
        error = meta_delete_number(&store->meta, txn, META_XATTRS, number);
        error = meta_end(txn, error);
    }
    store_write_unlock(store);
    if (error)
        mob_log_warning("store: attributes of a discarded file stay until the next start");
}

/* The last user is gone. One that is still in the tables (the store is being closed) leaves
 * everything for the next server. */
static void destroy(struct store *store, struct staged *staged)
{
    grow_end(store, staged);
    if (staged->grows)
        atomic_fetch_sub(&store->memory_files, 1);
    if (staged->gone) {
        watcher_forget(store, staged->number);
        synced_drop(store, staged);
        if (staged->keeps_file) {
            staged_uncharge(store, staged);
            data_give_back(store, &staged->data, staged->write_only);
        }
        refs_drop(store, staged->refs, staged->ref_count);
        if (staged->xattrs_bytes)
            delete_xattrs(store, staged->number);
    }
    staged_free(staged);
}

void staged_put(struct store *store, struct staged *staged)
{
    if (atomic_fetch_sub(&staged->users, 1) == 1)
        destroy(store, staged);
}

void staged_finish_gone(struct store *store)
{
    pthread_mutex_lock(&store->dead_lock);
    struct staged *staged = store->staged_gone;
    store->staged_gone = NULL;
    pthread_mutex_unlock(&store->dead_lock);
    while (staged) {
        struct staged *next = staged->next_gone;
        staged_put(store, staged);
        staged = next;
    }
}

/* --- in the tables --- */

/* Whether somebody has it open for writing, and it is in memory. tree_lock held. */
static void mark_growing(struct store *store, struct staged *staged, bool grows)
{
    grows = grows && staged->data.dir == DISK_NO_DIR;
    if (grows != staged->grows)
        atomic_fetch_add(&store->memory_files, grows ? 1 : -1);
    staged->grows = grows;
}

void staged_insert(struct store *store, struct staged *staged)
{
    hash_insert(&store->staged_numbers, &staged->by_number, hash_number(staged->number));
    atomic_fetch_add(&store->staged, 1);
    mark_growing(store, staged, !staged->closed);
    spill_nudge(store);
    if (!staged->named)
        return;
    hash_insert(&store->staged_names, &staged->by_name, place_hash(staged->parent, staged->key));
}

static void remove_name(struct store *store, struct staged *staged)
{
    if (staged->named)
        hash_remove(&store->staged_names, &staged->by_name);
    staged->named = false;
}

/* tree_lock and writer held. */
static void forget(struct store *store, struct staged *staged)
{
    if (staged->gone)
        return;
    if (staged->named)
        directory_count(store, staged->parent, -1, store_wall_ns(store));
    remove_name(store, staged);
    hash_remove(&store->staged_numbers, &staged->by_number);
    records_erase(&store->records, staged);
    staged->gone = true;
    atomic_fetch_sub(&store->staged, 1);
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->dead_lock);
    staged->next_gone = store->staged_gone;
    store->staged_gone = staged;
    atomic_store(&store->dead_any, true);
}

void staged_forget_locked(struct store *store, struct staged *staged)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->tree_lock);
    forget(store, staged);
}

/* tree_lock and writer held. Without room for a new record the old one goes: its name is no more,
 * and a successor that does not know the file at all is better than one that brings the name back.
 */
static void unlink_staged(struct store *store, struct staged *staged)
{
    if (staged->named)
        directory_count(store, staged->parent, -1, store_wall_ns(store));
    remove_name(store, staged);
    staged->unlinked = true;
    if (!staged->opens)
        forget(store, staged);
    else if (records_write(&store->records, staged))
        records_erase(&store->records, staged);
}

void staged_unlink_locked(struct store *store, struct staged *staged)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->tree_lock);
    unlink_staged(store, staged);
}

errint_t staged_mark_unlinked_locked(struct store *store, struct staged *staged, bool unlinked)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->tree_lock);
    staged->unlinked = unlinked;
    errint_t error = records_write(&store->records, staged);
    if (error)
        staged->unlinked = !unlinked;
    return error;
}

/* Name and place of a staged file, to be put back if its record can't be written. */
struct naming {
    uint64_t parent, key;
    char *name;
    uint8_t name_bytes;
};

static struct naming set_naming(struct staged *staged, struct naming naming)
{
    struct naming old = {staged->parent, staged->key, staged->name, staged->name_bytes};
    staged->parent = naming.parent;
    staged->key = naming.key;
    staged->name = naming.name;
    staged->name_bytes = naming.name_bytes;
    return old;
}

static void rehash_name(struct store *store, struct staged *staged)
{
    hash_remove(&store->staged_names, &staged->by_name);
    hash_insert(&store->staged_names, &staged->by_name, place_hash(staged->parent, staged->key));
}

errint_t staged_rename_locked(struct store *store, struct staged *staged, uint64_t parent,
                              uint64_t key, const char *name, size_t name_bytes,
                              struct staged *replaced)
{
    struct naming naming = {parent, key, strndup(name, name_bytes), (uint8_t)name_bytes};
    if (!naming.name)
        return -ENOMEM;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->tree_lock);
    struct naming old = set_naming(staged, naming);
    errint_t error = records_write(&store->records, staged);
    if (error) {
        free(set_naming(staged, old).name);
        return error;
    }
    free(old.name);
    uint64_t now_ns = store_wall_ns(store);
    if (replaced)
        unlink_staged(store, replaced);
    rehash_name(store, staged);
    directory_count(store, old.parent, -1, now_ns);
    directory_count(store, parent, 1, now_ns);
    return 0;
}

errint_t staged_exchange_locked(struct store *store, struct staged *a, struct staged *b)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->tree_lock);
    struct naming of_a = {a->parent, a->key, a->name, a->name_bytes};
    struct naming of_b = set_naming(b, of_a);
    set_naming(a, of_b);
    errint_t error = records_write(&store->records, a);
    if (!error)
        error = records_write(&store->records, b);
    if (error) {
        set_naming(a, of_a);
        set_naming(b, of_b);
        if (records_write(&store->records, a))
            mob_log_error("store: an exchange that failed could not be taken back");
        return error;
    }
    rehash_name(store, a);
    rehash_name(store, b);
    return 0;
}

void staged_committed_locked(struct store *store, struct staged *staged, const struct mob_id *id,
                             uint64_t object_number)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->tree_lock);
    remove_name(store, staged); /* the directory keeps its count: the name is in LMDB now */
    staged->committed = true;
    staged->id = *id;
    staged->object_number = object_number;
    if (!staged->opens)
        forget(store, staged);
    else if (records_write(&store->records, staged))
        records_erase(&store->records, staged);
}

/* What the tables say (tree_lock is held), and the file's own state: `known`, or asked for. */
static void fill(struct staged *staged, const struct stat *known, struct staged_info *out)
{
    struct stat asked = {0};
    if (!known) {
        if (fstat(staged->data.fd, &asked) < 0)
            mob_log_error("store: fstat of a staged file: %s", strerror(errno));
        known = &asked;
    }
    uint64_t mtime_ns =
        (uint64_t)known->st_mtim.tv_sec * 1000000000u + (uint64_t)known->st_mtim.tv_nsec;
    uint64_t made_ns = atomic_load(&staged->made_ns);
    *out = (struct staged_info){
        .number = staged->number,
        .parent = staged->parent,
        .root = staged->root,
        .closed = staged->closed,
        .file = staged->data.file,
        .split = staged->split,
        .moves =
            !staged->torn && (staged->split || staged->write_only || !staged_is_direct(staged)),
        .mediated = !staged_is_direct(staged),
        .on_disk = staged->data.dir != DISK_NO_DIR,
        .size = data_bytes(&staged->data, known),
        .blocks = (uint64_t)known->st_blocks,
        .mtime_ns = mtime_ns > made_ns ? mtime_ns : made_ns,
        .mode = S_IFREG | staged->mode,
        .uid = staged->uid,
        .gid = staged->gid,
        .opens = staged->opens,
        .unlinked = staged->unlinked,
        .committed = staged->committed,
    };
}

/* --- making --- */

static errint_t find_place(struct store *store, uint64_t parent, const char *name,
                           struct name_place *place)
{
    struct meta_reader *reader;
    errint_t error = meta_read_begin(&store->meta, &reader);
    if (error)
        return error;
    error = name_look(store, reader->names, parent, name, place);
    meta_read_end(reader);
    return error ? error : place->full ? -ENOSPC : 0;
}

/* 0: `staged` is in. 1: *out is the one that this request made before. */
static errint_t create_locked(struct store *store, struct staged *staged, struct staged **out)
{
    struct name_place place;
    /* Held while LMDB is looked at, too: a name that a commit is moving there is in one of the two.
     */
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->tree_lock);
    errint_t error = find_place(store, staged->parent, staged->name, &place);
    if (error)
        return error;
    if (place.exists) {
        *out = place.staged;
        if (!place.staged || !staged->request || place.staged->request != staged->request)
            return -EEXIST;
        place.staged->opens++;
        atomic_fetch_add(&place.staged->users, 1);
        return 1;
    }
    staged->key = place.key;
    staged->root = directory_root(store, directory_get(store, staged->parent));
    staged->named = true;
    staged->opens = 1;
    error = records_write(&store->records, staged);
    if (error)
        return error;
    staged_insert(store, staged);
    atomic_fetch_add(&staged->users, 1);
    directory_count(store, staged->parent, 1, staged->made_ns);
    *out = staged;
    return 0;
}

/* The kernel writes by itself to the file that it is given at the beginning (passthrough), so where
 * the bytes go is settled now: to disk, through the page cache, when memory is short; and when what
 * is written is also read or mapped, since such a file can't be moved while it grows. On a disk
 * that is gone, stalls or has no room it can't begin: then it does so in memory, but the kernel,
 * which would fill that before it could be stopped, is not given it.
 *
 * With a key neither: what is on disk is encrypted, staged_grow.c. */
static errint_t take_data(struct store *store, int access, struct staged *staged)
{
    const uint64_t least_room = UINT64_C(64) << 20;
    bool moves = !store->passthrough || access == O_WRONLY;
    if (!store->disk.count || store->key || (moves && spill_memory_is_plenty(store)))
        return data_take(store, false, &staged->data);
    if (disk_room(&store->disk) >= least_room && !data_take(store, true, &staged->data))
        return 0;
    staged->mediated = true;
    return data_take(store, false, &staged->data);
}

errint_t staged_create_for(struct store *store, uint64_t parent, const char *name, mode_t mode,
                           uid_t uid, gid_t gid, uint64_t request, int access,
                           struct staged_info *out)
{
    size_t name_bytes;
    errint_t error = name_check(name, &name_bytes);
    if (error)
        return error;
    struct staged *staged = staged_new(name, name_bytes), *result = NULL;
    if (!staged)
        return -ENOMEM;
    staged->store = store;
    staged->parent = parent;
    staged->mode = mode & 07777;
    staged->uid = uid;
    staged->gid = gid;
    staged->request = request;
    staged->made_ns = store_wall_ns(store);
    error = store_new_number(store, &staged->number);
    if (!error)
        error = take_data(store, access, staged);
    if (error) {
        staged_free(staged);
        return error;
    }
    pthread_mutex_lock(&store->names_lock);
    error = create_locked(store, staged, &result);
    pthread_mutex_unlock(&store->names_lock);
    if (error) {
        data_give_back(store, &staged->data, true);
        staged_free(staged);
        if (error < 0)
            return error;
        staged = NULL;
    }
    pthread_mutex_lock(&store->tree_lock);
    static const struct stat empty; /* that a new one is empty need not be asked */
    fill(result, result == staged ? &empty : NULL, out);
    pthread_mutex_unlock(&store->tree_lock);
    staged_put(store, result);
    return 0;
}

/* --- asking --- */

errint_t staged_info(struct store *store, uint64_t number, struct staged_info *out)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->tree_lock);
    struct staged *staged = find(store, number);
    if (!staged)
        return -ENOENT;
    fill(staged, NULL, out);
    return 0;
}

errint_t staged_peek(struct store *store, uint64_t number, struct staged_info *out)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->tree_lock);
    struct staged *staged = find(store, number);
    if (!staged)
        return -ENOENT;
    fill(staged, &(struct stat){0}, out);
    return 0;
}

bool staged_mark_write_only(struct store *store, uint64_t number, bool alone)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->tree_lock);
    struct staged *staged = find(store, number);
    if (staged && staged->split && staged_is_direct(staged))
        return false;
    if (staged)
        staged->write_only = alone;
    return true;
}

static uint64_t *all_numbers(struct store *store, size_t *count)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->tree_lock);
    uint64_t *numbers = malloc((store->staged_numbers.count + 1) * sizeof *numbers);
    *count = 0;
    for (size_t i = 0; numbers && i < store->staged_numbers.bucket_count; i++)
        for (struct hash_node *node = store->staged_numbers.buckets[i]; node; node = node->next)
            numbers[(*count)++] = hash_entry(node, struct staged, by_number)->number;
    return numbers;
}

void staged_each(struct store *store, void (*each)(void *argument, const struct staged_info *info),
                 void *argument)
{
    size_t count;
    struct staged_info info;
    cleanup_free uint64_t *numbers = all_numbers(store, &count);
    for (size_t i = 0; i < count; i++)
        if (staged_info(store, numbers[i], &info) == 0)
            each(argument, &info);
}

int staged_fd(struct store *store, uint64_t number)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->tree_lock);
    const struct staged *staged = find(store, number);
    return staged ? staged->data.fd : -ENOENT;
}

/* --- opens --- */

errint_t staged_opened(struct store *store, uint64_t number)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->tree_lock);
    struct staged *staged = find(store, number);
    if (!staged)
        return -ENOENT;
    if (staged->opens == UINT32_MAX)
        return -EMFILE;
    staged->opens++;
    return 0;
}

uint32_t staged_closed(struct store *store, uint64_t number)
{
    pthread_mutex_lock(&store->tree_lock);
    struct staged *staged = find(store, number);
    if (staged && staged->opens)
        staged->opens--;
    uint32_t left = staged ? staged->opens : 0;
    bool ends = staged && !left && (staged->unlinked || staged->committed);
    pthread_mutex_unlock(&store->tree_lock);
    if (!ends)
        return left;
    store_write_lock(store);
    pthread_mutex_lock(&store->tree_lock);
    staged = find(store, number);
    if (staged && !staged->opens && (staged->unlinked || staged->committed))
        forget(store, staged);
    pthread_mutex_unlock(&store->tree_lock);
    store_write_unlock(store);
    objects_settle(store);
    return 0;
}

void staged_mark_closed(struct store *store, uint64_t number, bool closed)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->tree_lock);
    struct staged *staged = find(store, number);
    if (!staged || staged->closed == closed)
        return;
    staged->closed = closed;
    mark_growing(store, staged, !closed);
    if (records_write(&store->records, staged))
        mob_log_warning("store: no room to note that a staged file was closed");
}

void staged_discard(struct store *store, uint64_t number)
{
    store_write_lock(store);
    pthread_mutex_lock(&store->tree_lock);
    struct staged *staged = find(store, number);
    if (staged) {
        staged->unlinked = !staged->committed;
        forget(store, staged);
    }
    pthread_mutex_unlock(&store->tree_lock);
    store_write_unlock(store);
    objects_settle(store);
}

/* What was promised by fsync(2) is kept: it is as if it had been closed. */
static bool close_synced(struct store *store, uint64_t number)
{
    struct staged *staged = staged_get(store, number);
    bool synced = staged && staged->synced.any;
    if (synced)
        staged_mark_closed(store, number, true);
    if (staged)
        staged_put(store, staged);
    return synced;
}

void store_discard_unopened(struct store *store)
{
    size_t count;
    struct staged_info info;
    cleanup_free uint64_t *numbers = all_numbers(store, &count);
    for (size_t i = 0; i < count; i++)
        /* One that was closed or synced is to be committed yet, unless it has been or has lost its
         * name. */
        if (staged_info(store, numbers[i], &info) == 0 && !info.opens &&
            (info.committed || info.unlinked || (!info.closed && !close_synced(store, numbers[i]))))
            staged_discard(store, numbers[i]);
}
