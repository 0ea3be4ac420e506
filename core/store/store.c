/* Opening and closing a store, its numbers, and what is asked of the whole. */
#include "core/store/store.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "core/store/store_internal.h"

enum { STATE_VERSION = 2, NUMBER_BLOCK = 65536, SPARE_DEFAULT = 64 };

void store_write_lock(struct store *store)
{
    /* Held for a few microseconds; to sleep and be woken costs more than that. */
    for (int i = 0; i < 100; i++) {
        if (pthread_mutex_trylock(&store->writer) == 0)
            return;
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#endif
    }
    pthread_mutex_lock(&store->writer);
}

/* --- one server at a time --- */

/* A lock of fcntl(2) belongs to the process, as it must: a job launched by a killed server must not
 * keep it. So a second store_open() of the same state in one process is caught by this list. */
static pthread_mutex_t open_lock = PTHREAD_MUTEX_INITIALIZER;
static struct store *open_stores;

static bool register_open(struct store *store)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&open_lock);
    for (struct store *other = open_stores; other; other = other->next_open)
        if (other->state_dev == store->state_dev && other->state_ino == store->state_ino)
            return false;
    store->next_open = open_stores;
    open_stores = store;
    store->registered = true;
    return true;
}

static void unregister_open(struct store *store)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&open_lock);
    struct store **link = &open_stores;
    while (store->registered && *link != store)
        link = &(*link)->next_open;
    if (store->registered)
        *link = store->next_open;
    store->registered = false;
}

static errint_t lock_state(struct store *store, struct mob_error *err)
{
    struct stat info;
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (stat(store->state_dir, &info) < 0)
        return mob_error_set(err, -errno, "%s: %s", store->state_dir, strerror(errno));
    store->state_dev = info.st_dev;
    store->state_ino = info.st_ino;
    if (!register_open(store))
        return mob_error_set(err, -EBUSY, "%s is open already", store->state_dir);
    store->state_fd = open(store->state_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (store->state_fd < 0)
        return mob_error_set(err, -errno, "%s: %s", store->state_dir, strerror(errno));
    store->lock_fd =
        openat(store->state_fd, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (store->lock_fd < 0)
        return mob_error_set(err, -errno, "%s/lock: %s", store->state_dir, strerror(errno));
    if (fcntl(store->lock_fd, F_SETLK, &whole) < 0)
        return mob_error_set(err, errno == EACCES || errno == EAGAIN ? -EBUSY : -errno,
                             "another server works on %s", store->state_dir);
    return 0;
}

/* --- what the store is --- */

struct identity {
    uint32_t version;
    uint32_t byte_order; /* 1 in the machine's own order: another's records can't be read */
    uint8_t owner[MOB_ID_OWNER_BYTES];
    uint8_t secret[META_SECRET_BYTES];
};

static errint_t make_identity(struct store *store, MDB_txn *txn)
{
    struct identity identity = {.version = STATE_VERSION, .byte_order = 1};
    memcpy(identity.owner, store->owner, sizeof identity.owner);
    if (getrandom(identity.secret, sizeof identity.secret, 0) != (ssize_t)sizeof identity.secret)
        return -EIO;
    memcpy(store->secret, identity.secret, sizeof store->secret);
    return meta_put(&store->meta, txn, META_STATE, "identity", 8, &identity, sizeof identity);
}

/* The version is looked at before the checksum, which not every version has. */
static errint_t check_identity(struct store *store, const MDB_val *key, MDB_val *value,
                               struct mob_error *err)
{
    struct identity identity = {0};
    if (value->mv_size >= sizeof identity.version)
        memcpy(&identity.version, value->mv_data, sizeof identity.version);
    if (identity.version != STATE_VERSION)
        return mob_error_set(err, -EINVAL, "%s was made by another version of mobula",
                             store->state_dir);
    if (!meta_unseal(META_STATE, key, value) || value->mv_size != sizeof identity) {
        meta_note_damage();
        return mob_error_set(err, -EIO, "the record of what %s is, is damaged", store->state_dir);
    }
    memcpy(&identity, value->mv_data, sizeof identity);
    if (identity.byte_order != 1)
        return mob_error_set(err, -EINVAL, "%s was made on a machine of another byte order",
                             store->state_dir);
    if (memcmp(identity.owner, store->owner, sizeof identity.owner) != 0)
        return mob_error_set(err, -EINVAL, "%s belongs to another node", store->state_dir);
    memcpy(store->secret, identity.secret, sizeof store->secret);
    return 0;
}

static errint_t load_state(struct store *store, MDB_txn *txn, struct mob_error *err)
{
    const void *value;
    size_t bytes;
    MDB_val key = {8, "identity"}, found;
    errint_t error =
        meta_error(mdb_get(txn, store->meta.tables[META_STATE], &key, &found), "identity");
    if (error == -ENOENT)
        error = make_identity(store, txn);
    else if (!error)
        error = check_identity(store, &key, &found, err);
    if (error)
        return error;
    uint64_t next = NAMES_FIRST_FREE_NUMBER;
    error = meta_get(&store->meta, txn, META_STATE, "numbers", 7, &value, &bytes);
    if (!error && bytes == sizeof next)
        memcpy(&next, value, sizeof next);
    bool damaged = error ? error != -ENOENT : bytes != sizeof next;
    if (damaged || next < NAMES_FIRST_FREE_NUMBER || next >= STORE_NUMBER_LIMIT) {
        meta_note_damage();
        return mob_error_set(err, -EIO, "the number counter in %s is damaged", store->state_dir);
    }
    atomic_store(&store->next_number, next);
    atomic_store(&store->number_limit, next); /* the first number reserves a block */
    return 0;
}

/* A store that had a key must get that one again: nothing of it can be read without. */
static errint_t check_key(struct store *store, MDB_txn *txn, const char *path,
                          struct mob_error *err)
{
    const void *value;
    size_t bytes;
    const char *name = store->key ? cipher_key_name(store->key) : NULL;
    errint_t error = meta_get(&store->meta, txn, META_STATE, "key", 3, &value, &bytes);
    store->key_is_new = error == -ENOENT && name;
    if (error == -ENOENT)
        return 0;
    if (error)
        return mob_error_set(err, error, "which key %s has can't be read: %s", store->state_dir,
                             strerror(-error));
    if (!name)
        return mob_error_set(err, -ENOKEY, "%s is encrypted: give its key with --spill-key",
                             store->state_dir);
    if (bytes != CIPHER_NAME_BYTES - 1 || memcmp(value, name, bytes) != 0)
        return mob_error_set(err, -EKEYREJECTED,
                             "%s was encrypted with another key than that in %s", store->state_dir,
                             path);
    return 0;
}

/* From now on it must get that one. Not earlier: a start that is refused must change nothing. */
static errint_t note_key(struct store *store, struct mob_error *err)
{
    MDB_txn *txn;
    if (!store->key_is_new)
        return 0;
    if (!store->trust.fresh)
        mob_log_warning("store: %s is encrypted from now on: what was on disk before stays as it "
                        "is",
                        store->state_dir);
    store_write_lock(store);
    errint_t error = meta_begin(&store->meta, 0, &txn);
    if (!error) {
        error = meta_put(&store->meta, txn, META_STATE, "key", 3, cipher_key_name(store->key),
                         CIPHER_NAME_BYTES - 1);
        error = meta_end(txn, error);
    }
    store_write_unlock(store);
    return error ? mob_error_set(err, error, "%s/meta: %s", store->state_dir, strerror(-error)) : 0;
}

/* Before anything is in memory that may not be on disk as it is. */
static errint_t mark_memory(struct store *store, struct mob_error *err)
{
    if (!store->key)
        return 0;
    cleanup_fd int fd = openat(store->memory_fd, STORE_ENCRYPTED_NAME,
                               O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    return fd < 0 ? mob_error_set(err, -errno, "%s/%s: %s", store->memory_dir, STORE_ENCRYPTED_NAME,
                                  strerror(errno))
                  : 0;
}

/* LMDB can't be trusted: it is made anew from the journal. */
static errint_t rebuild_meta(struct store *store, const char *path, bool map_writes,
                             struct mob_error *err)
{
    bool damaged = false;
    mob_log_warning("store: the metadata in %s is made anew from its journal: the machine has "
                    "crashed, or this is a copy, or it is damaged",
                    store->state_dir);
    errint_t error = trust_discard(store->state_fd, store->trust.memory, err);
    if (!error)
        error = meta_open(&store->meta, path, map_writes, err);
    if (!error)
        error = journal_replay(store->journal, &store->meta, &damaged, err);
    if (!error && damaged)
        mob_log_error("store: the journal in %s is damaged: what it said there is lost",
                      store->state_dir);
    return error;
}

/* Opens LMDB, as it was left or made anew. */
static errint_t open_meta_files(struct store *store, const struct store_options *options,
                                struct mob_error *err)
{
    cleanup_free char *path = NULL;
    if (asprintf(&path, "%s/meta", store->state_dir) < 0)
        return -ENOMEM;
    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        return mob_error_set(err, -errno, "%s: %s", path, strerror(errno));
    errint_t error = trust_read(store->state_fd, &store->trust, err);
    if (error)
        return error;
    if ((!store->trust.meta || options->distrust_meta) && journal_has_snapshot(store->journal))
        return rebuild_meta(store, path, options->map_writes, err);
    store->has_spare_meta = journal_has_snapshot(store->journal);
    /* Nothing of it was made durable: it is taken as it is, if there is something at all. */
    store->trust.meta = true;
    store->trust.memory |= store->trust.fresh || !journal_has_logs(store->journal);
    error = meta_open(&store->meta, path, options->map_writes, err);
    if (!error)
        error = journal_resume(store->journal, meta_last_txn(&store->meta), err);
    return error;
}

static errint_t open_meta(struct store *store, const struct store_options *options,
                          struct mob_error *err)
{
    struct journal_options journal_options = {.state_dir = store->state_dir,
                                              .writer = &store->writer,
                                              .log_bytes = options->journal_bytes};
    MDB_txn *txn;
    memcpy(journal_options.owner, store->owner, sizeof store->owner);
    errint_t error = journal_open(&journal_options, &store->journal, err);
    if (!error)
        error = open_meta_files(store, options, err);
    /* Where memory is lost: when recovery is done, see recover(). The next server would take this
     * one's empty memory for what it is. */
    if (!error && store->trust.memory)
        error = trust_running(store->state_fd, err);
    if (error)
        return error;
    store->meta.journal = store->journal;
    error = meta_begin(&store->meta, 0, &txn); /* a full disk must not keep it from being opened */
    if (error)
        return mob_error_set(err, error, "%s/meta: %s", store->state_dir, strerror(-error));
    error = load_state(store, txn, err);
    if (!error)
        error = check_key(store, txn, options->spill_key, err);
    if (error) {
        mdb_txn_abort(txn);
        return error;
    }
    error = meta_commit(txn);
    return error ? mob_error_set(err, error, "%s/meta: %s", store->state_dir, strerror(-error)) : 0;
}

/* Which of these files are whole, nobody knows. */
static errint_t empty_memory(struct store *store)
{
    errint_t error = data_clear(store);
    return error ? error : records_discard(store->memory_fd);
}

static errint_t open_memory(struct store *store, struct mob_error *err)
{
    store->memory_fd = open(store->memory_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (store->memory_fd < 0)
        return mob_error_set(err, -errno, "%s: %s", store->memory_dir, strerror(errno));
    if (mkdirat(store->memory_fd, "data", 0700) < 0 && errno != EEXIST)
        return mob_error_set(err, -errno, "%s/data: %s", store->memory_dir, strerror(errno));
    store->data_fd =
        openat(store->memory_fd, "data", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (store->data_fd < 0)
        return mob_error_set(err, -errno, "%s/data: %s", store->memory_dir, strerror(errno));
    errint_t error = store->trust.memory ? 0 : empty_memory(store);
    if (error)
        return mob_error_set(err, error, "%s: %s", store->memory_dir, strerror(-error));
    return records_open(&store->records, store->memory_fd, err);
}

/* --- opening and closing --- */

static struct store *new_store(const struct store_options *options)
{
    struct store *store = calloc(1, sizeof *store);
    if (!store)
        return NULL;
    store->lock_fd = store->state_fd = store->memory_fd = store->data_fd = store->records.fd = -1;
    store->watcher.inotify_fd = store->watcher.event_fd = -1;
    store->state_dir = strdup(options->state_dir);
    store->memory_dir = strdup(options->memory_dir);
    store->memory_bytes = options->memory_bytes;
    store->inline_bytes =
        options->inline_bytes ? options->inline_bytes : STORE_INLINE_DEFAULT_BYTES;
    memcpy(store->owner, options->owner, sizeof store->owner);
    /* What the kernel writes by itself could only go to disk as it is. */
    store->passthrough = options->passthrough && !options->spill_key;
    store->spare_target = options->spare_files ? options->spare_files : SPARE_DEFAULT;
    store->grow.pipes = options->pipes;
    store->writeback.delay_ns = options->writeback_ns;
    store->clock = options->clock ? *options->clock : mob_system_clock;
    store->hooks = options->hooks;
    store->hooks.object_changed = NULL;
    store->dead_new_end = &store->dead_new;
    pthread_mutex_t *locks[] = {&store->names_lock,      &store->writer,
                                &store->tree_lock,       &store->spare.lock,
                                &store->watcher.lock,    &store->dead_lock,
                                &store->spill.lock,      &store->spare_on_disk.lock,
                                &store->spill.sync_lock, &store->settler.lock};
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(locks); i++)
        pthread_mutex_init(locks[i], NULL);
    pthread_cond_init(&store->spill.settled, NULL);
    pthread_cond_init(&store->settler.wake, NULL);
    if (!store->state_dir || !store->memory_dir || table_init(&store->table) ||
        hash_init(&store->directories, 64) || hash_init(&store->staged_numbers, 1024) ||
        hash_init(&store->staged_names, 1024) || hash_init(&store->unresolved, 64) ||
        spare_open(store)) {
        store_close(store);
        return NULL;
    }
    return store;
}

/* To learn whether a data file has writers, the store asks for a lease on it; a process that opens
 * the file in that very moment makes the kernel send SIGIO, which would end the server. */
static void ignore_lease_signals(void)
{
    struct sigaction action;
    if (sigaction(SIGIO, NULL, &action) == 0 && action.sa_handler == SIG_DFL)
        signal(SIGIO, SIG_IGN);
}

static errint_t load_key(struct store *store, const struct store_options *options,
                         struct mob_error *err)
{
    if (!options->spill_key)
        return 0;
    if (!options->spill_dirs || !*options->spill_dirs)
        return mob_error_set(err, -EINVAL,
                             "--spill-key: there is no spill directory; give one with --spill");
    return cipher_key_load(options->spill_key, &store->key, err);
}

static errint_t open_as_it_is(const struct store_options *options, struct store **out,
                              struct mob_error *err)
{
    struct store *store = new_store(options);
    if (!store)
        return mob_error_set(err, -ENOMEM, "no memory");
    ignore_lease_signals();
    errint_t error = load_key(store, options, err);
    if (!error)
        error = lock_state(store, err);
    if (!error)
        error = open_meta(store, options, err);
    if (!error)
        error = open_memory(store, err);
    if (!error)
        error = disk_open(&store->disk, options->spill_dirs, options->disk_bytes, store->owner,
                          store->key ? cipher_key_name(store->key) : "", err);
    store->forget_spill_dirs = options->forget_spill_dirs;
    /* Recovery decrypts what was synced into memory; of a store that is not encrypted yet there is
     * nothing to hide before the start can't be refused any more. */
    if (!error && !store->key_is_new)
        error = mark_memory(store, err);
    if (!error)
        error = store_recover(store, err);
    if (!error)
        error = disk_make(&store->disk, err);
    if (!error)
        error = note_key(store, err);
    if (!error)
        error = mark_memory(store, err);
    if (!error)
        error = disk_note_known(store, err);
    store->forget_spill_dirs = NULL;
    if (!error)
        error = spill_open(store, err);
    if (error) {
        store_close(store);
        return error;
    }
    error = journal_start(store->journal, &store->meta);
    if (error) {
        store_close(store);
        return mob_error_set(err, error, "the journal can't begin: %s", strerror(-error));
    }
    settler_start(store);
    store->opened = true;
    store->has_spare_meta = false;                               /* it is too late now */
    store->hooks.object_changed = options->hooks.object_changed; /* not of links found again */
    *out = store;
    return 0;
}

/* What LMDB can't read, the journal has. Nothing was removed for want of what could not be read: an
 * error ends recovery before it removes anything. */
errint_t store_open(const struct store_options *options, struct store **out, struct mob_error *err)
{
    struct store_options again = *options;
    (void)meta_take_damage_seen();
    errint_t error = open_as_it_is(options, out, err);
    if (!error || options->distrust_meta || !meta_take_damage_seen())
        return error;
    mob_log_error("store: LMDB can't read what is in %s: %s", options->state_dir, err->message);
    again.distrust_meta = true;
    return open_as_it_is(&again, out, err);
}

static void free_dead(struct dead *dead)
{
    while (dead) {
        struct dead *next = dead->next;
        if (dead->object.state == OBJECT_FAILED)
            free(dead->object.failure);
        free(dead);
        dead = next;
    }
}

/* After an orderly end, the next start need not ask the journal. */
static void close_meta(struct store *store)
{
    uint64_t bytes = store->meta.env ? meta_used_bytes(&store->meta) : 0;
    /* A start that was refused leaves it as it was. */
    bool whole = store->meta.env && (store->opened || store->trust.clean);
    errint_t error =
        store->opened ? journal_sync(store->journal, journal_written(store->journal)) : 0;
    journal_close(store->journal);
    int code = whole ? mdb_env_sync(store->meta.env, 1) : 0;
    meta_close(&store->meta);
    if (!error && code)
        error = code > 0 ? -code : -EIO;
    if (!error && whole)
        error = trust_clean(store->state_fd, bytes);
    if (error)
        mob_log_error("store: %s can't be closed in order: %s", store->state_dir, strerror(-error));
}

void store_close(struct store *store)
{
    if (!store)
        return;
    watcher_close(store);
    if (store->meta.env)
        objects_flush(store);
    spill_close(store);
    tree_destroy(store);
    if (store->spare.files && store->data_fd >= 0)
        spare_close(store);
    disk_close(&store->disk);
    free(store->spare.files);
    free(store->spare_on_disk.files);
    records_close(&store->records);
    table_destroy(&store->table);
    free_dead(store->dead_new);
    free_dead(store->dead);
    free(store->changed);
    close_meta(store);
    mob_cleanup_fd(&store->state_fd);
    mob_cleanup_fd(&store->data_fd);
    mob_cleanup_fd(&store->memory_fd);
    mob_cleanup_fd(&store->lock_fd);
    unregister_open(store);
    pthread_mutex_t *locks[] = {&store->names_lock,      &store->writer,
                                &store->tree_lock,       &store->spare.lock,
                                &store->watcher.lock,    &store->dead_lock,
                                &store->spill.lock,      &store->spare_on_disk.lock,
                                &store->spill.sync_lock, &store->settler.lock};
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(locks); i++)
        pthread_mutex_destroy(locks[i]);
    pthread_cond_destroy(&store->spill.settled);
    pthread_cond_destroy(&store->settler.wake);
    cipher_key_free(store->key);
    explicit_bzero(store->secret, sizeof store->secret);
    free(store->state_dir);
    free(store->memory_dir);
    free(store);
}

/* --- collecting --- */

struct unused {
    uint64_t numbers[256];
    size_t count;
};

static bool note_unused(void *argument, const struct object *object, uint64_t next)
{
    struct unused *unused = argument;
    (void)next;
    if (!object->links && !object->opens)
        unused->numbers[unused->count++] = object->number;
    return unused->count < MOB_ARRAY_LENGTH(unused->numbers);
}

void store_collect(struct store *store)
{
    uint64_t cursor = 0;
    struct unused unused;
    store_drop_unresolved(store);
    atomic_store(&store->collecting, true);
    do {
        unused.count = 0;
        table_walk(&store->table, &cursor, note_unused, &unused);
        for (size_t i = 0; i < unused.count; i++)
            object_release(store, unused.numbers[i]);
        objects_settle(store);
    } while (unused.count);
    objects_flush(store);
}

/* --- numbers --- */

static bool take_number(struct store *store, uint64_t *number)
{
    uint64_t next = atomic_load(&store->next_number);
    do {
        if (next >= atomic_load(&store->number_limit))
            return false;
    } while (!atomic_compare_exchange_weak(&store->next_number, &next, next + 1));
    *number = next;
    return true;
}

errint_t store_new_number_locked(struct store *store, uint64_t *number)
{
    while (!take_number(store, number)) {
        MDB_txn *txn;
        uint64_t limit = atomic_load(&store->number_limit) + NUMBER_BLOCK;
        if (limit >= STORE_NUMBER_LIMIT)
            return -ENOSPC;
        errint_t error = meta_begin(&store->meta, 0, &txn);
        if (error)
            return error;
        error = meta_put(&store->meta, txn, META_STATE, "numbers", 7, &limit, sizeof limit);
        error = meta_end(txn, error);
        if (error)
            return error;
        atomic_store(&store->number_limit, limit);
    }
    return 0;
}

errint_t store_new_number(struct store *store, uint64_t *number)
{
    if (take_number(store, number))
        return 0;
    store_write_lock(store);
    errint_t error = store_new_number_locked(store, number);
    store_write_unlock(store);
    return error;
}

/* --- encryption --- */

bool store_staged_passthrough(const struct store *store)
{
    return store->passthrough;
}

/* --- counts --- */

void store_count_object(struct store *store, const struct object *object, int change)
{
    if (object->state == OBJECT_PENDING) {
        atomic_fetch_add(&store->pending, change);
    } else if (object->state == OBJECT_FAILED) {
        atomic_fetch_add(&store->failed, change);
    } else {
        int64_t size = (int64_t)object->size * change;
        atomic_fetch_add(object->tier == TIER_MEMORY ? &store->ready_memory
                         : object->tier == TIER_DISK ? &store->ready_disk
                                                     : &store->ready_inline,
                         change);
        atomic_fetch_add(&store->object_bytes, size);
        if (object->tier == TIER_INLINE)
            atomic_fetch_add(&store->inline_used, size);
    }
}

static void settle_one(void *argument, const struct staged_info *info)
{
    struct store *store = argument;
    struct staged *staged = staged_get(store, info->number);
    if (!staged)
        return;
    /* Who moves it to disk has the lock, for as long as the disk takes, and counts by itself: who
     * only wants to know must not wait for that, and least of all a thread that serves. */
    if (!pthread_mutex_trylock(&staged->lock)) {
        staged_settle(store, staged);
        pthread_mutex_unlock(&staged->lock);
    }
    staged_put(store, staged);
}

static uint64_t at_least_zero(int64_t value)
{
    return value > 0 ? (uint64_t)value : 0;
}

void store_usage(struct store *store, struct store_usage *out)
{
    /* With passthrough, files grow without the store being told: they are asked. */
    if (store->passthrough)
        staged_each(store, settle_one, store);
    uint64_t in_line = at_least_zero(atomic_load(&store->ready_inline));
    uint64_t memory = at_least_zero(atomic_load(&store->ready_memory));
    uint64_t on_disk = at_least_zero(atomic_load(&store->ready_disk));
    *out = (struct store_usage){
        .memory_bytes = store->memory_bytes,
        .memory_used_bytes = at_least_zero(atomic_load(&store->memory_used)),
        .inline_bytes = at_least_zero(atomic_load(&store->inline_used)),
        .objects_ready = in_line + memory + on_disk,
        .objects_inline = in_line,
        .objects_memory = memory,
        .objects_disk = on_disk,
        .objects_pending = at_least_zero(atomic_load(&store->pending)),
        .objects_failed = at_least_zero(atomic_load(&store->failed)),
        .object_bytes = at_least_zero(atomic_load(&store->object_bytes)),
        .names = at_least_zero(atomic_load(&store->names)),
        .staged = at_least_zero(atomic_load(&store->staged)),
        .commits = atomic_load(&store->commits),
        .freed = atomic_load(&store->freed),
        .spill_io = "none",
        .spill_key = "none",
    };
    struct journal_usage journal;
    journal_usage(store->journal, &journal);
    out->journal_bytes = journal.bytes;
    out->journal_syncs = journal.syncs;
    out->journal_snapshots = journal.snapshots;
    out->journal_errors = journal.errors;
    out->durable = journal.durable;
    if (!store->disk.count)
        return;
    struct spill *spill = &store->spill;
    if (store->key)
        snprintf(out->spill_key, sizeof out->spill_key, "%s", cipher_key_name(store->key));
    out->disk_used_bytes = disk_used(&store->disk);
    out->disk_free_bytes = disk_room(&store->disk);
    /* Others write to its filesystems, too: what it can hold is what it has and what is free. */
    out->disk_bytes = out->disk_used_bytes + out->disk_free_bytes;
    out->spilling_bytes = at_least_zero(atomic_load(&spill->spilling_bytes));
    out->spilled_bytes = atomic_load(&spill->spilled_bytes);
    out->restored_bytes = atomic_load(&spill->restored_bytes);
    out->spill_errors = atomic_load(&spill->errors);
    out->damaged = at_least_zero(atomic_load(&spill->damaged));
    cleanup_lock pthread_mutex_t *lock = mob_lock(&spill->lock);
    memcpy(out->spill_io, spill->described, sizeof out->spill_io);
}
