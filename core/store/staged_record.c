/* The records of staged files, in a file on memory_dir that is mapped shared: a killed server's
 * stores to it are there for its successor, and making a staged file costs no transaction.
 *
 * SIGKILL can hit between any two instructions. So a record is never changed: its next version is
 * written into a free slot, whose state word is stored last, and only then the old slot is freed.
 * What counts after a restart is the highest version of each number whose checksum is right. */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "core/store/store_internal.h"

/* The file has its name once recovery has put into it what was synced of staged files. */
#define RECORDS_NAME "staged"
#define RECORDS_NEW_NAME "staged.new"

enum { SLOT_FREE = 0, SLOT_VALID = 0x6d6f6231, BACKED_STEP = 512 };

static uint32_t checksum_of(const struct staged_record *record)
{
    const size_t start = offsetof(struct staged_record, number);
    return (uint32_t)XXH3_64bits((const char *)record + start, sizeof *record - start);
}

/* A page of the file that the filesystem has no room for would be SIGBUS when it is touched; it is
 * allocated beforehand, where that is an error. */
static errint_t back_more(struct staged_records *records)
{
    if (records->backed >= RECORD_SLOTS)
        return -ENOSPC;
    uint32_t backed = records->backed + BACKED_STEP;
    int code = fallocate(records->fd, 0, (off_t)records->backed * 512, (off_t)BACKED_STEP * 512);
    if (code < 0)
        return -errno;
    for (uint32_t slot = backed; slot-- > records->backed;)
        records->free[records->free_count++] = slot;
    records->backed = backed;
    return 0;
}

errint_t records_open(struct staged_records *records, int dir_fd, struct mob_error *err)
{
    records->fd = openat(dir_fd, RECORDS_NAME, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    records->anew = records->fd < 0 && errno == ENOENT;
    if (records->anew)
        records->fd = openat(dir_fd, RECORDS_NEW_NAME,
                             O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (records->fd < 0)
        return mob_error_set(err, -errno, "can't open the file of staged files: %s",
                             strerror(errno));
    const size_t bytes = (size_t)RECORD_SLOTS * sizeof(struct staged_record);
    struct stat info;
    records->free = malloc(RECORD_SLOTS * sizeof *records->free);
    if (!records->free)
        return -ENOMEM;
    if (fstat(records->fd, &info) < 0 || ftruncate(records->fd, (off_t)bytes) < 0)
        return mob_error_set(err, -errno, "can't size the file of staged files: %s",
                             strerror(errno));
    /* Slots that a dead server had backed are found by their blocks; holes read as free ones. */
    off_t data = lseek(records->fd, 0, SEEK_DATA), end = 0;
    while (data >= 0) {
        end = lseek(records->fd, data, SEEK_HOLE);
        data = lseek(records->fd, end, SEEK_DATA);
    }
    void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, records->fd, 0);
    if (map == MAP_FAILED)
        return mob_error_set(err, -errno, "can't map the file of staged files: %s",
                             strerror(errno));
    records->slots = map;
    /* Backed again from the start, so that no hole is left below. */
    records->backed = 0;
    records->free_count = 0;
    uint32_t used = (uint32_t)(((uint64_t)end / 512 + BACKED_STEP - 1) / BACKED_STEP * BACKED_STEP);
    errint_t error;
    do
        error = back_more(records);
    while (!error && records->backed < used);
    if (error)
        return mob_error_set(err, error, "no room for the file of staged files");
    return 0;
}

errint_t records_discard(int dir_fd)
{
    return unlinkat(dir_fd, RECORDS_NAME, 0) < 0 && errno != ENOENT ? -errno : 0;
}

errint_t records_complete(const struct staged_records *records, int dir_fd)
{
    if (!records->anew || renameat(dir_fd, RECORDS_NEW_NAME, dir_fd, RECORDS_NAME) == 0)
        return 0;
    return -errno;
}

void records_close(struct staged_records *records)
{
    if (records->slots)
        munmap(records->slots, (size_t)RECORD_SLOTS * sizeof(struct staged_record));
    free(records->free);
    if (records->fd >= 0)
        close(records->fd);
    memset(records, 0, sizeof *records);
    records->fd = -1;
}

static void slot_release(struct staged_records *records, uint32_t slot)
{
    atomic_store_explicit(&records->slots[slot].state, SLOT_FREE, memory_order_release);
    records->free[records->free_count++] = slot;
}

errint_t records_write(struct staged_records *records, struct staged *staged)
{
    if (!records->free_count) {
        errint_t error = back_more(records);
        if (error)
            return error;
    }
    uint32_t slot = records->free[--records->free_count];
    struct staged_record record = {
        .number = staged->number,
        .version = ++records->version,
        .parent = staged->parent,
        .key = staged->key,
        .root = staged->root,
        .file = staged->data.file,
        .request = staged->request,
        .object_number = staged->object_number,
        .mode = staged->mode,
        .uid = staged->uid,
        .gid = staged->gid,
        .flags = (uint8_t)((staged->unlinked ? RECORD_UNLINKED : 0) |
                           (staged->committed ? RECORD_COMMITTED : 0) |
                           (staged->closed ? RECORD_CLOSED : 0) |
                           (staged->data.encrypted ? RECORD_DATA_ENCRYPTED : 0) |
                           (staged->mediated ? RECORD_MEDIATED : 0)),
        .name_bytes = staged->name_bytes,
        .grown_file = staged->split ? staged->grown.file : 0,
        .grown_moved = staged->grown_state.moved,
        .grown_intent = staged->grown_state.intent,
        .grown_head_moved = staged->grown_state.head_moved,
        .grown_torn = staged->grown_state.torn,
        .grown_encrypted = staged->split && staged->grown.encrypted,
        .grown_alone = staged->split && staged->grown_alone,
        .grown_filled = staged->grown_state.filled,
        .grown_redo = staged->grown_state.redo,
    };
    memcpy(record.id, staged->id.bytes, sizeof record.id);
    memcpy(record.name, staged->name, staged->name_bytes);
    record.checksum = checksum_of(&record);
    struct staged_record *place = &records->slots[slot];
    memcpy((char *)place + sizeof place->state, (char *)&record + sizeof record.state,
           sizeof record - sizeof record.state);
    atomic_store_explicit(&place->state, SLOT_VALID, memory_order_release);
    if (staged->slot != RECORD_SLOTS)
        slot_release(records, staged->slot);
    staged->slot = slot;
    staged->version = record.version;
    return 0;
}

void records_erase(struct staged_records *records, struct staged *staged)
{
    if (staged->slot == RECORD_SLOTS)
        return;
    slot_release(records, staged->slot);
    staged->slot = RECORD_SLOTS;
}

static bool record_is_good(const struct staged_record *record)
{
    return record->checksum == checksum_of(record) && record->number >= NAMES_FIRST_FREE_NUMBER &&
           record->number < STORE_NUMBER_LIMIT && record->file >= NAMES_FIRST_FREE_NUMBER &&
           record->file < STORE_NUMBER_LIMIT && record->parent && record->name_bytes &&
           (record->root == NAMES_STAGING || record->root == NAMES_RUN) &&
           record->key < (UINT64_C(1) << NAME_HASH_BITS) + NAME_PROBES &&
           !memchr(record->name, '\0', record->name_bytes) &&
           !memchr(record->name, '/', record->name_bytes);
}

struct found {
    uint64_t number, version;
    uint32_t slot;
};

static int compare_found(const void *a, const void *b)
{
    const struct found *x = a, *y = b;
    if (x->number != y->number)
        return x->number < y->number ? -1 : 1;
    return x->version > y->version ? -1 : x->version < y->version;
}

errint_t records_recover(struct staged_records *records,
                         errint_t (*each)(void *argument, const struct staged_record *record,
                                          uint32_t slot),
                         void *argument)
{
    cleanup_free struct found *found = malloc((records->backed + 1) * sizeof *found);
    size_t count = 0;
    if (!found)
        return -ENOMEM;
    records->free_count = 0;
    for (uint32_t slot = records->backed; slot-- > 0;) {
        struct staged_record *record = &records->slots[slot];
        bool valid = atomic_load_explicit(&record->state, memory_order_acquire) == SLOT_VALID;
        if (!valid || !record_is_good(record)) {
            slot_release(records, slot);
            continue;
        }
        found[count++] = (struct found){record->number, record->version, slot};
        if (record->version > records->version)
            records->version = record->version;
    }
    qsort(found, count, sizeof *found, compare_found);
    errint_t error = 0;
    for (size_t i = 0; i < count && !error; i++) {
        if (i && found[i].number == found[i - 1].number)
            slot_release(records, found[i].slot);
        else
            error = each(argument, &records->slots[found[i].slot], found[i].slot);
    }
    return error;
}
