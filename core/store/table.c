/* The object table: slots in chunks that never move, found by number and by ID.
 *
 * A shard (chosen by number) has slots, their index by number, and the lock for both. The index by
 * ID has shards of its own, chosen by ID, whose lock comes first. An ID is in that index exactly
 * while its slot is in use, so a slot found there under the ID shard's lock has a constant number
 * and ID. Chunks double in size; with 256 shards each index is small, so that growing one takes
 * well under a millisecond. */
#include <malloc.h>
#include <string.h>

#include "core/store/store_internal.h"

#define INDEX_DELETED UINT32_MAX
#define TRIM_SLOTS 65536u /* some 8 MB */

static inline uint64_t id_hash(const struct mob_id *id)
{
    uint64_t random;
    memcpy(&random, id->bytes + MOB_ID_OWNER_BYTES, sizeof random);
    return hash_number(random ^ (uint64_t)mob_id_index(id) << 32);
}

static inline unsigned shard_of(uint64_t hash)
{
    return hash >> 56;
}

static struct object *slot_object(struct table_shard *shard, uint32_t slot)
{
    uint32_t unit = slot / TABLE_FIRST_CHUNK + 1;
    unsigned chunk = 31 - (unsigned)__builtin_clz(unit);
    uint32_t first = ((UINT32_C(1) << chunk) - 1) * TABLE_FIRST_CHUNK;
    struct object *objects = atomic_load_explicit(&shard->chunks[chunk], memory_order_acquire);
    return &objects[slot - first];
}

/* Handles: the shard in the low 8 bits, the slot above. */
static struct object *handle_object(struct table *table, uint32_t handle)
{
    return slot_object(&table->shards[handle & (TABLE_SHARDS - 1)], handle >> 8);
}

/* --- open-addressing indexes of handles --- */

static void index_place(struct table_index *index, uint32_t handle, uint64_t hash)
{
    uint32_t mask = index->capacity - 1, i = (uint32_t)hash & mask;
    while (index->slots[i] != 0 && index->slots[i] != INDEX_DELETED)
        i = (i + 1) & mask;
    if (index->slots[i] == 0)
        index->used++;
    index->slots[i] = handle + 1;
    index->count++;
}

static errint_t index_reserve(struct table *table, struct table_index *index,
                              uint64_t (*hash)(const struct object *object))
{
    if (index->used + 1 <= index->capacity - index->capacity / 4 && index->capacity)
        return 0;
    struct table_index grown = {.capacity = 32};
    while (index->count + 1 > grown.capacity / 2)
        grown.capacity *= 2;
    grown.slots = calloc(grown.capacity, sizeof *grown.slots);
    if (!grown.slots)
        return -ENOMEM;
    for (uint32_t i = 0; i < index->capacity; i++) {
        uint32_t entry = index->slots[i];
        if (entry != 0 && entry != INDEX_DELETED)
            index_place(&grown, entry - 1, hash(handle_object(table, entry - 1)));
    }
    free(index->slots);
    *index = grown;
    return 0;
}

static uint64_t object_id_hash(const struct object *object)
{
    return id_hash(&object->id);
}

static uint64_t object_number_hash(const struct object *object)
{
    return hash_number(object->number);
}

/* The position of an object in an index, or -1. `id` NULL: by number. */
static int64_t index_find(struct table *table, const struct table_index *index, uint64_t hash,
                          uint64_t number, const struct mob_id *id)
{
    if (!index->capacity)
        return -1;
    uint32_t mask = index->capacity - 1;
    for (uint32_t i = (uint32_t)hash & mask; index->slots[i] != 0; i = (i + 1) & mask) {
        if (index->slots[i] == INDEX_DELETED)
            continue;
        const struct object *object = handle_object(table, index->slots[i] - 1);
        if (id ? mob_id_equal(&object->id, id) : object->number == number)
            return i;
    }
    return -1;
}

static void index_delete(struct table_index *index, int64_t position)
{
    uint32_t mask = index->capacity - 1;
    if (index->slots[((uint32_t)position + 1) & mask] == 0) {
        index->slots[position] = 0;
        index->used--;
    } else {
        index->slots[position] = INDEX_DELETED;
    }
    index->count--;
}

/* --- slots --- */

static errint_t slot_take(struct table_shard *shard, uint32_t *out)
{
    if (shard->free_slot) {
        *out = shard->free_slot - 1;
        shard->free_slot = slot_object(shard, *out)->next_free;
        return 0;
    }
    uint32_t unit = shard->slot_count / TABLE_FIRST_CHUNK + 1;
    unsigned chunk = 31 - (unsigned)__builtin_clz(unit);
    if (chunk >= TABLE_CHUNKS || shard->slot_count >= (UINT32_C(1) << 24) - 2)
        return -ENOMEM;
    if (!atomic_load_explicit(&shard->chunks[chunk], memory_order_relaxed)) {
        struct object *objects = calloc((size_t)TABLE_FIRST_CHUNK << chunk, sizeof *objects);
        if (!objects)
            return -ENOMEM;
        atomic_store_explicit(&shard->chunks[chunk], objects, memory_order_release);
    }
    *out = shard->slot_count++;
    return 0;
}

static void slot_free(struct table_shard *shard, uint32_t slot)
{
    struct object *object = slot_object(shard, slot);
    memset(object, 0, sizeof *object);
    object->next_free = shard->free_slot;
    shard->free_slot = slot + 1;
}

/* --- giving memory back --- */

static void index_give_back(struct table_index *index)
{
    if (index->count || index->capacity <= TABLE_FIRST_CHUNK)
        return;
    free(index->slots);
    *index = (struct table_index){0};
}

/* Once a shard is empty no index leads to its slots. The first chunk stays, for who puts and frees
 * one object at a time. */
static void shard_give_back(struct table *table, struct table_shard *shard)
{
    if (shard->numbers.count || shard->slot_count <= TABLE_FIRST_CHUNK)
        return;
    atomic_fetch_add_explicit(&table->freed_slots, shard->slot_count, memory_order_relaxed);
    for (int chunk = 1; chunk < TABLE_CHUNKS; chunk++) {
        free(shard->chunks[chunk]);
        shard->chunks[chunk] = NULL;
    }
    shard->slot_count = shard->free_slot = 0;
    index_give_back(&shard->numbers);
}

void table_trim(struct table *table)
{
    if (atomic_load_explicit(&table->freed_slots, memory_order_relaxed) < TRIM_SLOTS)
        return;
    atomic_store_explicit(&table->freed_slots, 0, memory_order_relaxed);
    malloc_trim(0);
}

/* --- the table --- */

errint_t table_init(struct table *table)
{
    memset(table, 0, sizeof *table);
    for (int i = 0; i < TABLE_SHARDS; i++) {
        pthread_mutex_init(&table->shards[i].lock, NULL);
        pthread_mutex_init(&table->id_shards[i].lock, NULL);
    }
    return 0;
}

static void object_destroy(struct object *object)
{
    if (!(object->flags & OBJECT_USED))
        return;
    if (object->state == OBJECT_FAILED)
        free(object->failure);
    if (object->state != OBJECT_PENDING)
        return;
    struct waiter *waiter = object->waiters;
    while (waiter) {
        struct waiter *next = waiter->next;
        free(waiter);
        waiter = next;
    }
}

void table_destroy(struct table *table)
{
    for (int i = 0; i < TABLE_SHARDS; i++) {
        struct table_shard *shard = &table->shards[i];
        for (uint32_t slot = 0; slot < shard->slot_count; slot++)
            object_destroy(slot_object(shard, slot));
        for (int chunk = 0; chunk < TABLE_CHUNKS; chunk++)
            free(shard->chunks[chunk]);
        free(shard->numbers.slots);
        free(table->id_shards[i].ids.slots);
        pthread_mutex_destroy(&shard->lock);
        pthread_mutex_destroy(&table->id_shards[i].lock);
    }
}

static errint_t insert_locked(struct table *table, struct table_shard *shard, unsigned shard_index,
                              struct table_id_shard *id_shard, const struct object *object)
{
    uint64_t hash = hash_number(object->number), hash_of_id = id_hash(&object->id);
    if (index_find(table, &id_shard->ids, hash_of_id, 0, &object->id) >= 0 ||
        index_find(table, &shard->numbers, hash, object->number, NULL) >= 0)
        return -EEXIST;
    uint32_t slot;
    errint_t error = index_reserve(table, &id_shard->ids, object_id_hash);
    if (!error)
        error = index_reserve(table, &shard->numbers, object_number_hash);
    if (!error)
        error = slot_take(shard, &slot);
    if (error)
        return error;
    struct object *place = slot_object(shard, slot);
    *place = *object;
    place->flags |= OBJECT_USED;
    uint32_t handle = slot << 8 | shard_index;
    index_place(&shard->numbers, handle, hash);
    index_place(&id_shard->ids, handle, hash_of_id);
    return 0;
}

errint_t table_insert(struct table *table, const struct object *object)
{
    unsigned shard_index = shard_of(hash_number(object->number));
    struct table_shard *shard = &table->shards[shard_index];
    struct table_id_shard *id_shard = &table->id_shards[shard_of(id_hash(&object->id))];
    cleanup_lock pthread_mutex_t *id_lock = mob_lock(&id_shard->lock);
    cleanup_lock pthread_mutex_t *lock = mob_lock(&shard->lock);
    return insert_locked(table, shard, shard_index, id_shard, object);
}

struct object *table_lock_hidden(struct table *table, uint64_t number, struct table_shard **out)
{
    uint64_t hash = hash_number(number);
    struct table_shard *shard = &table->shards[shard_of(hash)];
    pthread_mutex_lock(&shard->lock);
    int64_t position = index_find(table, &shard->numbers, hash, number, NULL);
    if (position < 0) {
        pthread_mutex_unlock(&shard->lock);
        return NULL;
    }
    *out = shard;
    return handle_object(table, shard->numbers.slots[position] - 1);
}

struct object *table_lock_number(struct table *table, uint64_t number, struct table_shard **out)
{
    struct object *object = table_lock_hidden(table, number, out);
    if (object && object->flags & OBJECT_HIDDEN) {
        table_unlock(*out);
        return NULL;
    }
    return object;
}

struct object *table_lock_id_hidden(struct table *table, const struct mob_id *id,
                                    struct table_shard **out)
{
    uint64_t hash = id_hash(id);
    struct table_id_shard *id_shard = &table->id_shards[shard_of(hash)];
    cleanup_lock pthread_mutex_t *id_lock = mob_lock(&id_shard->lock);
    int64_t position = index_find(table, &id_shard->ids, hash, 0, id);
    if (position < 0)
        return NULL;
    uint32_t handle = id_shard->ids.slots[position] - 1;
    struct table_shard *shard = &table->shards[handle & (TABLE_SHARDS - 1)];
    pthread_mutex_lock(&shard->lock);
    *out = shard;
    return slot_object(shard, handle >> 8);
}

struct object *table_lock_id(struct table *table, const struct mob_id *id, struct table_shard **out)
{
    struct object *object = table_lock_id_hidden(table, id, out);
    if (object && object->flags & OBJECT_HIDDEN) {
        table_unlock(*out);
        return NULL;
    }
    return object;
}

void table_reveal(struct table *table, uint64_t number)
{
    struct table_shard *shard;
    struct object *object = table_lock_hidden(table, number, &shard);
    if (!object)
        return;
    object->flags &= (uint16_t)~OBJECT_HIDDEN;
    table_unlock(shard);
}

bool table_take(struct table *table, uint64_t number, bool unused_only, struct object *out)
{
    struct table_shard *shard;
    struct object *object = table_lock_hidden(table, number, &shard);
    if (!object)
        return false;
    struct mob_id id = object->id;
    table_unlock(shard);

    uint64_t hash_of_id = id_hash(&id), hash = hash_number(number);
    struct table_id_shard *id_shard = &table->id_shards[shard_of(hash_of_id)];
    cleanup_lock pthread_mutex_t *id_lock = mob_lock(&id_shard->lock);
    cleanup_lock pthread_mutex_t *lock = mob_lock(&shard->lock);
    int64_t position = index_find(table, &shard->numbers, hash, number, NULL);
    if (position < 0)
        return false;
    uint32_t handle = shard->numbers.slots[position] - 1;
    object = slot_object(shard, handle >> 8);
    if (unused_only && (object->links || object->opens || object->flags & OBJECT_HIDDEN))
        return false;
    *out = *object;
    index_delete(&shard->numbers, position);
    index_delete(&id_shard->ids, index_find(table, &id_shard->ids, hash_of_id, 0, &id));
    slot_free(shard, handle >> 8);
    shard_give_back(table, shard);
    index_give_back(&id_shard->ids);
    return true;
}

void table_walk(struct table *table, uint64_t *cursor,
                bool (*each)(void *argument, const struct object *object, uint64_t next),
                void *argument)
{
    /* A cursor is shard * 2^24 + slot, so that it goes up and fits in 32 bits. */
    for (uint64_t i = *cursor >> 24; i < TABLE_SHARDS; i++) {
        struct table_shard *shard = &table->shards[i];
        cleanup_lock pthread_mutex_t *lock = mob_lock(&shard->lock);
        for (uint32_t slot = *cursor & 0xffffff; slot < shard->slot_count; slot++) {
            const struct object *object = slot_object(shard, slot);
            *cursor = i << 24 | (slot + 1);
            if (!(object->flags & OBJECT_USED) || object->flags & OBJECT_HIDDEN)
                continue;
            if (!each(argument, object, *cursor))
                return;
        }
        *cursor = (i + 1) << 24;
    }
}
