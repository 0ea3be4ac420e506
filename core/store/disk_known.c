/* The spill directories that the store had, so that one that is missing is noticed: a disk that is
 * not mounted, a wrong --spill. Its objects would be lost for good, as if it had never been.
 *
 * LMDB's `state` has them under "spill_dirs", as text: for each "IDENTITY PATH" and a NUL, which no
 * path has. Known again is a directory by its identity, wherever it is. */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "core/store/store_internal.h"

static const char key[] = "spill_dirs";

struct known {
    char *text; /* the entries point into it */
    size_t bytes;
    struct known_dir {
        const char *identity; /* not terminated */
        const char *path;
    } dirs[DISK_DIRS];
    size_t count;
};

static bool split(struct known *known)
{
    const size_t digits = DISK_IDENTITY_BYTES - 1;
    for (size_t at = 0; at < known->bytes; at += strlen(known->text + at) + 1) {
        const char *entry = known->text + at;
        size_t length = strnlen(entry, known->bytes - at);
        if (length == known->bytes - at || length < digits + 2 ||
            strspn(entry, "0123456789abcdef") != digits || entry[digits] != ' ' ||
            known->count == DISK_DIRS)
            return false;
        known->dirs[known->count++] = (struct known_dir){entry, entry + digits + 1};
    }
    return true;
}

/* None is known if there is no record, or a damaged one. */
static errint_t load(struct store *store, struct known *known)
{
    struct meta_reader *reader;
    const void *value;
    errint_t error = meta_read_begin(&store->meta, &reader);
    if (error)
        return error;
    error =
        meta_get(&store->meta, reader->txn, META_STATE, key, sizeof key - 1, &value, &known->bytes);
    if (!error) {
        known->text = calloc(1, known->bytes + 1);
        if (known->text)
            memcpy(known->text, value, known->bytes);
        error = known->text ? 0 : -ENOMEM;
    } else if (error == -ENOENT) {
        known->bytes = 0;
        error = 0;
    }
    meta_read_end(reader);
    if (!error && !split(known)) {
        mob_log_error("store: the record of its spill directories is damaged; none is missed");
        known->count = 0;
    }
    return error;
}

static bool is_present(const struct disk *disk, const struct known_dir *dir)
{
    for (unsigned i = 0; i < disk->count; i++)
        if (!memcmp(disk->dirs[i].identity.directory, dir->identity, DISK_IDENTITY_BYTES - 1))
            return true;
    return false;
}

static bool is_given_up(struct store *store, const struct known_dir *dir)
{
    for (const char *const *path = store->forget_spill_dirs; path && *path; path++)
        if (!strcmp(*path, dir->path))
            return true;
    return false;
}

/* What is at its path now, and what to do. */
static const char *describe_place(const struct known_dir *dir)
{
    struct disk_identity identity;
    cleanup_free char *text = NULL;
    size_t bytes;
    cleanup_fd int fd = open(dir->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? "which is not there: mount its disk"
                               : "which can't be opened: mend that";
    if (mob_read_file(fd, DISK_IDENTITY_NAME, DISK_IDENTITY_TEXT_BYTES, &text, &bytes) ||
        disk_identity_parse(text, bytes, &identity) ||
        memcmp(identity.directory, dir->identity, DISK_IDENTITY_BYTES - 1) != 0)
        return "but another directory is in its place: mount its disk";
    return "which is there, but is not used: add it to those of --spill";
}

static errint_t refuse(const struct known_dir *dir, size_t others, uint64_t objects,
                       uint64_t unfinished, struct mob_error *err)
{
    char what[64], more[64] = "";
    if (objects)
        snprintf(what, sizeof what, "%llu objects are", (unsigned long long)objects);
    else
        snprintf(what, sizeof what, "%llu unfinished files are", (unsigned long long)unfinished);
    if (others)
        snprintf(more, sizeof more, " (%zu more are missing: see the log)", others);
    return mob_error_set(err, -ENOENT,
                         "%s in the spill directory %s, %s; or give them up with --forget-spill "
                         "%s%s",
                         what, dir->path, describe_place(dir), dir->path, more);
}

static errint_t check(struct store *store, const struct known *known, uint64_t objects,
                      uint64_t unfinished, struct mob_error *err)
{
    const struct known_dir *missing = NULL;
    size_t others = 0;
    for (const struct known_dir *dir = known->dirs; dir < known->dirs + known->count; dir++) {
        bool present = is_present(&store->disk, dir), given_up = is_given_up(store, dir);
        if (present && given_up)
            return mob_error_set(err, -EINVAL,
                                 "the spill directory %s is in use and can't be given up: leave "
                                 "out its --spill, or the --forget-spill",
                                 dir->path);
        if (present)
            continue;
        if (given_up)
            mob_log_warning("store: the spill directory %s is given up", dir->path);
        else if (objects || unfinished)
            mob_log_error("store: the spill directory %s is missing", dir->path);
        if (given_up)
            continue;
        others += missing != NULL;
        if (!missing)
            missing = dir;
    }
    return missing && (objects || unfinished) ? refuse(missing, others, objects, unfinished, err)
                                              : 0;
}

errint_t disk_check_known(struct store *store, uint64_t objects, uint64_t unfinished,
                          struct mob_error *err)
{
    struct known known = {0};
    errint_t error = load(store, &known);
    if (!error)
        error = check(store, &known, objects, unfinished, err);
    free(known.text);
    return error;
}

/* --- noting --- */

static errint_t make_text(const struct disk *disk, char **text, size_t *bytes)
{
    size_t room = 0, used = 0;
    for (unsigned i = 0; i < disk->count; i++)
        room += DISK_IDENTITY_BYTES + strlen(disk->dirs[i].path) + 1;
    *text = malloc(room + 1);
    if (!*text)
        return -ENOMEM;
    for (unsigned i = 0; i < disk->count; i++)
        used += (size_t)sprintf(*text + used, "%s %s", disk->dirs[i].identity.directory,
                                disk->dirs[i].path) +
                1;
    *bytes = used;
    return 0;
}

static errint_t put(struct store *store, const char *text, size_t bytes)
{
    MDB_txn *txn;
    store_write_lock(store);
    errint_t error = meta_begin(&store->meta, bytes + 1024, &txn);
    if (!error) {
        error = meta_put(&store->meta, txn, META_STATE, key, sizeof key - 1, text, bytes);
        error = meta_end(txn, error);
    }
    store_write_unlock(store);
    return error;
}

errint_t disk_note_known(struct store *store, struct mob_error *err)
{
    struct known known = {0};
    cleanup_free char *text = NULL;
    size_t bytes = 0;
    errint_t error = make_text(&store->disk, &text, &bytes);
    if (!error)
        error = load(store, &known);
    if (!error && (bytes != known.bytes || (bytes && memcmp(text, known.text, bytes) != 0)))
        error = put(store, text, bytes);
    free(known.text);
    if (error == -ENOSPC) {
        mob_log_warning("store: no room to note its spill directories; a missing one will not be "
                        "noticed");
        error = 0;
    }
    return error ? mob_error_set(err, error, "the spill directories can't be noted in %s: %s",
                                 store->state_dir, strerror(-error))
                 : 0;
}
