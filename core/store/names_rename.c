/* Renaming, by POSIX's rules and renameat2(2)'s flags.
 *
 * What is in LMDB changes in one transaction. A staged file changes its record first: if the server
 * is killed before the transaction that removes the name it replaces, recovery finds both under one
 * name, and the staged file is the newer. A staged file that is replaced is marked unlinked first:
 * if the server is killed then, the kernel sends the request again and the successor completes it.
 */
#include <stdio.h>
#include <string.h>

#include "core/store/store_internal.h"

#ifndef RENAME_NOREPLACE
#define RENAME_NOREPLACE 1
#define RENAME_EXCHANGE 2
#endif

struct renaming {
    struct store *store;
    struct name_place source, target;
    char source_name[NAMES_LENGTH_LIMIT + 1], target_name[NAMES_LENGTH_LIMIT + 1];
    unsigned flags;
    uint64_t now_ns;
    char *directory_name[2]; /* made before anything is changed */
};

static bool is_directory(const struct name_place *place)
{
    return place->exists && !place->staged && place->record.type == NAME_DIRECTORY;
}

static errint_t look_both(struct renaming *it, uint64_t parent, const char *name,
                          uint64_t new_parent, const char *new_name)
{
    struct meta_reader *reader;
    errint_t error = meta_read_begin(&it->store->meta, &reader);
    if (error)
        return error;
    error = name_look(it->store, reader->names, parent, name, &it->source);
    if (!error)
        error = name_look(it->store, reader->names, new_parent, new_name, &it->target);
    meta_read_end(reader);
    if (error)
        return error;
    memcpy(it->source_name, name, it->source.name_bytes + 1);
    memcpy(it->target_name, new_name, it->target.name_bytes + 1);
    /* The reader's memory is gone. */
    it->source.name = it->source.record.name = it->source_name;
    it->target.name = it->target.record.name = it->target_name;
    return it->source.exists ? 0 : -ENOENT;
}

/* Whether directory `number` is `inside` or below it. */
static bool is_below(struct store *store, uint64_t number, uint64_t inside)
{
    while (number && number != inside) {
        const struct directory *directory = directory_get(store, number);
        number = directory ? directory->parent : 0;
    }
    return number == inside;
}

/* Directories below the deepest path of a tree: 0 for one without subdirectories. */
static unsigned height(struct store *store, const struct directory *top)
{
    unsigned depth = 0, highest = 0;
    const struct directory *at = top;
    for (;;) {
        if (at->first_child) {
            at = at->first_child;
            if (++depth > highest)
                highest = depth;
            continue;
        }
        while (at != top && !at->next_sibling) {
            at = directory_get(store, at->parent);
            depth--;
        }
        if (at == top)
            return highest;
        at = at->next_sibling;
    }
}

static errint_t check_move(struct store *store, const struct name_place *moved, uint64_t to)
{
    if (!is_directory(moved))
        return 0;
    const struct directory *directory = directory_get(store, moved->record.number);
    const struct directory *parent = directory_get(store, to);
    if (!directory || !parent)
        return -EIO;
    if (is_below(store, to, directory->number))
        return -EINVAL;
    if (directory_depth(store, parent) + 1 + height(store, directory) >= NAMES_DEPTH_LIMIT)
        return -EMLINK;
    return 0;
}

static errint_t check_replace(struct store *store, const struct name_place *source,
                              const struct name_place *target)
{
    if (!target->exists)
        return target->full ? -ENOSPC : 0;
    if (!is_directory(source))
        return is_directory(target) ? -EISDIR : 0;
    if (!is_directory(target))
        return -ENOTDIR;
    const struct directory *directory = directory_get(store, target->record.number);
    return directory && directory->entries ? -ENOTEMPTY : 0;
}

/* 1: nothing to be done. */
static errint_t check(struct renaming *it)
{
    struct store *store = it->store;
    struct name_place *source = &it->source, *target = &it->target;
    if (directory_root(store, directory_get(store, source->parent)) !=
        directory_root(store, directory_get(store, target->parent)))
        return -EXDEV;
    if (it->flags & RENAME_NOREPLACE && target->exists)
        return -EEXIST;
    if (it->flags & RENAME_EXCHANGE && !target->exists)
        return -ENOENT;
    if (target->exists && source->parent == target->parent && source->key == target->key)
        return 1;
    errint_t error = check_move(store, source, target->parent);
    if (error)
        return error;
    if (!(it->flags & RENAME_EXCHANGE))
        return check_replace(store, source, target);
    if (!source->staged != !target->staged)
        return -EBUSY;
    return check_move(store, target, source->parent);
}

/* --- in LMDB --- */

static errint_t put_at(struct renaming *it, MDB_txn *txn, const struct name_place *what,
                       const struct name_place *where, const char *name)
{
    struct name_record record = what->record;
    record.name = name;
    record.name_bytes = where->name_bytes;
    return name_record_put(&it->store->meta, txn, where->parent, where->key, &record);
}

static errint_t change_stored(struct renaming *it, MDB_txn *txn)
{
    errint_t error = 0;
    if (it->flags & RENAME_EXCHANGE) {
        error = put_at(it, txn, &it->source, &it->target, it->target_name);
        return error ? error : put_at(it, txn, &it->target, &it->source, it->source_name);
    }
    if (it->target.exists && !it->target.staged)
        error = name_delete(it->store, txn, &it->target);
    if (error || it->source.staged)
        return error;
    struct name_key key = name_key_make(it->source.parent, it->source.key);
    error = meta_delete(&it->store->meta, txn, META_NAMES, &key, sizeof key);
    return error ? error : put_at(it, txn, &it->source, &it->target, it->target_name);
}

static errint_t commit_stored(struct renaming *it)
{
    MDB_txn *txn;
    errint_t error = meta_begin(&it->store->meta, 1024, &txn);
    if (error)
        return error;
    error = change_stored(it, txn);
    return meta_end(txn, error);
}

/* --- in memory --- */

static void move_directory(struct renaming *it, const struct name_place *what,
                           const struct name_place *where, char **name)
{
    struct store *store = it->store;
    if (!is_directory(what))
        return;
    struct directory *directory = directory_get(store, what->record.number);
    directory_detach(store, directory);
    free(directory->name);
    directory->name = mob_steal_pointer(name);
    directory->name_bytes = (uint8_t)where->name_bytes;
    directory->parent = where->parent;
    directory->key = where->key;
    directory_attach(store, directory);
}

/* After the transaction. What a staged file's counts need, staged.c does. */
static void change_memory(struct renaming *it)
{
    struct store *store = it->store;
    struct directory *replaced = NULL;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->tree_lock);
    bool exchange = it->flags & RENAME_EXCHANGE;
    if (!exchange && it->target.exists && !it->target.staged) {
        if (is_directory(&it->target)) {
            replaced = directory_get(store, it->target.record.number);
            directory_detach(store, replaced);
        }
        directory_count(store, it->target.parent, -1, it->now_ns);
        atomic_fetch_sub(&store->names, 1);
    }
    if (!it->source.staged) {
        move_directory(it, &it->source, &it->target, &it->directory_name[0]);
        directory_count(store, it->source.parent, exchange ? 0 : -1, it->now_ns);
        directory_count(store, it->target.parent, exchange ? 0 : 1, it->now_ns);
    }
    if (exchange)
        move_directory(it, &it->target, &it->source, &it->directory_name[1]);
    directory_free(replaced);
}

/* --- staged files --- */

/* The staged file is there under its new name from now on; a name in LMDB that it replaces is
 * hidden by it. */
static errint_t rename_staged(struct renaming *it)
{
    struct staged *staged = it->source.staged, *replaced = it->target.staged;
    errint_t error = staged_rename_locked(it->store, staged, it->target.parent, it->target.key,
                                          it->target_name, it->target.name_bytes, replaced);
    if (error || replaced || !it->target.exists)
        return error;
    error = commit_stored(it);
    if (!error) {
        change_memory(it);
        return 0;
    }
    if (staged_rename_locked(it->store, staged, it->source.parent, it->source.key, it->source_name,
                             it->source.name_bytes, NULL))
        mob_log_error("store: a rename that failed could not be taken back");
    return error;
}

static errint_t rename_stored(struct renaming *it)
{
    struct staged *replaced = it->target.staged;
    errint_t error = replaced ? staged_mark_unlinked_locked(it->store, replaced, true) : 0;
    if (error)
        return error;
    error = commit_stored(it);
    if (!error) {
        change_memory(it);
        if (replaced)
            staged_unlink_locked(it->store, replaced);
    } else if (replaced && staged_mark_unlinked_locked(it->store, replaced, false)) {
        mob_log_error("store: a rename that failed could not be taken back");
    }
    return error;
}

static errint_t rename_locked(struct renaming *it, uint64_t parent, const char *name,
                              uint64_t new_parent, const char *new_name)
{
    errint_t error = look_both(it, parent, name, new_parent, new_name);
    if (!error)
        error = check(it);
    if (error)
        return error;
    it->now_ns = store_wall_ns(it->store);
    it->directory_name[0] = strdup(it->target_name);
    it->directory_name[1] = strdup(it->source_name);
    if (!it->directory_name[0] || !it->directory_name[1])
        return -ENOMEM;
    if (it->source.staged && it->flags & RENAME_EXCHANGE)
        return staged_exchange_locked(it->store, it->source.staged, it->target.staged);
    return it->source.staged ? rename_staged(it) : rename_stored(it);
}

errint_t names_rename(struct store *store, uint64_t parent, const char *name, uint64_t new_parent,
                      const char *new_name, unsigned flags, bool *replaced_job, struct mob_id *job)
{
    struct renaming it = {.store = store, .flags = flags};
    if (replaced_job)
        *replaced_job = false;
    if (flags != 0 && flags != RENAME_NOREPLACE && flags != RENAME_EXCHANGE)
        return -EINVAL;
    store_names_lock(store);
    errint_t error = rename_locked(&it, parent, name, new_parent, new_name);
    store_names_unlock(store);
    free(it.directory_name[0]);
    free(it.directory_name[1]);
    if (error)
        return error < 0 ? error : 0;
    bool replaced = it.target.exists && !it.target.staged && !(flags & RENAME_EXCHANGE);
    if (replaced && it.target.record.type == NAME_OBJECT)
        object_unlink(store, &it.target.record.target);
    if (replaced && it.target.record.type == NAME_JOB) {
        if (replaced_job)
            *replaced_job = true;
        if (job)
            *job = it.target.record.target;
    }
    objects_settle(store);
    return 0;
}
