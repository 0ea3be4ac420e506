/* The evictor: objects go from memory to disk when memory is short. See spill.h.
 *
 * Each round takes some objects that nobody has open, the least recently used first; copies those
 * that are not on disk yet, several at once; notes the copies in one transaction; and takes out of
 * memory those that still nobody has open. An object that was opened or freed meanwhile stays, or
 * is gone: the copy then serves the next time, or goes. */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "core/store/store_internal.h"

#define ROUND_BYTES (UINT64_C(64) << 20)
#define ROUND_OBJECTS 32
#define RETRY_NS UINT64_C(1000000000)
/* Memory is written at some 8 GB/s at most: looking once in the time that half of what is free
 * would take at that rate is early enough, and a quarter leaves some for being late. */
#define FASTEST_BYTES_PER_MS (UINT64_C(8) << 20)
#define LONGEST_PAUSE_MS 100
#define PRUNE_LEAST 1024
/* So often in vain, then it sleeps until it is woken: that costs who makes the next file. */
#define IDLE_LOOKS 50
/* After a search in which nothing was found that can go, it rests for so many times as long. */
#define SEARCH_SHARE 20

struct victim {
    uint64_t number, file, size;
    bool copied;    /* there is a copy on disk already */
    bool encrypted; /* the copy is to be */
    unsigned dir;
    struct spill_sum *sums;
    struct spill_copy copy;
    errint_t error;
};

struct round {
    struct store *store;
    struct victim victims[ROUND_OBJECTS];
    size_t count;
    uint64_t bytes;
    uint64_t room;  /* on disk, for those that have no copy there */
    uint64_t rooms; /* spill->rooms when it began */
    bool all;       /* not only what memory must give: everything that has no copy */
    struct spill_io **engine;
};

/* --- memory --- */

uint64_t spill_memory_used(struct store *store)
{
    struct statvfs info;
    if (store->memory_is_own && fstatvfs(store->memory_fd, &info) == 0)
        return (uint64_t)(info.f_blocks - info.f_bfree) * info.f_frsize;
    int64_t used = atomic_load(&store->memory_used);
    return used > 0 ? (uint64_t)used : 0;
}

uint64_t spill_mark(const struct store *store, double share)
{
    return (uint64_t)((double)store->memory_bytes * share);
}

bool spill_memory_is_plenty(struct store *store)
{
    uint64_t used = spill_memory_used(store);
    if (used >= spill_mark(store, SPILL_HIGH_WATERMARK))
        return false;
    if (!store->passthrough)
        return true;
    /* What the kernel writes by itself, at several GB/s, may be stopped some 50 ms after it was
     * seen to be too much: so much must be left, for each that writes. Small stores have it never;
     * what begins there is written on disk, through the page cache. */
    const uint64_t least = UINT64_C(448) << 20, each = UINT64_C(200) << 20;
    uint64_t left = store->memory_bytes - used;
    uint64_t writers = (uint64_t)atomic_load(&store->memory_files);
    return left >= least && (!writers || (writers + 1) * each <= left);
}

uint32_t spill_now(struct store *store)
{
    return atomic_fetch_add_explicit(&store->spill.clock, 1, memory_order_relaxed) + 1;
}

void spill_nudge(struct store *store)
{
    struct spill *spill = &store->spill;
    if (!store->disk.count || atomic_load(&spill->evictor_awake))
        return;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&spill->lock);
    atomic_store(&spill->evictor_awake, true);
    pthread_cond_signal(&spill->evictor_wake);
}

void spill_room_came(struct store *store)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->spill.lock);
    store->spill.full_until_ns = 0;
    store->spill.rooms++;
    pthread_cond_signal(&store->spill.evictor_wake);
}

void spill_add(struct store *store, uint64_t number, uint32_t used)
{
    struct spill *spill = &store->spill;
    if (!store->disk.count)
        return;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&spill->lock);
    if (lru_push(&spill->lru, number, used))
        mob_log_warning("store: no memory to note an object with; it is not spilled");
}

/* Objects that were freed leave what was noted of them: it goes when it is more than what is noted
 * of those that are there. On the evictor's thread. */
static void prune(struct store *store)
{
    struct spill *spill = &store->spill;
    struct object_info info;
    struct lru_entry entry;
    int64_t there = atomic_load(&store->ready_memory);
    pthread_mutex_lock(&spill->lock);
    struct lru old = spill->lru;
    bool due = old.count > PRUNE_LEAST && (int64_t)(old.count / 2) > there;
    if (due)
        spill->lru = (struct lru){0};
    pthread_mutex_unlock(&spill->lock);
    while (due && lru_pop(&old, &entry)) {
        if (store_info(store, entry.number, &info) || info.tier != TIER_MEMORY)
            continue;
        cleanup_lock pthread_mutex_t *lock = mob_lock(&spill->lock);
        if (lru_push(&spill->lru, entry.number, entry.used))
            mob_log_warning("store: no memory to note an object with; it is not spilled");
    }
    if (due)
        lru_free(&old);
}

/* --- choosing --- */

enum choice { CHOICE_GONE, CHOICE_LATER, CHOICE_TAKEN, CHOICE_NEWER };

/* Marks the object busy if it may go. *used: when it was last used. */
static enum choice choose(struct round *round, uint64_t number, bool pinned_too, uint32_t *used)
{
    struct table_shard *shard;
    struct object *object = table_lock_number(&round->store->table, number, &shard);
    if (!object)
        return CHOICE_GONE;
    enum choice choice = CHOICE_TAKEN;
    if (object->tier != TIER_MEMORY || object->state != OBJECT_READY)
        choice = CHOICE_GONE;
    else if (object->flags & OBJECT_BUSY || (!round->all && object->opens) ||
             (object->pins && !pinned_too) ||
             (!(object->flags & OBJECT_ON_DISK) && object->size > round->room))
        choice = CHOICE_LATER;
    else if (!round->all && object->used != *used)
        choice = CHOICE_NEWER;
    *used = object->used;
    if (choice == CHOICE_TAKEN) {
        object->flags |= OBJECT_BUSY;
        round->victims[round->count++] = (struct victim){
            .number = number,
            .file = object->file,
            .size = object->size,
            .copied = object->flags & OBJECT_ON_DISK,
            .encrypted = round->store->key != NULL,
            .dir = object->disk,
        };
        round->bytes += object->size;
        if (!(object->flags & OBJECT_ON_DISK))
            round->room -= object->size;
    }
    table_unlock(shard);
    return choice;
}

/* Takes victims off the heap until they make up `bytes`. What can't go now is put back. */
static void pick(struct round *round, uint64_t bytes, bool pinned_too)
{
    struct spill *spill = &round->store->spill;
    struct lru later = {0};
    struct lru_entry entry;
    while (round->count < ROUND_OBJECTS && round->bytes < bytes) {
        pthread_mutex_lock(&spill->lock);
        bool any = lru_pop(&spill->lru, &entry);
        pthread_mutex_unlock(&spill->lock);
        if (!any)
            break;
        enum choice choice = choose(round, entry.number, pinned_too, &entry.used);
        struct lru *back = choice == CHOICE_LATER   ? &later
                           : choice == CHOICE_NEWER ? &spill->lru
                                                    : NULL;
        pthread_mutex_lock(&spill->lock);
        if (back && lru_push(back, entry.number, entry.used))
            mob_log_warning("store: no memory to note an object with; it is not spilled");
        pthread_mutex_unlock(&spill->lock);
    }
    pthread_mutex_lock(&spill->lock);
    while (lru_pop(&later, &entry))
        if (lru_push(&spill->lru, entry.number, entry.used))
            mob_log_warning("store: no memory to note an object with; it is not spilled");
    pthread_mutex_unlock(&spill->lock);
    lru_free(&later);
}

/* --- copying --- */

static errint_t prepare(struct store *store, struct victim *victim)
{
    victim->copy = (struct spill_copy){.from = -1,
                                       .to = -1,
                                       .bytes = victim->size,
                                       .form = victim->encrypted ? SPILL_ENCRYPT : SPILL_PLAIN,
                                       .key = store->key,
                                       .file = victim->file};
    victim->sums = calloc(spill_block_count(victim->size) + 1, sizeof *victim->sums);
    if (!victim->sums)
        return -ENOMEM;
    victim->copy.sums = victim->sums;
    victim->copy.from = data_open(store, victim->file, O_RDONLY);
    if (victim->copy.from < 0)
        return victim->copy.from;
    errint_t error = disk_clear_file(&store->disk, victim->file);
    if (error)
        return error;
    uint64_t disk_bytes = object_disk_bytes(victim->size, victim->encrypted);
    victim->copy.to =
        disk_make_file(&store->disk, victim->file, disk_bytes, O_RDWR | O_DIRECT, &victim->dir);
    if (victim->copy.to < 0)
        return victim->copy.to;
    disk_count(&store->disk, (int64_t)disk_bytes);
    return 0;
}

static void abandon(struct store *store, struct victim *victim)
{
    if (victim->copied || victim->copy.to < 0)
        return;
    disk_remove_file(&store->disk, victim->dir, victim->file,
                     object_disk_bytes(victim->size, victim->encrypted));
}

static void copy_all(struct round *round)
{
    struct store *store = round->store;
    struct spill_copy copies[ROUND_OBJECTS];
    struct victim *owners[ROUND_OBJECTS];
    size_t count = 0;
    uint64_t bytes = 0;
    for (size_t i = 0; i < round->count; i++) {
        struct victim *victim = &round->victims[i];
        victim->copy.from = victim->copy.to = -1;
        if (victim->copied || (victim->error = prepare(store, victim)))
            continue;
        bytes += victim->size;
        owners[count] = victim;
        copies[count++] = victim->copy;
    }
    atomic_fetch_add(&store->spill.spilling_bytes, (int64_t)bytes);
    struct spill_io *io = count ? spill_engine(store, round->engine) : NULL;
    if (io)
        spill_io_run(io, copies, count);
    atomic_fetch_sub(&store->spill.spilling_bytes, (int64_t)bytes);
    if (round->engine == &store->spill.evictor_io)
        spill_describe(store);
    for (size_t i = 0; i < count; i++) {
        struct victim *victim = owners[i];
        victim->error = io ? copies[i].error : -ENOMEM;
        if (!victim->error) /* where direct I/O is not to be had */
            victim->error = writeback_wait(victim->copy.to);
        if (!victim->error)
            object_describe_number(store, victim->number, victim->dir, victim->copy.to,
                                   victim->sums, victim->encrypted);
    }
}

/* --- noting --- */

errint_t spill_note_on_disk(struct store *store, MDB_txn *txn, uint64_t number, bool encrypted)
{
    const void *value;
    size_t bytes;
    struct object_record record;
    errint_t error = meta_get_number(&store->meta, txn, META_OBJECTS, number, &value, &bytes);
    if (error || bytes != sizeof record)
        return error ? error : -EIO;
    memcpy(&record, value, sizeof record);
    record.flags |= RECORD_ON_DISK | (encrypted ? RECORD_ENCRYPTED : 0);
    return meta_put_number(&store->meta, txn, META_OBJECTS, number, &record, sizeof record);
}

/* All copies that are whole, in one transaction. The writer lock keeps those that are found in the
 * table from being taken off the disk before it ends. */
static void note_all(struct round *round)
{
    struct store *store = round->store;
    struct object_info info;
    MDB_txn *txn;
    uint64_t bytes = 0;
    for (size_t i = 0; i < round->count; i++)
        if (!round->victims[i].copied && !round->victims[i].error)
            bytes += 1024 + spill_block_count(round->victims[i].size) * sizeof(struct spill_sum);
    if (!bytes)
        return;
    store_write_lock(store);
    errint_t error = meta_begin(&store->meta, bytes, &txn);
    bool begun = !error;
    for (size_t i = 0; i < round->count && !error; i++) {
        struct victim *victim = &round->victims[i];
        if (victim->copied || victim->error || store_info(store, victim->number, &info))
            continue; /* or it is gone */
        error = blocks_put(&store->meta, txn, victim->file, victim->size, victim->sums);
        if (!error)
            error = spill_note_on_disk(store, txn, victim->number, victim->encrypted);
        if (error == -EIO) { /* its own record is damaged: the others go on */
            victim->error = error;
            error = 0;
        }
    }
    if (begun)
        error = meta_end(txn, error);
    store_write_unlock(store);
    for (size_t i = 0; i < round->count && error; i++)
        if (!round->victims[i].copied && !round->victims[i].error)
            round->victims[i].error = error;
}

/* --- taking out of memory --- */

/* Nobody can open the object between the look at `opens` and its new tier: both are under the
 * shard's lock. Who opens it right after is given what is registered still, the file in memory,
 * whose bytes are the same; it lives until that is closed. */
static void settle(struct round *round, struct victim *victim)
{
    struct store *store = round->store;
    struct table_shard *shard;
    struct object *object = table_lock_number(&store->table, victim->number, &shard);
    if (!object || victim->error) {
        abandon(store, victim);
        if (object)
            object->flags &= (uint16_t)~OBJECT_BUSY;
        if (object)
            table_unlock(shard);
        return;
    }
    if (!victim->copied)
        object->flags |= victim->encrypted ? OBJECT_ENCRYPTED : 0;
    object->flags |= OBJECT_ON_DISK;
    object->disk = (uint8_t)victim->dir;
    uint64_t memory = object_memory(object);
    bool goes = !object->opens && !round->all;
    if (!goes) {
        object->flags &= (uint16_t)~OBJECT_BUSY;
    } else { /* busy until its file has gone: it must not come back before */
        object->flags &= (uint16_t)~OBJECT_REOPENED;
        object->tier = TIER_DISK;
        object->pages = 0;
        object->verified_ns = 0;
        spill_count_tier(store, false);
    }
    uint32_t used = object->used;
    table_unlock(shard);
    if (!victim->copied)
        atomic_fetch_add(&store->spill.spilled_bytes, victim->size);
    if (goes) {
        data_remove(store, victim->file);
        atomic_fetch_sub(&store->memory_used, (int64_t)memory);
        spill_clear_busy(store, victim->number);
        object_note_change(store, victim->number);
    } else {
        spill_add(store, victim->number, used);
    }
}

/* One that could not be copied is tried after the others, which perhaps can. */
static void put_back(struct store *store, const struct victim *victim)
{
    struct table_shard *shard;
    struct object *object = table_lock_number(&store->table, victim->number, &shard);
    if (!object)
        return;
    uint32_t used = object->used = spill_now(store);
    table_unlock(shard);
    spill_add(store, victim->number, used);
}

static void note_failure(struct store *store, const struct victim *victim, uint64_t rooms)
{
    struct spill *spill = &store->spill;
    char id[MOB_ID_STRING_BYTES];
    struct object_info info;
    if (store_info(store, victim->number, &info))
        return; /* it is gone: so is its file */
    put_back(store, victim);
    if (victim->error == -ECANCELED)
        return;
    atomic_fetch_add(&spill->errors, 1);
    cleanup_lock pthread_mutex_t *lock = mob_lock(&spill->lock);
    if (!spill->full_until_ns)
        mob_log_warning("store: %s can't be spilled: %s", mob_id_format(&info.id, id),
                        strerror(-victim->error));
    if (spill->rooms == rooms) /* else there is room since, perhaps */
        spill->full_until_ns = mob_monotonic_ns() + RETRY_NS;
}

/* True: something went. */
static bool finish(struct round *round)
{
    bool any = false;
    for (size_t i = 0; i < round->count; i++) {
        struct victim *victim = &round->victims[i];
        errint_t error = victim->error;
        settle(round, victim);
        if (error)
            note_failure(round->store, victim, round->rooms);
        any = any || !error;
        mob_cleanup_fd(&victim->copy.from);
        mob_cleanup_fd(&victim->copy.to);
        free(victim->sums);
    }
    spill_settled(round->store);
    objects_settle(round->store);
    return any;
}

static bool run_round(struct round *round)
{
    if (!round->count)
        return false;
    copy_all(round);
    note_all(round);
    return finish(round);
}

/* --- the thread --- */

static bool disk_may_have_room(struct store *store, uint64_t *rooms)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->spill.lock);
    *rooms = store->spill.rooms;
    return store->spill.full_until_ns <= mob_monotonic_ns();
}

bool spill_is_stopping(struct store *store)
{
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->spill.lock);
    return store->spill.stop;
}

/* What is to go next: pinned objects last. If none of them fits on disk, one is taken nevertheless,
 * which then fails, for all to see. */
static void pick_some(struct round *round, uint64_t bytes)
{
    round->room = disk_largest_room(&round->store->disk);
    pick(round, bytes, false);
    if (!round->count)
        pick(round, bytes, true);
    if (round->count)
        return;
    round->room = UINT64_MAX;
    pick(round, 1, true);
}

/* Returns how long it has searched in vain at the end. Before store_collect() who has an object
 * open since the last server is not counted yet: what is open must not go, its next open would get
 * another file than those that live on. */
static uint64_t evict(struct store *store)
{
    if (!atomic_load(&store->collecting))
        return 0;
    uint64_t high = spill_mark(store, SPILL_HIGH_WATERMARK),
             low = spill_mark(store, SPILL_LOW_WATERMARK);
    uint64_t used = spill_memory_used(store);
    if (used <= high)
        return 0;
    uint64_t rooms;
    while (used > low && !spill_is_stopping(store) && disk_may_have_room(store, &rooms)) {
        struct round round = {.store = store, .engine = &store->spill.evictor_io, .rooms = rooms};
        uint64_t bytes = used - low < ROUND_BYTES ? used - low : ROUND_BYTES;
        uint64_t begin_ns = mob_monotonic_ns();
        pick_some(&round, bytes);
        if (!round.count)
            return mob_monotonic_ns() - begin_ns;
        if (!run_round(&round))
            return 0;
        used = spill_memory_used(store);
    }
    return 0;
}

/* Milliseconds until the next look; 0: when somebody says so. */
static unsigned next_look(struct store *store, uint64_t searched_ns)
{
    uint64_t rest_ms = searched_ns / (1000000 / SEARCH_SHARE);
    uint64_t used = spill_memory_used(store), high = grow_mark(store);
    if (used > spill_mark(store, SPILL_HIGH_WATERMARK))
        return rest_ms < 10     ? 10
               : rest_ms < 1000 ? (unsigned)rest_ms
                                : 1000; /* nothing can go now: all is open, or the disk is full */
    store->spill.idle_looks = atomic_load(&store->staged) ? 0 : store->spill.idle_looks + 1;
    if (store->spill.idle_looks > IDLE_LOOKS) {
        store->spill.idle_looks = 0;
        return 0;
    }
    uint64_t pause = used > high ? 0 : (high - used) / 4 / FASTEST_BYTES_PER_MS;
    return pause < 1 ? 1 : pause > LONGEST_PAUSE_MS ? LONGEST_PAUSE_MS : (unsigned)pause;
}

/* Before it is needed, so that memory never waits for it; and status can say how it works. */
static void make_engine(struct store *store)
{
    if (spill_engine(store, &store->spill.evictor_io))
        spill_describe(store);
}

static void *evictor_main(void *argument)
{
    struct store *store = argument;
    struct spill *spill = &store->spill;
    spill_hurry(-5);
    pthread_mutex_lock(&spill->lock);
    while (!spill->stop) {
        pthread_mutex_unlock(&spill->lock);
        grow_look(store);
        prune(store);
        uint64_t searched_ns = evict(store);
        grow_look(store);
        unsigned pause_ms = next_look(store, searched_ns);
        pthread_mutex_lock(&spill->lock);
        if (spill->stop)
            break;
        if (pause_ms) { /* the first one lasts until the server has started */
            struct timespec until;
            clock_gettime(CLOCK_MONOTONIC, &until);
            until.tv_nsec += (long)pause_ms * 1000000;
            until.tv_sec += until.tv_nsec / 1000000000;
            until.tv_nsec %= 1000000000;
            pthread_cond_timedwait(&spill->evictor_wake, &spill->lock, &until);
            if (!spill->evictor_io) {
                pthread_mutex_unlock(&spill->lock);
                make_engine(store);
                pthread_mutex_lock(&spill->lock);
            }
            continue;
        }
        /* Who takes memory after this sees that nobody is awake; who did before is seen here. */
        atomic_store(&spill->evictor_awake, false);
        if (!atomic_load(&store->staged) &&
            spill_memory_used(store) <= spill_mark(store, SPILL_HIGH_WATERMARK))
            while (!spill->stop && !atomic_load(&spill->evictor_awake))
                pthread_cond_wait(&spill->evictor_wake, &spill->lock);
        atomic_store(&spill->evictor_awake, true);
    }
    pthread_mutex_unlock(&spill->lock);
    return NULL;
}

errint_t evictor_start(struct store *store)
{
    struct spill *spill = &store->spill;
    atomic_store(&spill->evictor_awake, true);
    int code = pthread_create(&spill->evictor, NULL, evictor_main, store);
    spill->evictor_runs = !code;
    if (!code)
        pthread_setname_np(spill->evictor, "evictor");
    return -code;
}

/* --- everything --- */

struct listed {
    uint64_t numbers[ROUND_OBJECTS];
    size_t count;
};

static bool note_memory_only(void *argument, const struct object *object, uint64_t next)
{
    struct listed *listed = argument;
    (void)next;
    if (object->tier == TIER_MEMORY && object->state == OBJECT_READY &&
        !(object->flags & (OBJECT_ON_DISK | OBJECT_BUSY)))
        listed->numbers[listed->count++] = object->number;
    return listed->count < ROUND_OBJECTS;
}

static bool note_copied(void *argument, const struct object *object, uint64_t next)
{
    struct listed *listed = argument;
    (void)next;
    if (object->tier == TIER_MEMORY && object->flags & OBJECT_ON_DISK)
        listed->numbers[listed->count++] = object->file;
    return listed->count < ROUND_OBJECTS;
}

/* The table still says that they are in memory; it is of no use any more. */
static void drop_memory(struct store *store)
{
    uint64_t cursor = 0;
    struct listed listed;
    do {
        listed.count = 0;
        table_walk(&store->table, &cursor, note_copied, &listed);
        for (size_t i = 0; i < listed.count; i++)
            data_remove(store, listed.numbers[i]);
    } while (listed.count);
}

/* Copies those of them that are in memory only; each that can be, whatever becomes of the others.
 */
static errint_t copy_listed(struct store *store, const struct listed *listed,
                            struct spill_io **engine)
{
    struct round round = {.store = store, .room = UINT64_MAX, .all = true, .engine = engine};
    errint_t error = 0;
    for (size_t i = 0; i < listed->count; i++) {
        uint32_t used = 0;
        choose(&round, listed->numbers[i], true, &used);
    }
    run_round(&round);
    for (size_t i = 0; i < round.count && !error; i++)
        error = round.victims[i].error;
    return error;
}

static errint_t copy_everything(struct store *store, struct spill_io **engine)
{
    uint64_t cursor = 0;
    struct listed listed;
    errint_t error = 0; /* the first */
    do {
        listed.count = 0;
        table_walk(&store->table, &cursor, note_memory_only, &listed);
        errint_t one = copy_listed(store, &listed, engine);
        error = error ? error : one;
    } while (listed.count);
    return error;
}

errint_t spill_all(struct store *store)
{
    errint_t error = copy_everything(store, &store->spill.evictor_io);
    drop_memory(store);
    return error;
}

errint_t spill_copy(struct store *store, uint64_t number)
{
    struct listed listed = {.numbers = {number}, .count = 1};
    return copy_listed(store, &listed, &store->spill.syncer_io);
}

errint_t spill_copy_all(struct store *store)
{
    return copy_everything(store, &store->spill.syncer_io);
}
