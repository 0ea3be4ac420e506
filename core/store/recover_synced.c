/* Recovery of what fsync(2) had made durable of files that were being written: sync.h.
 *
 * Where the records of staged files are as they were, the staged file is there as well, or has
 * become an object, which is then settled. Where they are lost, as memory was, or was taken down
 * with files open, the note is all there is: it becomes a staged file again, which was closed, and
 * is committed as such. */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "core/store/recover_internal.h"

struct notes {
    struct recovery *it;
    uint64_t *numbers;
    size_t count, capacity;
};

static errint_t add_note(void *argument, const MDB_val *key, const MDB_val *value)
{
    struct notes *notes = argument;
    (void)value;
    if (key->mv_size != 8)
        return 0;
    if (notes->count == notes->capacity) {
        size_t capacity = notes->capacity ? 2 * notes->capacity : 64;
        uint64_t *numbers = realloc(notes->numbers, capacity * sizeof *numbers);
        if (!numbers)
            return -ENOMEM;
        notes->numbers = numbers;
        notes->capacity = capacity;
    }
    notes->numbers[notes->count++] = meta_load_be(key->mv_data);
    return 0;
}

/* A copy of the note, which `view` points into. -EBADMSG: it is damaged. */
static errint_t load_note(struct store *store, uint64_t number, char **copy,
                          struct synced_view *view)
{
    struct meta_reader *reader;
    const void *value;
    size_t bytes;
    errint_t error = meta_read_begin(&store->meta, &reader);
    if (error)
        return error;
    error = meta_get_number(&store->meta, reader->txn, META_SYNCED, number, &value, &bytes);
    if (!error && !(*copy = malloc(bytes + 1)))
        error = -ENOMEM;
    if (!error) {
        memcpy(*copy, value, bytes);
        error = synced_decode(number, *copy, bytes, view) ? 0 : -EBADMSG;
    }
    meta_read_end(reader);
    return error;
}

static errint_t delete_note(struct store *store, uint64_t number)
{
    MDB_txn *txn;
    errint_t error = meta_begin(&store->meta, 0, &txn);
    if (error)
        return error;
    error = meta_delete_number(&store->meta, txn, META_SYNCED, number);
    return meta_end(txn, error);
}

/* --- where memory is as it was --- */

static uint64_t disk_bytes(const struct synced_view *view)
{
    return object_disk_bytes(view->record.size, view->record.flags & SYNCED_ENCRYPTED);
}

static void count_copy(struct store *store, const struct synced_view *view)
{
    disk_count(&store->disk, (int64_t)disk_bytes(view));
}

static void give_to_staged(struct recovery *it, struct staged *staged,
                           const struct synced_view *view)
{
    unsigned dir = DISK_NO_DIR;
    uint64_t file = view->record.file;
    bool own = file && file != staged->data.file && recover_disk_file(it, file, &dir);
    staged->synced = (struct synced_copy){
        .any = true,
        .own = own,
        .dir = (uint8_t)dir,
        .file = file,
        .counted = disk_bytes(view),
        .note_bytes =
            file ? spill_block_count(view->record.size) * sizeof *view->sums
                 : cipher_value_bytes(view->record.size, view->record.flags & SYNCED_ENCRYPTED),
    };
    if (own)
        count_copy(it->store, view);
}

/* False: it has become no object that is there. */
static bool give_to_object(struct recovery *it, uint64_t number, const struct synced_view *view)
{
    struct object_info info;
    unsigned dir;
    if (!view->record.object || store_info(it->store, view->record.object, &info))
        return false;
    if (view->record.file && view->record.file != info.file &&
        recover_disk_file(it, view->record.file, &dir))
        count_copy(it->store, view);
    settler_add(it->store, number);
    return true;
}

/* --- where it is lost --- */

/* Its content, in a new file in memory. */
static errint_t make_data(struct store *store, uint64_t number, const struct synced_view *view,
                          struct data_file *data)
{
    const void *content = view->content;
    cleanup_free void *plain = NULL;
    errint_t error = 0;
    if (view->record.flags & SYNCED_ENCRYPTED) {
        content = plain = malloc(view->record.size + 1);
        if (!plain)
            return -ENOMEM;
        error = store->key ? cipher_decrypt_value(store->key, META_SYNCED, number, view->content,
                                                  view->record.size + CIPHER_VALUE_BYTES, plain)
                           : -EBADMSG;
        if (error)
            return error == -EBADMSG ? 1 : error;
    }
    error = data_take(store, false, data);
    if (error)
        return error;
    int fd = data_open(store, data->file, O_RDWR);
    error = fd < 0 ? fd : mob_pwrite_full(fd, content, view->record.size, 0);
    mob_cleanup_fd(&fd);
    return error;
}

/* The copy on disk, as long as it was then. */
static errint_t use_copy(struct recovery *it, const struct synced_view *view, struct staged *staged)
{
    unsigned dir;
    size_t count = spill_block_count(view->record.size);
    int fd = disk_find_file(&it->store->disk, view->record.file, O_RDWR, &dir);
    if (fd < 0)
        return fd == -ENOENT ? 1 : fd;
    struct stat info;
    bool encrypted = view->record.flags & SYNCED_ENCRYPTED;
    uint64_t bytes = encrypted ? cipher_file_bytes(view->record.size) : view->record.size;
    errint_t error = fstat(fd, &info) < 0 ? -errno : 0;
    if (!error && (uint64_t)info.st_size > bytes && ftruncate(fd, (off_t)bytes) < 0)
        error = -errno;
    close(fd);
    if (error)
        return error;
    staged->sums = malloc((count + 1) * sizeof *staged->sums);
    if (!staged->sums)
        return -ENOMEM;
    memcpy(staged->sums, view->sums, count * sizeof *staged->sums);
    staged->data.file = view->record.file;
    staged->data.encrypted = encrypted;
    return (uint64_t)info.st_size < bytes ? 1 : 0;
}

static errint_t put_xattrs(struct store *store, uint64_t number, const struct synced_view *view)
{
    MDB_txn *txn;
    if (!view->record.xattrs_bytes)
        return 0;
    errint_t error = meta_begin(&store->meta, view->record.xattrs_bytes, &txn);
    if (error)
        return error;
    error = meta_put_number(&store->meta, txn, META_XATTRS, number, view->xattrs,
                            view->record.xattrs_bytes);
    return meta_end(txn, error);
}

/* The directory it was in, or the root if that is no more. */
static errint_t set_place(struct store *store, const struct synced_view *view,
                          struct staged *staged)
{
    struct meta_reader *reader;
    struct name_place place;
    const struct directory *parent = directory_get(store, view->record.parent);
    bool there = parent && parent->known && directory_root(store, parent) == NAMES_STAGING;
    staged->root = NAMES_STAGING;
    staged->parent = there ? view->record.parent : NAMES_STAGING;
    errint_t error = meta_read_begin(&store->meta, &reader);
    if (error)
        return error;
    error = name_look(store, reader->names, staged->parent, staged->name, &place);
    meta_read_end(reader);
    if (error == -EINVAL || error == -ENAMETOOLONG)
        return 1; /* no name that we gave */
    if (!error && (place.full || (place.exists && place.staged)))
        return 1;
    staged->key = place.key;
    return error;
}

/* 1: there is nothing to make it from. */
static errint_t make_staged(struct recovery *it, uint64_t number, const struct synced_view *view)
{
    struct store *store = it->store;
    static const struct staged_record nothing;
    struct staged *staged = staged_new(view->name, view->record.name_bytes);
    if (!staged)
        return -ENOMEM;
    staged->store = store;
    staged->number = number;
    staged->mode = view->record.mode & 07777;
    staged->uid = view->record.uid;
    staged->gid = view->record.gid;
    staged->closed = true;
    staged->synced.any = true;
    errint_t error = set_place(store, view, staged);
    if (!error)
        error = view->record.file ? use_copy(it, view, staged)
                                  : make_data(store, number, view, &staged->data);
    mob_cleanup_fd(&staged->data.fd);
    if (!error)
        error = put_xattrs(store, number, view);
    if (!error && !view->record.file)
        error = recover_memory_file(it, staged->data.file);
    if (!error)
        error = recover_adopt(it, staged, &nothing);
    if (error)
        staged_free(staged);
    return error;
}

/* --- all --- */

static errint_t recover_note(struct recovery *it, uint64_t number)
{
    struct store *store = it->store;
    struct synced_view view;
    cleanup_free char *copy = NULL;
    errint_t error = load_note(store, number, &copy, &view);
    if (error)
        return error == -EBADMSG || error == -EIO ? delete_note(store, number) : error;
    if (number > it->highest)
        it->highest = number;
    if (view.record.file > it->highest)
        it->highest = view.record.file;
    struct staged *staged = staged_get(store, number);
    bool live = staged && !staged->committed;
    if (live)
        give_to_staged(it, staged, &view);
    if (staged)
        staged_put(store, staged);
    if (live || give_to_object(it, number, &view))
        return 0;
    error = store->records.anew ? make_staged(it, number, &view) : 1;
    if (!error)
        mob_log_info("recovered: %.*s, as it was when it was synced", view.record.name_bytes,
                     view.name);
    if (error == 1 && store->records.anew)
        mob_log_error("lost: %.*s, which was synced", view.record.name_bytes, view.name);
    return error == 1 ? delete_note(store, number) : error;
}

errint_t recover_synced(struct recovery *it)
{
    struct notes notes = {.it = it};
    errint_t error = recover_walk(it->store, META_SYNCED, &notes, add_note);
    for (size_t i = 0; i < notes.count && !error; i++)
        error = recover_note(it, notes.numbers[i]);
    free(notes.numbers);
    return error;
}
