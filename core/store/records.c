/* Records as they are on disk, and the only functions that read them: everything is checked here.
 */
#include <string.h>
#include <sys/stat.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/base/log.h"
#include "core/store/cipher.h"
#include "core/store/meta.h"
#include "core/store/spill_io.h"
#include "core/store/store.h"

enum { RECORD_VERSION = 1 };

struct disk_name {
    uint8_t version, type, name_bytes, zero;
    uint32_t mode, uid, gid;
    uint64_t number, mtime_ns, set_ns, staged;
    uint8_t target[MOB_ID_BYTES];
    uint32_t zero2;
};

_Static_assert(sizeof(struct object_record) == 72, "no padding goes to disk");
_Static_assert(sizeof(struct disk_name) == 72, "no padding goes to disk");

static bool bad(const char *kind, uint64_t number)
{
    mob_log_error("store: the %s record %llu is damaged; it is left out", kind,
                  (unsigned long long)number);
    return false;
}

uint64_t object_content_sum(const void *content, size_t bytes)
{
    return XXH3_64bits(content, bytes);
}

bool object_record_decode(const MDB_val *key, const MDB_val *value, uint64_t *number,
                          struct object_record *record, const void **content)
{
    if (key->mv_size != 8)
        return bad("object", 0);
    *number = meta_load_be(key->mv_data);
    if (value->mv_size < sizeof *record)
        return bad("object", *number);
    memcpy(record, value->mv_data, sizeof *record);
    size_t content_bytes = value->mv_size - sizeof *record;
    bool embedded = record->flags & RECORD_EMBEDDED;
    bool ok =
        record->version == OBJECT_RECORD_VERSION && *number >= NAMES_FIRST_FREE_NUMBER &&
        *number < STORE_NUMBER_LIMIT && !(record->mode & ~(uint32_t)0555) &&
        record->size <= INT64_MAX && record->file < STORE_NUMBER_LIMIT &&
        content_bytes ==
            (embedded ? cipher_value_bytes(record->size, record->flags & RECORD_ENCRYPTED) : 0);
    if (record->tier == TIER_MEMORY)
        ok = ok && record->file && !embedded;
    else
        ok = ok && record->tier == TIER_INLINE && !record->file && record->size <= UINT32_MAX &&
             !(record->flags & RECORD_ON_DISK);
    if (!ok)
        return bad("object", *number);
    *content = embedded ? (const uint8_t *)value->mv_data + sizeof *record : NULL;
    return true;
}

errint_t blocks_put(struct meta *meta, MDB_txn *txn, uint64_t file, uint64_t size,
                    const struct spill_sum *sums)
{
    size_t sums_bytes = spill_block_count(size) * sizeof *sums;
    struct blocks_header header = {RECORD_VERSION, SPILL_BLOCK_BYTES, size};
    void *place;
    errint_t error = meta_reserve(meta, txn, META_BLOCKS, file, sizeof header + sums_bytes, &place);
    if (error)
        return error;
    memcpy(place, &header, sizeof header);
    memcpy((char *)place + sizeof header, sums, sums_bytes);
    meta_seal(META_BLOCKS, file, place, sizeof header + sums_bytes);
    return 0;
}

bool blocks_decode(uint64_t file, uint64_t size, const void *value, size_t value_bytes,
                   const struct spill_sum **sums)
{
    struct blocks_header header;
    if (value_bytes < sizeof header)
        return bad("checksum", file);
    memcpy(&header, value, sizeof header);
    uint64_t count = spill_block_count(size);
    if (header.version != RECORD_VERSION || header.block_bytes != SPILL_BLOCK_BYTES ||
        header.size != size || (value_bytes - sizeof header) / sizeof **sums != count ||
        (value_bytes - sizeof header) % sizeof **sums)
        return bad("checksum", file);
    *sums = (const void *)((const char *)value + sizeof header);
    return true;
}

struct name_key name_key_make(uint64_t parent, uint64_t key)
{
    struct name_key out;
    meta_store_be(out.parent, parent);
    meta_store_be(out.key, key);
    return out;
}

errint_t name_record_put(struct meta *meta, MDB_txn *txn, uint64_t parent, uint64_t key,
                         const struct name_record *record)
{
    struct disk_name disk = {
        .version = RECORD_VERSION,
        .type = (uint8_t)record->type,
        .name_bytes = (uint8_t)record->name_bytes,
        .mode = record->mode & 07777,
        .uid = record->uid,
        .gid = record->gid,
        .number = record->number,
        .mtime_ns = record->mtime_ns,
        .set_ns = record->set_ns,
        .staged = record->staged,
    };
    memcpy(disk.target, record->target.bytes, MOB_ID_BYTES);
    uint8_t buffer[sizeof disk + NAMES_LENGTH_LIMIT];
    memcpy(buffer, &disk, sizeof disk);
    memcpy(buffer + sizeof disk, record->name, record->name_bytes);
    struct name_key place = name_key_make(parent, key);
    return meta_put(meta, txn, META_NAMES, &place, sizeof place, buffer,
                    sizeof disk + record->name_bytes);
}

bool name_record_decode(const MDB_val *key, const MDB_val *value, uint64_t *parent,
                        uint64_t *position, struct name_record *record)
{
    struct disk_name disk;
    if (key->mv_size != sizeof(struct name_key))
        return bad("name", 0);
    *parent = meta_load_be(key->mv_data);
    *position = meta_load_be((const uint8_t *)key->mv_data + 8);
    if (value->mv_size < sizeof disk)
        return bad("name", *position);
    memcpy(&disk, value->mv_data, sizeof disk);
    const char *name = (const char *)value->mv_data + sizeof disk;
    if (disk.version != RECORD_VERSION || !disk.name_bytes || disk.number >= STORE_NUMBER_LIMIT ||
        disk.staged >= STORE_NUMBER_LIMIT || *parent >= STORE_NUMBER_LIMIT ||
        *position >= (UINT64_C(1) << NAME_HASH_BITS) + NAME_PROBES || disk.type > NAME_SYMLINK ||
        disk.type == NAME_STAGED || (!disk.number && disk.type != NAME_JOB) ||
        value->mv_size != sizeof disk + disk.name_bytes || memchr(name, '/', disk.name_bytes) ||
        memchr(name, '\0', disk.name_bytes))
        return bad("name", *position);
    *record = (struct name_record){
        .type = (enum name_type)disk.type,
        .mode = disk.mode & 07777,
        .uid = disk.uid,
        .gid = disk.gid,
        .number = disk.number,
        .mtime_ns = disk.mtime_ns,
        .set_ns = disk.set_ns,
        .staged = disk.staged,
        .name = name,
        .name_bytes = disk.name_bytes,
    };
    memcpy(record->target.bytes, disk.target, MOB_ID_BYTES);
    return true;
}

bool refs_decode(uint64_t number, const void *value, size_t value_bytes, const struct mob_id **ids,
                 size_t *count)
{
    if (value_bytes % MOB_ID_BYTES)
        return bad("reference", number);
    *ids = value;
    *count = value_bytes / MOB_ID_BYTES;
    return true;
}
