/* Recovery: what a dead server left, taken up by the next.
 *
 * Objects first, then names and lists of IDs, which give the objects' links; then staged files;
 * then data files that nothing names are swept. A link to an object that isn't there may be to one
 * that a job makes again (pending and failed objects are not on disk): such links are noted by ID,
 * and those left at store_collect() are removed. */
#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "core/store/recover_internal.h"

/* --- data files that are there --- */

static int compare_numbers(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

static errint_t add_file(struct data_files *files, uint64_t file)
{
    if (files->count == files->capacity) {
        size_t capacity = files->capacity ? files->capacity * 2 : 256;
        uint64_t *grown = realloc(files->files, capacity * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        files->files = grown;
        files->capacity = capacity;
    }
    files->files[files->count++] = file;
    return 0;
}

static errint_t scan_files(struct store *store, struct data_files *files)
{
    int fd = openat(store->data_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir)
        return -errno;
    errint_t error = 0;
    const struct dirent *entry;
    unlinkat(store->data_fd, SPILL_RESTORE_NAME, 0);
    while (!error && (entry = readdir(dir))) {
        uint64_t file;
        if (data_name_parse(entry->d_name, &file))
            error = add_file(files, file);
        else if (entry->d_name[0] != '.')
            mob_log_warning("store: data/%s is not mine; it is left alone", entry->d_name);
    }
    closedir(dir);
    return error;
}

/* False: it isn't there, or is somebody else's already. */
static bool name_file(struct data_files *files, uint64_t file)
{
    const uint64_t *found =
        files->count ? bsearch(&file, files->files, files->count, sizeof file, compare_numbers)
                     : NULL;
    if (!found || files->named[found - files->files])
        return false;
    files->named[found - files->files] = true;
    return true;
}

errint_t recover_memory_file(struct recovery *it, uint64_t file)
{
    struct data_files *files = &it->files;
    bool *named = realloc(files->named, (files->count + 2) * sizeof *named);
    if (!named)
        return -ENOMEM;
    files->named = named;
    named[files->count] = false;
    return add_file(files, file);
}

bool recover_disk_file(struct recovery *it, uint64_t file, unsigned *dir)
{
    for (*dir = 0; *dir < DISK_DIRS; ++*dir)
        if (name_file(&it->disk_files, file << 8 | *dir))
            return true;
    return false;
}

static errint_t add_disk_file(void *argument, uint64_t file, unsigned dir)
{
    return add_file(argument, file << 8 | dir);
}

static errint_t sort_files(struct data_files *files)
{
    if (files->count)
        qsort(files->files, files->count, sizeof *files->files, compare_numbers);
    files->named = calloc(files->count + 1, sizeof *files->named);
    return files->named ? 0 : -ENOMEM;
}

static errint_t scan_disk(struct store *store, struct data_files *files)
{
    errint_t error = disk_each_file(&store->disk, add_disk_file, files);
    return error ? error : sort_files(files);
}

static errint_t add_lost(struct recovery *it, const struct object *object)
{
    if (it->lost_count == it->lost_capacity) {
        size_t capacity = it->lost_capacity ? it->lost_capacity * 2 : 64;
        struct mob_id *lost = realloc(it->lost, capacity * sizeof *lost);
        if (lost)
            it->lost = lost;
        uint64_t *numbers = realloc(it->lost_numbers, capacity * sizeof *numbers);
        if (numbers)
            it->lost_numbers = numbers;
        uint64_t *files = realloc(it->lost_files, capacity * sizeof *files);
        if (files)
            it->lost_files = files;
        if (!lost || !numbers || !files)
            return -ENOMEM;
        it->lost_capacity = capacity;
    }
    it->lost_numbers[it->lost_count] = object->number;
    it->lost_files[it->lost_count] = object->file;
    it->lost[it->lost_count++] = object->id;
    return 0;
}

/* --- objects --- */

static uint32_t count_pages(struct store *store, uint64_t file)
{
    char name[DATA_NAME_BYTES];
    struct stat info;
    if (fstatat(store->data_fd, data_name(file, name), &info, AT_SYMLINK_NOFOLLOW) < 0)
        return 0;
    return (uint32_t)(info.st_blocks / (STORE_PAGE_BYTES / 512));
}

/* Where its bytes are: in memory, on disk, or both. False: nowhere. */
static bool find_files(struct recovery *it, struct object *object, bool on_disk)
{
    unsigned dir;
    bool in_memory = name_file(&it->files, object->file);
    /* What was written on disk and has no checksums yet may be anything after a crash. */
    if (!it->store->trust.memory && !fetch_has_sums(it->store, object->file, object->size))
        on_disk = false;
    if (on_disk && recover_disk_file(it, object->file, &dir)) {
        object->flags |= OBJECT_ON_DISK | OBJECT_DURABLE;
        object->disk = (uint8_t)dir;
    }
    if (in_memory)
        object->pages = count_pages(it->store, object->file);
    else
        object->tier = TIER_DISK;
    return in_memory || object->flags & OBJECT_ON_DISK;
}

static errint_t load_object(struct recovery *it, const MDB_val *key, const MDB_val *value)
{
    struct store *store = it->store;
    struct object_record record;
    const void *content;
    struct object object = {.state = OBJECT_READY};
    if (!object_record_decode(key, value, &object.number, &record, &content))
        return 0;
    object.size = record.size;
    object.mtime_ns = record.mtime_ns;
    object.file = record.file;
    object.uid = record.uid;
    object.gid = record.gid;
    object.mode = (uint16_t)record.mode;
    object.tier = record.tier;
    object.flags = (uint16_t)((record.flags & RECORD_HAS_REFS ? OBJECT_HAS_REFS : 0) |
                              (record.flags & RECORD_HAS_XATTRS ? OBJECT_HAS_XATTRS : 0) |
                              (record.flags & RECORD_EMBEDDED ? OBJECT_EMBEDDED : 0) |
                              (record.flags & RECORD_ENCRYPTED ? OBJECT_ENCRYPTED : 0));
    memcpy(object.id.bytes, record.id, MOB_ID_BYTES);
    if (object.number > it->highest)
        it->highest = object.number;
    if (object.tier == TIER_MEMORY && !find_files(it, &object, record.flags & RECORD_ON_DISK)) {
        it->lost_on_disk += record.flags & RECORD_ON_DISK ? 1 : 0;
        return add_lost(it, &object);
    }
    errint_t error = table_insert(&store->table, &object);
    if (error == -EEXIST) {
        mob_log_error("store: object %llu has another's ID; it is left out",
                      (unsigned long long)object.number);
        return 0;
    }
    if (!error) {
        store_count_object(store, &object, 1);
        atomic_fetch_add(&store->memory_used, (int64_t)object_memory(&object));
        if (object.flags & OBJECT_ON_DISK)
            disk_count(&store->disk,
                       (int64_t)object_disk_bytes(object.size, object.flags & OBJECT_ENCRYPTED));
        if (object.tier == TIER_MEMORY)
            spill_add(store, object.number, object.used);
    }
    return error;
}

/* Those that are not damaged. */
/* A page of LMDB whose header is damaged may hide entries; the table knows how many it has. What is
 * missing or damaged is in the journal, if there is one; else what is left is taken. */
static errint_t check_table(struct store *store, MDB_txn *txn, enum meta_table table, size_t walked,
                            size_t damaged)
{
    MDB_stat stat;
    int code = mdb_stat(txn, store->meta.tables[table], &stat);
    if (code)
        return meta_error(code, "walk");
    if (stat.ms_entries != walked)
        mob_log_error("store: %s: %zu entries are there, of %zu", meta_table_name(table), walked,
                      stat.ms_entries);
    if (!store->has_spare_meta || (stat.ms_entries == walked && !damaged))
        return 0;
    meta_note_damage();
    return -EIO;
}

errint_t recover_walk(struct store *store, enum meta_table table, void *argument,
                      errint_t (*each)(void *argument, const MDB_val *key, const MDB_val *value))
{
    struct meta_reader *reader;
    MDB_cursor *cursor;
    MDB_val key, value;
    size_t walked = 0, damaged = 0;
    errint_t error = meta_read_begin(&store->meta, &reader);
    if (error)
        return error;
    int code = mdb_cursor_open(reader->txn, store->meta.tables[table], &cursor);
    if (!code) {
        code = mdb_cursor_get(cursor, &key, &value, MDB_FIRST);
        for (; !code && !error; code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) {
            if (meta_unseal(table, &key, &value))
                error = each(argument, &key, &value);
            else
                damaged++;
            walked++;
        }
        mdb_cursor_close(cursor);
    }
    if (!error)
        error = code == MDB_NOTFOUND ? check_table(store, reader->txn, table, walked, damaged)
                                     : meta_error(code, "walk");
    meta_read_end(reader);
    return error;
}

static errint_t each_object(void *argument, const MDB_val *key, const MDB_val *value)
{
    return load_object(argument, key, value);
}

static errint_t each_sum(void *argument, const MDB_val *key, const MDB_val *value)
{
    struct recovery *it = argument;
    struct table_shard *shard;
    (void)value;
    if (key->mv_size != 8)
        return 0;
    struct object *object =
        table_lock_number(&it->store->table, meta_load_be(key->mv_data), &shard);
    if (object) {
        object->flags |= OBJECT_HAS_SUM;
        table_unlock(shard);
    }
    return 0;
}

/* --- staged files --- */

/* What LMDB says about the name of a staged file: its commit may have been carried out just before
 * the server died, or a rename over another name not quite. */
static errint_t settle_name(struct recovery *it, struct staged *staged)
{
    struct store *store = it->store;
    struct meta_reader *reader;
    struct name_place place = {
        .parent = staged->parent, .name = staged->name, .name_bytes = staged->name_bytes};
    unsigned taken = 0;
    place.hash = name_hash(store, staged->name, staged->name_bytes);
    errint_t error = meta_read_begin(&store->meta, &reader);
    if (error)
        return error;
    error = name_look_stored(reader->names, &place, &taken);
    meta_read_end(reader);
    if (error || !place.exists)
        return error;
    if (place.record.staged == staged->number) {
        staged->committed = true;
        staged->id = place.record.target;
        staged->object_number = place.record.number;
        return 0;
    }
    if (place.record.type == NAME_DIRECTORY) {
        staged->unlinked = true;
        return 0;
    }
    error = name_delete_alone(store, &place);
    if (error)
        return error;
    atomic_fetch_sub(&store->names, 1);
    directory_count(store, staged->parent, -1, store_wall_ns(store));
    if (place.record.type == NAME_OBJECT)
        object_unlink(store, &place.record.target);
    return 0;
}

static struct staged *from_record(struct store *store, const struct staged_record *record,
                                  uint32_t slot)
{
    struct staged *staged = staged_new(record->name, record->name_bytes);
    if (!staged)
        return NULL;
    staged->store = store;
    staged->number = record->number;
    staged->root = record->root;
    staged->data.file = record->file;
    staged->data.encrypted = record->flags & RECORD_DATA_ENCRYPTED;
    staged->request = record->request;
    staged->parent = record->parent;
    staged->key = record->key;
    staged->mode = record->mode & 07777;
    staged->uid = record->uid;
    staged->gid = record->gid;
    staged->slot = slot;
    staged->version = record->version;
    staged->unlinked = record->flags & RECORD_UNLINKED;
    staged->committed = record->flags & RECORD_COMMITTED;
    staged->closed = record->flags & RECORD_CLOSED;
    staged->mediated = record->flags & RECORD_MEDIATED;
    staged->object_number = record->object_number;
    memcpy(staged->id.bytes, record->id, MOB_ID_BYTES);
    return staged;
}

/* Whether its data file is its object's by now. */
static bool object_has_file(struct store *store, const struct staged *staged)
{
    struct object_info info;
    return staged->committed && store_info(store, staged->object_number, &info) == 0 &&
           info.file == staged->data.file;
}

static bool find_data(struct recovery *it, struct data_file *data)
{
    unsigned dir;
    if (name_file(&it->files, data->file))
        return true;
    if (!recover_disk_file(it, data->file, &dir))
        return false;
    data->dir = (uint8_t)dir;
    return true;
}

/* 1: what it had on disk is gone. */
static errint_t adopt_growth(struct recovery *it, struct staged *staged,
                             const struct staged_record *record)
{
    struct store *store = it->store;
    struct object_info object;
    unsigned dir = 0;
    if (!record->grown_file)
        return 0;
    if (record->grown_file > it->highest)
        it->highest = record->grown_file;
    bool objects = staged->committed && store_info(store, staged->object_number, &object) == 0 &&
                   object.file == record->grown_file;
    if (!objects)
        return recover_disk_file(it, record->grown_file, &dir)
                   ? grow_adopt(store, staged, record, dir)
                   : 1;
    int fd = disk_find_file(&store->disk, record->grown_file, O_RDONLY, &dir);
    if (fd < 0)
        return 1;
    close(fd);
    errint_t error = grow_adopt(store, staged, record, dir);
    disk_count(&store->disk, -(int64_t)staged->grown_bytes);
    staged->grown.file = staged->grown_bytes = 0; /* the object's */
    return error;
}

/* Its data file, or the object's by now, which may have come to disk since. */
static int open_staged(struct store *store, struct staged *staged)
{
    int flags = store->passthrough ? O_RDONLY : O_RDWR;
    unsigned dir;
    int fd = data_open_at(store, staged->data.dir, staged->data.file, flags);
    if (fd == -ENOENT && !staged->keeps_file) {
        fd = disk_find_file(&store->disk, staged->data.file, flags, &dir);
        staged->data.dir = fd < 0 ? DISK_NO_DIR : (uint8_t)dir;
    }
    return fd;
}

errint_t recover_adopt(struct recovery *it, struct staged *staged,
                       const struct staged_record *record)
{
    struct store *store = it->store;
    errint_t error = 0;
    const struct directory *parent = directory_get(store, staged->parent);
    if (!parent && !staged->committed)
        staged->unlinked = true;
    if (!staged->committed && !staged->unlinked)
        error = settle_name(it, staged);
    if (error)
        return error;
    staged->keeps_file = !object_has_file(store, staged);
    if (staged->keeps_file && !find_data(it, &staged->data))
        return 1;
    staged->data.fd = open_staged(store, staged);
    if (staged->data.fd < 0)
        return 1;
    error = adopt_growth(it, staged, record);
    if (error)
        return error;
    struct staged *rival = staged->unlinked || staged->committed
                               ? NULL
                               : staged_at(store, staged->parent, staged->key);
    if (rival && rival->version > staged->version) {
        staged->unlinked = true;
    } else if (rival) {
        staged_unlink_locked(store, rival);
    }
    staged->named = !staged->unlinked && !staged->committed;
    if (!staged->committed)
        error = staged_xattrs_load(store, staged);
    if (error)
        return error;
    staged_insert(store, staged);
    if (staged->named)
        directory_count(store, staged->parent, 1, store_wall_ns(store));
    staged_settle(store, staged);
    return records_write(&store->records, staged);
}

static errint_t each_record(void *argument, const struct staged_record *record, uint32_t slot)
{
    struct recovery *it = argument;
    struct staged *staged = from_record(it->store, record, slot);
    if (!staged)
        return -ENOMEM;
    if (record->number > it->highest)
        it->highest = record->number;
    if (record->file > it->highest)
        it->highest = record->file;
    errint_t error = recover_adopt(it, staged, record);
    if (error != 1) {
        if (error)
            staged_free(staged);
        return error;
    }
    if (!staged->committed)
        mob_log_error("store: lost: %.*s, which was being written", staged->name_bytes,
                      staged->name);
    records_erase(&it->store->records, staged);
    grow_end(it->store, staged);
    staged_free(staged);
    return 0;
}

/* --- is a spill directory missing? --- */

static bool is_there(const struct recovery *it, uint64_t file)
{
    const struct data_files *lists[] = {&it->files, &it->disk_files};
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(lists); i++)
        for (uint64_t dir = 0; dir < (i ? DISK_DIRS : 1); dir++) {
            uint64_t sought = i ? file << 8 | dir : file;
            if (lists[i]->count &&
                bsearch(&sought, lists[i]->files, lists[i]->count, sizeof sought, compare_numbers))
                return true;
        }
    return false;
}

static errint_t count_unfinished(void *argument, const struct staged_record *record, uint32_t slot)
{
    struct recovery *it = argument;
    (void)slot;
    if (!(record->flags & RECORD_COMMITTED) &&
        (!is_there(it, record->file) || (record->grown_file && !is_there(it, record->grown_file))))
        it->lost_unfinished++;
    return 0;
}

/* Before anything is removed: what can't be found may be in a directory that isn't there now. */
static errint_t check_directories(struct recovery *it)
{
    errint_t error = records_recover(&it->store->records, count_unfinished, it);
    return error ? error
                 : disk_check_known(it->store, it->lost_on_disk, it->lost_unfinished, it->err);
}

/* --- cleaning up --- */

static size_t sweep_memory(struct recovery *it)
{
    const struct data_files *files = &it->files;
    size_t swept = 0;
    for (size_t i = 0; i < files->count; i++) {
        if (files->files[i] > it->highest)
            it->highest = files->files[i];
        if (files->named[i] || spare_adopt(it->store, files->files[i]))
            continue;
        data_remove(it->store, files->files[i]);
        swept++;
    }
    return swept;
}

/* After a kill the tables are ahead of what the disk has of the journal: after a power cut, a file
 * that they name no more may be named again. */
static bool journal_is_synced(struct store *store)
{
    return !store->has_spare_meta ||
           journal_sync(store->journal, journal_written(store->journal)) == 0;
}

static size_t sweep_disk(struct recovery *it)
{
    const struct data_files *files = &it->disk_files;
    struct store *store = it->store;
    size_t unnamed = 0;
    for (size_t i = 0; i < files->count; i++) {
        if (files->files[i] >> 8 > it->highest)
            it->highest = files->files[i] >> 8;
        unnamed += !files->named[i];
    }
    if (unnamed && !journal_is_synced(store)) {
        mob_log_warning("store: %zu files on disk that nothing names stay until the next start: "
                        "the journal can't be synced yet",
                        unnamed);
        return 0;
    }
    for (size_t i = 0; i < files->count; i++)
        if (!files->named[i])
            disk_remove_file(&store->disk, files->files[i] & 255, files->files[i] >> 8, 0);
    return unnamed;
}

static void sweep_files(struct recovery *it)
{
    size_t swept = sweep_memory(it) + sweep_disk(it);
    if (swept)
        mob_log_info("store: removed %zu data files that nothing names", swept);
}

struct number_list {
    struct store *store;
    uint64_t *numbers;
    size_t count, capacity;
};

/* Attributes of staged files that are no more. */
static errint_t each_xattr(void *argument, const MDB_val *key, const MDB_val *value)
{
    struct number_list *list = argument;
    struct object_info info;
    struct staged_info staged;
    (void)value;
    if (key->mv_size != 8)
        return 0;
    uint64_t number = meta_load_be(key->mv_data);
    if (store_info(list->store, number, &info) == 0 ||
        staged_info(list->store, number, &staged) == 0)
        return 0;
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? list->capacity * 2 : 64;
        uint64_t *numbers = realloc(list->numbers, capacity * sizeof *numbers);
        if (!numbers)
            return -ENOMEM;
        list->numbers = numbers;
        list->capacity = capacity;
    }
    list->numbers[list->count++] = number;
    return 0;
}

static errint_t remove_xattrs(struct store *store)
{
    struct number_list list = {.store = store};
    MDB_txn *txn;
    errint_t error = recover_walk(store, META_XATTRS, &list, each_xattr);
    if (!error && list.count) {
        error = meta_begin(&store->meta, 0, &txn);
        bool begun = !error;
        for (size_t i = 0; i < list.count && !error; i++)
            error = meta_delete_number(&store->meta, txn, META_XATTRS, list.numbers[i]);
        if (begun)
            error = meta_end(txn, error);
    }
    free(list.numbers);
    return error;
}

/* The counter is in LMDB ahead of every number in use; should it not be, it is moved. */
static errint_t check_numbers(struct recovery *it)
{
    struct store *store = it->store;
    if (it->highest < atomic_load(&store->next_number))
        return 0;
    mob_log_error("store: the number counter was behind; it is moved on");
    atomic_store(&store->next_number, it->highest + 1);
    atomic_store(&store->number_limit, it->highest + 1);
    return 0;
}

static errint_t each_entry(void *argument, const MDB_val *key, const MDB_val *value)
{
    (void)argument, (void)key, (void)value;
    return 0;
}

/* Those that are not read here otherwise, but for contents, whose objects' records know of them. */
static errint_t count_others(struct store *store)
{
    static const enum meta_table tables[] = {META_SYMLINKS, META_BLOCKS, META_XATTRS, META_JOBS};
    errint_t error = 0;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(tables) && !error; i++)
        error = recover_walk(store, tables[i], NULL, each_entry);
    return error;
}

/* The last steps: whoever is killed before begins again, with what is known of memory now. That it
 * was lost must not be forgotten before all that was synced is there again. */
static errint_t note_done(struct recovery *it)
{
    errint_t error = records_complete(&it->store->records, it->store->memory_fd);
    if (error)
        return error;
    return it->store->trust.memory ? 0 : trust_running(it->store->state_fd, it->err);
}

static errint_t recover(struct recovery *it)
{
    struct store *store = it->store;
    errint_t error = scan_files(store, &it->files);
    if (!error)
        error = sort_files(&it->files);
    if (!error)
        error = scan_disk(store, &it->disk_files);
    if (!error)
        error = recover_walk(store, META_OBJECTS, it, each_object);
    if (!error)
        error = check_directories(it);
    if (!error)
        error = recover_names(it);
    if (!error)
        error = recover_references(it);
    if (!error)
        error = recover_walk(store, META_SUMS, it, each_sum);
    if (!error)
        error = count_others(store);
    if (error)
        return error;
    /* Nothing was changed yet, and nothing is refused from here on. */
    error = records_recover(&store->records, each_record, it);
    if (!error)
        error = remove_xattrs(store);
    if (!error)
        error = recover_remove_lost(it);
    if (!error)
        error = recover_synced(it);
    if (error)
        return error;
    sweep_files(it);
    error = check_numbers(it);
    return error ? error : note_done(it);
}

errint_t store_recover(struct store *store, struct mob_error *err)
{
    struct recovery it = {.store = store, .err = err};
    errint_t error = recover(&it);
    free(it.files.files);
    free(it.files.named);
    free(it.disk_files.files);
    free(it.disk_files.named);
    free(it.lost);
    free(it.lost_numbers);
    free(it.lost_files);
    free(it.names);
    if (error && err && err->code == error && *err->message)
        return error;
    return error ? mob_error_set(err, error, "can't take up what is in %s: %s", store->state_dir,
                                 strerror(-error))
                 : 0;
}
