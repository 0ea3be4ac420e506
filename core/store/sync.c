/* Durable on request: objects, names, everything; and settling. See sync.h. */
#include "core/store/sync.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/store/store_internal.h"

/* --- one object; sync_lock is held --- */

struct place {
    uint64_t file, size;
    unsigned dir;
    uint8_t tier;
    bool on_disk;
};

static errint_t find_place(struct store *store, uint64_t number, struct place *out)
{
    struct table_shard *shard;
    const struct object *object = table_lock_number(&store->table, number, &shard);
    if (!object)
        return -ENOENT;
    errint_t error = object->state == OBJECT_PENDING  ? -EAGAIN
                     : object->state == OBJECT_FAILED ? object->failure->code
                                                      : 0;
    *out = (struct place){.file = object->file,
                          .size = object->size,
                          .dir = object->disk,
                          .tier = object->tier,
                          .on_disk = object->flags & OBJECT_ON_DISK};
    table_unlock(shard);
    return error;
}

static errint_t sync_file(struct store *store, const struct place *place)
{
    cleanup_fd int fd = disk_open_file(&store->disk, place->dir, place->file, O_RDONLY);
    if (fd < 0)
        return fd == -ENOENT ? -EIO : fd;
    if (fdatasync(fd) < 0 || fsync(store->disk.dirs[place->dir].objects_fd) < 0)
        return -errno;
    return 0;
}

/* Who has asked for it to be durable is told so once the journal is synced, too; its copy must then
 * not go before its removal is as durable. */
static void mark_durable(struct store *store, uint64_t number)
{
    struct table_shard *shard;
    struct object *object = table_lock_number(&store->table, number, &shard);
    if (!object)
        return;
    object->flags |= OBJECT_DURABLE;
    table_unlock(shard);
}

/* Its copy on disk, with checksums, is there and synced. */
static errint_t sync_bytes(struct store *store, uint64_t number)
{
    struct place place;
    for (;;) {
        errint_t error = find_place(store, number, &place);
        if (error || place.tier == TIER_INLINE)
            return error;
        if (place.on_disk)
            break;
        if (!store->disk.count)
            return -EOPNOTSUPP;
        error = spill_copy(store, number);
        if (!error)
            error = find_place(store, number, &place);
        if (error)
            return error;
        if (place.on_disk)
            break;
        if (spill_is_stopping(store))
            return -ECANCELED;
        spill_wait_settled(store); /* another thread is at it */
    }
    mark_durable(store, number);
    errint_t error = fetch_seal_and_wait(store, number);
    return error ? error : sync_file(store, &place);
}

/* --- settling --- */

struct note {
    struct synced_record record;
    struct spill_sum *sums; /* caller frees */
};

static errint_t load_note(struct store *store, uint64_t number, struct note *out)
{
    struct meta_reader *reader;
    struct synced_view view;
    const void *value;
    size_t bytes;
    errint_t error = meta_read_begin(&store->meta, &reader);
    if (error)
        return error;
    error = meta_get_number(&store->meta, reader->txn, META_SYNCED, number, &value, &bytes);
    if (!error && !synced_decode(number, value, bytes, &view))
        error = -EBADMSG;
    *out = (struct note){0};
    if (!error) {
        size_t count = view.sums ? spill_block_count(view.record.size) : 0;
        out->record = view.record;
        out->sums = malloc((count + 1) * sizeof *out->sums);
        if (!out->sums)
            error = -ENOMEM;
        else if (count)
            memcpy(out->sums, view.sums, count * sizeof *out->sums);
    }
    meta_read_end(reader);
    return error;
}

/* Has the object what was synced? 0: yes. */
static errint_t compare(struct store *store, const struct place *place, const struct note *note)
{
    if (place->size != note->record.size || !note->record.file)
        return -EBADMSG;
    cleanup_fd int from = data_open(store, place->file, O_RDONLY);
    if (from < 0)
        return from;
    struct spill_copy copy = {.from = from,
                              .to = -1,
                              .bytes = place->size,
                              .sums = note->sums,
                              .check = true,
                              .discard = true};
    struct spill_io *io = spill_engine(store, &store->spill.syncer_io);
    if (!io)
        return -ENOMEM;
    spill_io_run(io, &copy, 1);
    return copy.error;
}

static bool take(struct store *store, uint64_t number)
{
    struct table_shard *shard;
    struct object *object = table_lock_number(&store->table, number, &shard);
    if (!object)
        return false;
    bool free = object->tier == TIER_MEMORY && !(object->flags & (OBJECT_BUSY | OBJECT_ON_DISK));
    if (free)
        object->flags |= OBJECT_BUSY;
    table_unlock(shard);
    return free;
}

static void give_back(struct store *store, uint64_t number, bool on_disk, unsigned dir,
                      const struct place *place)
{
    struct table_shard *shard;
    struct object *object = table_lock_number(&store->table, number, &shard);
    if (object) {
        object->flags &= (uint16_t)~OBJECT_BUSY;
        if (on_disk) {
            object->flags |= OBJECT_ON_DISK;
            object->disk = (uint8_t)dir;
        }
        table_unlock(shard);
    } else if (on_disk) { /* freed meanwhile: who freed it did not know of the file */
        disk_remove_file(&store->disk, dir, place->file, object_disk_bytes(place->size, false));
    }
    spill_settled(store);
}

static errint_t link_copy(struct store *store, uint64_t number, const struct place *place,
                          const struct note *note, unsigned dir)
{
    char from[DATA_NAME_BYTES], to[DATA_NAME_BYTES];
    MDB_txn *txn;
    struct object_info info;
    int fd = store->disk.dirs[dir].objects_fd;
    errint_t error = disk_clear_file(&store->disk, place->file);
    if (error)
        return error;
    if (linkat(fd, data_name(note->record.file, from), fd, data_name(place->file, to), 0) < 0 ||
        fsync(fd) < 0)
        return -errno;
    disk_count(&store->disk, (int64_t)object_disk_bytes(place->size, false));
    store_write_lock(store);
    error = store_info(store, number, &info);
    if (!error)
        error = meta_begin(&store->meta, spill_block_count(place->size) * sizeof *note->sums + 1024,
                           &txn);
    if (!error) {
        error = blocks_put(&store->meta, txn, place->file, place->size, note->sums);
        if (!error)
            error = spill_note_on_disk(store, txn, number, false);
        error = meta_end(txn, error);
    }
    store_write_unlock(store);
    if (error)
        disk_remove_file(&store->disk, dir, place->file, object_disk_bytes(place->size, false));
    return error;
}

/* Where the object is what was synced, the copy becomes the object's: it gets a second name. Not
 * one that is encrypted, as the file with its own number. */
static errint_t install(struct store *store, uint64_t number, const struct place *place,
                        const struct note *note)
{
    unsigned dir;
    if (place->tier != TIER_MEMORY || place->on_disk || note->record.file == place->file ||
        note->record.flags & SYNCED_ENCRYPTED)
        return 0;
    cleanup_fd int fd = disk_find_file(&store->disk, note->record.file, O_RDONLY, &dir);
    if (fd < 0)
        return fd;
    errint_t error = compare(store, place, note);
    if (error || !take(store, number))
        return error == -EBADMSG ? 0 : error;
    object_describe_number(store, number, dir, fd, note->sums, false);
    error = link_copy(store, number, place, note, dir);
    give_back(store, number, !error, dir, place);
    return error;
}

static errint_t drop_note(struct store *store, uint64_t number, const struct note *note,
                          uint64_t object_file)
{
    MDB_txn *txn;
    unsigned dir;
    store_write_lock(store);
    errint_t error = meta_begin(&store->meta, 0, &txn);
    if (!error) {
        error = meta_delete_number(&store->meta, txn, META_SYNCED, number);
        error = meta_end(txn, error);
    }
    store_write_unlock(store);
    if (error || !note->record.file || note->record.file == object_file)
        return error;
    int fd = disk_find_file(&store->disk, note->record.file, O_RDONLY, &dir);
    if (fd >= 0) {
        struct data_file copy = {.file = note->record.file, .fd = fd, .dir = (uint8_t)dir};
        disk_drop_durable(
            store, &copy,
            object_disk_bytes(note->record.size, note->record.flags & SYNCED_ENCRYPTED));
    }
    return 0;
}

/* 0 as well if there is nothing to settle. sync_lock is held. */
static errint_t settle(struct store *store, uint64_t number)
{
    struct note note = {0};
    struct place place = {0};
    errint_t error = load_note(store, number, &note);
    if (error == -ENOENT || (!error && !note.record.object)) {
        free(note.sums);
        return 0;
    }
    if (!error)
        error = find_place(store, note.record.object, &place);
    bool freed = error == -ENOENT;
    if (!error)
        error = install(store, note.record.object, &place, &note);
    if (!error)
        error = sync_bytes(store, note.record.object);
    if (freed || error == -ENOENT)
        error = 0;
    if (!error)
        error = drop_note(store, number, &note, freed ? 0 : place.file);
    free(note.sums);
    return error;
}

static void *settler_main(void *argument)
{
    struct store *store = argument;
    struct settler *settler = &store->settler;
    mob_no_hurry();
    pthread_mutex_lock(&settler->lock);
    while (!settler->stop) {
        if (!settler->count) {
            pthread_cond_wait(&settler->wake, &settler->lock);
            continue;
        }
        uint64_t number = settler->numbers[--settler->count];
        pthread_mutex_unlock(&settler->lock);
        pthread_mutex_lock(&store->spill.sync_lock);
        errint_t error = settle(store, number);
        pthread_mutex_unlock(&store->spill.sync_lock);
        objects_settle(store);
        if (error && error != -ECANCELED) /* it stays noted, and is tried again after a restart */
            mob_log_warning("store: what was synced before its commit is kept apart: %s",
                            strerror(-error));
        pthread_mutex_lock(&settler->lock);
    }
    pthread_mutex_unlock(&settler->lock);
    return NULL;
}

/* Most stores never need it. Locked. */
static void start_if_needed(struct store *store)
{
    struct settler *settler = &store->settler;
    if (settler->runs || !settler->may_run || !settler->count)
        return;
    settler->runs = pthread_create(&settler->thread, NULL, settler_main, store) == 0;
    if (settler->runs)
        pthread_setname_np(settler->thread, "settler");
}

void settler_add(struct store *store, uint64_t number)
{
    struct settler *settler = &store->settler;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&settler->lock);
    if (settler->count == settler->capacity) {
        size_t capacity = settler->capacity ? 2 * settler->capacity : 16;
        uint64_t *numbers = realloc(settler->numbers, capacity * sizeof *numbers);
        if (!numbers)
            return; /* after a restart, then */
        settler->numbers = numbers;
        settler->capacity = capacity;
    }
    settler->numbers[settler->count++] = number;
    start_if_needed(store);
    pthread_cond_signal(&settler->wake);
}

void settler_start(struct store *store)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->settler.lock);
    store->settler.may_run = true;
    start_if_needed(store);
}

void settler_close(struct store *store)
{
    struct settler *settler = &store->settler;
    pthread_mutex_lock(&settler->lock);
    settler->stop = true;
    pthread_cond_signal(&settler->wake);
    pthread_mutex_unlock(&settler->lock);
    if (settler->runs)
        pthread_join(settler->thread, NULL);
    free(settler->numbers);
    settler->numbers = NULL;
    settler->count = 0;
    settler->runs = false;
}

/* --- for users --- */

static uint64_t staged_of(struct store *store, uint64_t number)
{
    struct object_info info;
    return store_info(store, number, &info) ? 0 : info.staged;
}

errint_t store_sync_object(struct store *store, uint64_t number)
{
    uint64_t staged = staged_of(store, number);
    pthread_mutex_lock(&store->spill.sync_lock);
    if (staged && settle(store, staged)) /* then it gets a copy of its own */
        mob_log_debug("store: what was synced before its commit is kept apart");
    errint_t error = sync_bytes(store, number);
    pthread_mutex_unlock(&store->spill.sync_lock);
    objects_settle(store);
    return error ? error : journal_sync(store->journal, journal_written(store->journal));
}

errint_t store_sync_names(struct store *store)
{
    return journal_sync(store->journal, journal_written(store->journal));
}

struct everything {
    struct store *store;
    errint_t error;
    uint64_t numbers[64];
    size_t count;
};

static void keep_first(struct everything *all, errint_t error)
{
    if (error && error != -ENOENT && !all->error)
        all->error = error;
}

static void sync_staged(void *argument, const struct staged_info *info)
{
    struct everything *all = argument;
    if (!info->committed && !info->unlinked)
        keep_first(all, staged_sync(all->store, info->number, NULL));
}

static bool note_large(void *argument, const struct object *object, uint64_t next)
{
    struct everything *all = argument;
    (void)next;
    if (object->state == OBJECT_READY && object->tier != TIER_INLINE)
        all->numbers[all->count++] = object->number;
    return all->count < MOB_ARRAY_LENGTH(all->numbers);
}

/* Those that spill_copy_all() has left out, and those that have no checksums yet. */
static void sync_rest(struct everything *all)
{
    struct store *store = all->store;
    struct place place;
    uint64_t cursor = 0;
    do {
        all->count = 0;
        table_walk(&store->table, &cursor, note_large, all);
        for (size_t i = 0; i < all->count; i++) {
            mark_durable(store, all->numbers[i]);
            if (find_place(store, all->numbers[i], &place) == 0 &&
                (!place.on_disk || !fetch_has_sums(store, place.file, place.size)))
                keep_first(all, sync_bytes(store, all->numbers[i]));
        }
    } while (all->count);
}

errint_t store_sync_all(struct store *store)
{
    struct everything all = {.store = store};
    staged_each(store, sync_staged, &all);
    pthread_mutex_lock(&store->spill.sync_lock);
    if (store->disk.count)
        keep_first(&all, spill_copy_all(store));
    sync_rest(&all);
    for (unsigned i = 0; i < store->disk.count; i++)
        keep_first(&all, syncfs(store->disk.dirs[i].fd) < 0 ? -errno : 0);
    pthread_mutex_unlock(&store->spill.sync_lock);
    objects_settle(store);
    errint_t error = store_sync_names(store);
    return all.error ? all.error : error;
}
