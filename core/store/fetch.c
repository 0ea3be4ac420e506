/* The fetcher: what is on disk is verified before it is read, and comes back to memory when it is
 * opened again and again. See spill.h.
 *
 * The kernel reads a file on disk by itself (passthrough), so its checksums must be looked at
 * before that: at the first open after the object went to disk or the server began, block by block
 * through the page cache, which then has the bytes. The time of the file's last change is noted,
 * and as long as it stays, so do the bytes. */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "core/store/store_internal.h"

/* What is to be fetched, as the table has it. */
struct target {
    uint64_t number, file, size;
    struct mob_id id;
    unsigned dir;
    bool encrypted;
};

/* --- damage --- */

static struct damage **damage_place(struct spill *spill, uint64_t number)
{
    struct damage **link = &spill->damages;
    while (*link && (*link)->number != number)
        link = &(*link)->next;
    return link;
}

void fetch_forget(struct store *store, uint64_t number)
{
    struct spill *spill = &store->spill;
    if (!atomic_load(&spill->damaged))
        return;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&spill->lock);
    struct damage **link = damage_place(spill, number), *damage = *link;
    if (!damage)
        return;
    *link = damage->next;
    free(damage);
    atomic_fetch_sub(&spill->damaged, 1);
}

static bool is_damaged(struct spill *spill, uint64_t number)
{
    if (!atomic_load(&spill->damaged))
        return false;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&spill->lock);
    return *damage_place(spill, number) != NULL;
}

errint_t damage_sentence(struct store *store, uint64_t number, char **sentence)
{
    struct spill *spill = &store->spill;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&spill->lock);
    const struct damage *damage = *damage_place(spill, number);
    if (!damage)
        return -ENOENT;
    *sentence = strdup(damage->sentence);
    return *sentence ? 0 : -ENOMEM;
}

void damage_note(struct store *store, uint64_t number, const struct mob_id *id,
                 const char *sentence)
{
    struct spill *spill = &store->spill;
    char text[MOB_ID_STRING_BYTES];
    size_t bytes = strlen(sentence) + 1;
    mob_log_error("objects/%s is damaged: %s", mob_id_format(id, text), sentence);
    struct damage *damage = malloc(sizeof *damage + bytes);
    if (!damage)
        return;
    damage->number = number;
    memcpy(damage->sentence, sentence, bytes);
    cleanup_lock pthread_mutex_t *lock = mob_lock(&spill->lock);
    struct damage **link = damage_place(spill, number), *old = *link;
    damage->next = old ? old->next : NULL;
    *link = damage;
    free(old);
    atomic_fetch_add(&spill->damaged, !old);
}

static void note_damage(struct store *store, const struct target *target, errint_t error,
                        uint64_t block)
{
    char *sentence = NULL;
    cleanup_free char *path = disk_path(&store->disk, target->dir, target->file);
    int length = error == -EBADMSG || error == -ENODATA
                     ? asprintf(&sentence, "block %llu (of 1 MiB) of %s %s",
                                (unsigned long long)block, path ? path : "its file",
                                error == -EBADMSG ? "does not have its checksum" : "is cut off")
                     : asprintf(&sentence, "%s can't be read: %s", path ? path : "its file",
                                strerror(-error));
    if (length < 0)
        return;
    damage_note(store, target->number, &target->id, sentence);
    free(sentence);
}

/* --- asking --- */

uint64_t fetch_changed_ns(const struct stat *info)
{
    return (uint64_t)info->st_ctim.tv_sec * 1000000000u + (uint64_t)info->st_ctim.tv_nsec;
}

static uint64_t file_changed_ns(struct store *store, unsigned dir, uint64_t file)
{
    char name[DATA_NAME_BYTES];
    struct stat info;
    if (dir >= store->disk.count || fstatat(store->disk.dirs[dir].objects_fd, data_name(file, name),
                                            &info, AT_SYMLINK_NOFOLLOW))
        return 0;
    return fetch_changed_ns(&info);
}

/* 0: the kernel doesn't know it, or it isn't there. */
static uint64_t file_changed_ns_now(struct store *store, unsigned dir, uint64_t file)
{
    struct stat info;
    cleanup_fd int fd = disk_open_file_now(&store->disk, dir, file, O_PATH);
    return fd < 0 || fstat(fd, &info) ? 0 : fetch_changed_ns(&info);
}

static errint_t is_readable(struct store *store, uint64_t number,
                            uint64_t (*changed_ns)(struct store *, unsigned dir, uint64_t file))
{
    struct table_shard *shard;
    const struct object *object = table_lock_number(&store->table, number, &shard);
    if (!object)
        return -ENOENT;
    bool on_disk = object->state == OBJECT_READY && object->tier == TIER_DISK;
    uint64_t verified_ns = on_disk ? object->verified_ns : 0, file = object->file;
    unsigned dir = object->disk;
    bool encrypted = object->flags & OBJECT_ENCRYPTED;
    table_unlock(shard);
    if (!on_disk || (verified_ns && verified_ns == changed_ns(store, dir, file)))
        return 0;
    if (encrypted && !is_damaged(&store->spill, number))
        return 0; /* each read of it is verified */
    return is_damaged(&store->spill, number) ? -EIO : -EAGAIN;
}

errint_t store_readable(struct store *store, uint64_t number)
{
    return is_readable(store, number, file_changed_ns);
}

errint_t store_readable_now(struct store *store, uint64_t number)
{
    return is_readable(store, number, file_changed_ns_now);
}

errint_t store_place(struct store *store, uint64_t number, char **path)
{
    char name[DATA_NAME_BYTES];
    struct table_shard *shard;
    const struct object *object = table_lock_number(&store->table, number, &shard);
    if (!object)
        return -ENOENT;
    uint64_t file = object->state == OBJECT_READY ? object->file : 0;
    unsigned dir = object->disk;
    bool on_disk = object->tier == TIER_DISK;
    table_unlock(shard);
    *path = NULL;
    if (!file)
        return -ENOENT;
    if (on_disk)
        *path = disk_path(&store->disk, dir, file);
    else if (asprintf(path, "%s/data/%s", store->memory_dir, data_name(file, name)) < 0)
        *path = NULL;
    return *path ? 0 : -ENOMEM;
}

/* --- queueing --- */

/* Adds to what is queued for the object, or queues it. False: no memory, or nobody to do it. */
static bool enqueue(struct store *store, uint64_t number, struct waiter *waiter,
                    enum fetch_kind kind)
{
    struct spill *spill = &store->spill;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&spill->lock);
    struct fetch **link = &spill->fetches;
    if (spill->stop)
        return false;
    while (*link && (*link)->number != number)
        link = &(*link)->next;
    if (!*link) {
        *link = calloc(1, sizeof **link);
        if (!*link)
            return false;
        (*link)->number = number;
    }
    if (kind > (*link)->kind)
        (*link)->kind = kind;
    if (waiter) {
        waiter->next = (*link)->waiters;
        (*link)->waiters = waiter;
    }
    pthread_cond_signal(&spill->fetcher_wake);
    return true;
}

void fetch_seal(struct store *store, uint64_t number)
{
    if (store->spill.fetcher_runs && !enqueue(store, number, NULL, FETCH_SEAL))
        mob_log_warning("store: no memory; checksums are made when the object is opened");
}

void fetch_verify(struct store *store, uint64_t number)
{
    if (store->spill.fetcher_runs) /* without memory, the next open does */
        (void)enqueue(store, number, NULL, FETCH_VERIFY);
}

/* Objects come back only into what lies below the low watermark: else they would push others out.
 */
static bool has_room_for(struct store *store, uint64_t bytes)
{
    return spill_memory_used(store) + bytes <= spill_mark(store, SPILL_LOW_WATERMARK);
}

void fetch_reopened(struct store *store, uint64_t number)
{
    if (!store->spill.fetcher_runs || !has_room_for(store, 1))
        return;
    (void)enqueue(store, number, NULL, FETCH_RESTORE); /* without memory it stays where it is */
}

errint_t store_fetch(struct store *store, uint64_t number, store_waiter *callback, void *argument,
                     uint64_t *token)
{
    errint_t error = store_readable_now(store, number);
    if ((error != -EAGAIN && error != -EIO) || !store->spill.fetcher_runs)
        return store_wait(store, number, callback, argument, token);
    struct waiter *waiter = waiter_new(store, callback, argument, token);
    if (!waiter)
        return -ENOMEM;
    if (enqueue(store, number, waiter, FETCH_VERIFY))
        return 0;
    free(waiter);
    return -ENOMEM;
}

static struct waiter *take_waiter(struct fetch *fetch, uint64_t token)
{
    struct waiter **link = &fetch->waiters;
    while (*link && (*link)->token != token)
        link = &(*link)->next;
    struct waiter *found = *link;
    if (found)
        *link = found->next;
    return found;
}

struct waiter *fetch_cancel(struct store *store, uint64_t number, uint64_t token)
{
    struct spill *spill = &store->spill;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&spill->lock);
    struct waiter *found = spill->current && spill->current->number == number
                               ? take_waiter(spill->current, token)
                               : NULL;
    for (struct fetch *fetch = spill->fetches; fetch && !found; fetch = fetch->next)
        if (fetch->number == number)
            found = take_waiter(fetch, token);
    return found;
}

struct blocked {
    pthread_mutex_t lock;
    pthread_cond_t done;
    bool called;
};

static void wake_blocked(void *argument, uint64_t number, enum object_state state)
{
    struct blocked *blocked = argument;
    (void)number, (void)state;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&blocked->lock);
    blocked->called = true;
    pthread_cond_signal(&blocked->done);
}

static void wait_blocked(struct blocked *blocked)
{
    pthread_mutex_lock(&blocked->lock);
    while (!blocked->called)
        pthread_cond_wait(&blocked->done, &blocked->lock);
    pthread_mutex_unlock(&blocked->lock);
    pthread_cond_destroy(&blocked->done);
    pthread_mutex_destroy(&blocked->lock);
}

errint_t store_verify(struct store *store, uint64_t number)
{
    errint_t error = store_readable(store, number);
    /* -EIO is tried once: the file may have been mended. */
    for (unsigned i = 0; (error == -EAGAIN && i < STORE_FETCH_TRIES) || (error == -EIO && !i);
         i++) {
        struct blocked blocked = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false};
        uint64_t token;
        error = store_fetch(store, number, wake_blocked, &blocked, &token);
        if (error)
            return error;
        wait_blocked(&blocked);
        error = store_readable(store, number);
    }
    return error == -EAGAIN ? -EIO : error;
}

bool fetch_has_sums(struct store *store, uint64_t file, uint64_t size)
{
    struct meta_reader *reader;
    const struct spill_sum *sums;
    const void *value;
    size_t bytes;
    if (meta_read_begin(&store->meta, &reader))
        return false;
    bool found =
        meta_get_number(&store->meta, reader->txn, META_BLOCKS, file, &value, &bytes) == 0 &&
        blocks_decode(file, size, value, bytes, &sums);
    meta_read_end(reader);
    return found;
}

errint_t fetch_seal_and_wait(struct store *store, uint64_t number)
{
    struct blocked blocked = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false};
    struct object_info info;
    uint64_t token;
    errint_t error = store_info(store, number, &info);
    if (error || fetch_has_sums(store, info.file, info.size))
        return error;
    struct waiter *waiter = waiter_new(store, wake_blocked, &blocked, &token);
    if (!waiter || !enqueue(store, number, waiter, FETCH_SEAL)) {
        free(waiter);
        return -ENOMEM;
    }
    wait_blocked(&blocked);
    error = store_readable(store, number);
    if (error)
        return error == -EAGAIN ? -EIO : error;
    return fetch_has_sums(store, info.file, info.size) ? 0 : -ENOSPC;
}

/* --- verifying --- */

static errint_t take_target(struct store *store, uint64_t number, bool busy, struct target *out)
{
    struct table_shard *shard;
    struct object *object = table_lock_number(&store->table, number, &shard);
    if (!object)
        return -ENOENT;
    errint_t error = 0;
    if (object->state != OBJECT_READY || object->tier != TIER_DISK ||
        (busy && object->flags & OBJECT_BUSY))
        error = -ESTALE;
    *out = (struct target){.number = number,
                           .file = object->file,
                           .size = object->size,
                           .id = object->id,
                           .dir = object->disk,
                           .encrypted = object->flags & OBJECT_ENCRYPTED};
    if (!error && busy)
        object->flags |= OBJECT_BUSY;
    table_unlock(shard);
    return error;
}

void fetch_note_damage(struct store *store, uint64_t number, errint_t error, uint64_t block)
{
    struct target target;
    if (take_target(store, number, false, &target))
        return;
    note_damage(store, &target, error, block);
    if (take_target(store, number, false, &target))
        fetch_forget(store, number); /* freed meanwhile */
}

/* A copy of the checksums in LMDB; *found is false if there are none yet: then it is room for them.
 */
static errint_t load_sums(struct store *store, const struct target *target, struct spill_sum **out,
                          bool *found)
{
    size_t count = spill_block_count(target->size);
    struct meta_reader *reader;
    const struct spill_sum *kept;
    const void *value;
    size_t bytes;
    cleanup_free struct spill_sum *sums = calloc(count + 1, sizeof *sums);
    if (!sums)
        return -ENOMEM;
    errint_t error = meta_read_begin(&store->meta, &reader);
    if (error)
        return error;
    error = meta_get_number(&store->meta, reader->txn, META_BLOCKS, target->file, &value, &bytes);
    *found = !error;
    if (error == -EIO ||
        (!error && !blocks_decode(target->file, target->size, value, bytes, &kept)))
        error = -EBADMSG;
    if (!error)
        memcpy(sums, kept, count * sizeof *sums);
    meta_read_end(reader);
    if (error && error != -ENOENT)
        return error;
    *out = steal_pointer(&sums);
    return 0;
}

static errint_t keep_sums(struct store *store, const struct target *target,
                          const struct spill_sum *sums)
{
    size_t count = spill_block_count(target->size);
    MDB_txn *txn;
    struct object_info info;
    store_write_lock(store);
    errint_t error = store_info(store, target->number, &info);
    if (!error)
        error = meta_begin(&store->meta, count * sizeof *sums + 1024, &txn);
    if (!error) {
        error = blocks_put(&store->meta, txn, target->file, target->size, sums);
        error = meta_end(txn, error);
    }
    store_write_unlock(store);
    return error;
}

void fetch_set_verified(struct store *store, uint64_t number, uint64_t verified_ns)
{
    struct table_shard *shard;
    struct object *object = table_lock_number(&store->table, number, &shard);
    if (!object)
        return;
    if (object->state == OBJECT_READY && object->tier == TIER_DISK)
        object->verified_ns = verified_ns;
    table_unlock(shard);
}

static errint_t run_copy(struct store *store, struct spill_copy *copy)
{
    if (copy->form != SPILL_PLAIN && !copy->key)
        return -EIO;
    struct spill_io *io = spill_engine(store, &store->spill.fetcher_io);
    if (!io)
        return -ENOMEM;
    spill_io_run(io, copy, 1);
    return copy->error;
}

static bool is_its_fault(errint_t error)
{
    return error != -ECANCELED && error != -ENOMEM && error != -EMFILE && error != -ENFILE;
}

/* The header changes the file's ctime, but not the time of its bytes. *info, the file as it was
 * read, is renewed; *same: its bytes are still those. */
static errint_t describe(struct store *store, const struct target *target, int fd,
                         const struct spill_sum *sums, struct stat *info, bool *same)
{
    const struct stat read = *info;
    object_describe_number(store, target->number, target->dir, fd, sums, target->encrypted);
    if (fstat(fd, info) < 0)
        return -errno;
    *same = read.st_size == info->st_size && read.st_mtim.tv_sec == info->st_mtim.tv_sec &&
            read.st_mtim.tv_nsec == info->st_mtim.tv_nsec;
    return 0;
}

static void verify(struct store *store, uint64_t number)
{
    struct target target;
    struct stat before, after;
    struct object_info info;
    bool found = false, same = false;
    cleanup_free struct spill_sum *sums = NULL;
    if (take_target(store, number, false, &target))
        return;
    errint_t error = load_sums(store, &target, &sums, &found);
    cleanup_fd int fd = disk_open_file(&store->disk, target.dir, target.file, O_RDONLY);
    struct spill_copy copy = {.from = fd,
                              .to = -1,
                              .bytes = target.size,
                              .sums = sums,
                              .check = found,
                              .discard = true,
                              .form = target.encrypted ? SPILL_DECRYPT : SPILL_PLAIN,
                              .key = store->key,
                              .file = target.file};
    uint64_t bytes = target.encrypted ? cipher_file_bytes(target.size) : target.size;
    if (!error && (fd < 0 || fstat(fd, &before) < 0))
        error = fd < 0 ? fd : -errno;
    if (!error && (uint64_t)before.st_size != bytes) {
        error = -ENODATA;
        copy.bad_block =
            (uint64_t)before.st_size / (target.encrypted ? CIPHER_STRIDE_BYTES : SPILL_BLOCK_BYTES);
    }
    if (!error)
        error = run_copy(store, &copy);
    if (!error && fstat(fd, &after) < 0)
        error = -errno;
    if (!error && fetch_changed_ns(&before) == fetch_changed_ns(&after))
        error = describe(store, &target, fd, sums, &after, &same);
    if (!error && !found)
        error = keep_sums(store, &target, sums);
    if (error == -ENOSPC) /* they are made at another time; what is committed stays readable */
        error = 0;
    if (error && (!is_its_fault(error) || store_info(store, number, &info)))
        return; /* or it was freed: the next open tries again */
    if (error) {
        note_damage(store, &target, error, copy.bad_block);
        if (store_info(store, number, &info))
            fetch_forget(store, number); /* freed meanwhile */
    } else if (same) {
        fetch_forget(store, number);
        fetch_set_verified(store, number, fetch_changed_ns(&after));
        writeback_watch(store, number);
    }
}

/* --- bringing back --- */

static errint_t copy_to_memory(struct store *store, const struct target *target, int *to)
{
    bool found = false;
    cleanup_free struct spill_sum *sums = NULL;
    errint_t error = load_sums(store, target, &sums, &found);
    if (error || !found)
        return error ? error : -ENODATA;
    cleanup_fd int from =
        disk_open_file(&store->disk, target->dir, target->file, O_RDONLY | O_DIRECT);
    if (from == -EINVAL)
        from = disk_open_file(&store->disk, target->dir, target->file, O_RDONLY);
    if (from < 0)
        return from;
    if (unlinkat(store->data_fd, SPILL_RESTORE_NAME, 0) < 0 && errno != ENOENT)
        return -errno;
    *to = openat(store->data_fd, SPILL_RESTORE_NAME,
                 O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (*to < 0)
        return -errno;
    struct spill_copy copy = {.from = from,
                              .to = *to,
                              .bytes = target->size,
                              .sums = sums,
                              .check = true,
                              .form = target->encrypted ? SPILL_DECRYPT : SPILL_PLAIN,
                              .key = store->key,
                              .file = target->file};
    return run_copy(store, &copy);
}

/* The file in memory is whole: it gets its name, and the object is there again. */
static void enter_memory(struct store *store, const struct target *target, int fd)
{
    char name[DATA_NAME_BYTES];
    struct stat info;
    struct table_shard *shard;
    if (fstat(fd, &info) < 0 || renameat(store->data_fd, SPILL_RESTORE_NAME, store->data_fd,
                                         data_name(target->file, name)) < 0)
        return;
    uint32_t pages = (uint32_t)(info.st_blocks / (STORE_PAGE_BYTES / 512));
    struct object *object = table_lock_number(&store->table, target->number, &shard);
    if (!object) {
        unlinkat(store->data_fd, name, 0);
        return;
    }
    object->tier = TIER_MEMORY;
    object->pages = pages;
    uint32_t used = object->used = spill_now(store);
    atomic_fetch_add(&store->memory_used, (int64_t)object_memory(object));
    table_unlock(shard);
    spill_count_tier(store, true);
    atomic_fetch_add(&store->spill.restored_bytes, target->size);
    if (store->hooks.file_gone) /* registered is the file on disk */
        store->hooks.file_gone(store->hooks.context, target->file);
    spill_add(store, target->number, used);
    object_note_change(store, target->number);
}

/* False: it is on disk still. */
static bool restore(struct store *store, uint64_t number)
{
    struct target target;
    struct object_info info;
    if (take_target(store, number, true, &target))
        return false;
    cleanup_fd int fd = -1;
    if (has_room_for(store, target.size)) {
        errint_t error = copy_to_memory(store, &target, &fd);
        if (!error)
            enter_memory(store, &target, fd);
        else
            unlinkat(store->data_fd, SPILL_RESTORE_NAME, 0);
    }
    spill_clear_busy(store, number);
    spill_settled(store);
    objects_settle(store);
    return store_info(store, number, &info) == 0 && info.tier == TIER_MEMORY;
}

/* --- the thread --- */

/* What is opened for the first time must be read once: into memory, if there is room, where whoever
 * opened it then reads it at memory's speed. */
static void carry_out(struct store *store, uint64_t number, enum fetch_kind kind)
{
    bool unread = kind == FETCH_SEAL || store_readable(store, number);
    if (kind == FETCH_VERIFY && !unread) /* the kernel had only forgotten its file */
        return;
    if (kind != FETCH_SEAL && restore(store, number))
        return;
    if (unread)
        verify(store, number);
}

/* Those that somebody waits for go first. Locked. */
static struct fetch *take_fetch(struct spill *spill)
{
    struct fetch **link = &spill->fetches;
    while (*link && !(*link)->waiters)
        link = &(*link)->next;
    if (!*link)
        link = &spill->fetches;
    struct fetch *fetch = *link;
    if (fetch)
        *link = fetch->next;
    return fetch;
}

static void *fetcher_main(void *argument)
{
    struct store *store = argument;
    struct spill *spill = &store->spill;
    pthread_mutex_lock(&spill->lock);
    while (!spill->stop) {
        spill->current = take_fetch(spill);
        if (!spill->current) {
            pthread_cond_wait(&spill->fetcher_wake, &spill->lock);
            continue;
        }
        uint64_t number = spill->current->number;
        enum fetch_kind kind = spill->current->kind;
        pthread_mutex_unlock(&spill->lock);
        carry_out(store, number, kind);
        pthread_mutex_lock(&spill->lock);
        struct fetch *done = spill->current;
        spill->current = NULL;
        pthread_mutex_unlock(&spill->lock);
        waiters_call(done->waiters, number, OBJECT_READY);
        free(done);
        pthread_mutex_lock(&spill->lock);
    }
    pthread_mutex_unlock(&spill->lock);
    return NULL;
}

errint_t fetcher_start(struct store *store)
{
    struct spill *spill = &store->spill;
    int code = pthread_create(&spill->fetcher, NULL, fetcher_main, store);
    spill->fetcher_runs = !code;
    if (!code)
        pthread_setname_np(spill->fetcher, "fetcher");
    return -code;
}
