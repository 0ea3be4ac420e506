/* Comparisons of the mount with the model. See model.h. */
#include "tests/model/model.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "core/base/id.h"
#include "core/base/util.h"

/* What the kernel is told a moment after a reply (invalidations, asynchronous RELEASE) may come
 * late, but not later than this. */
#define LATE_LIMIT_NS UINT64_C(5000000000)

/* Waits for a moment within a check that was not true at first; false when the limit is over. */
static bool wait_late(uint64_t began)
{
    uint64_t took = mob_monotonic_ns() - began;

    if (took > model.late_worst_ns)
        model.late_worst_ns = took;
    if (took > LATE_LIMIT_NS)
        return false;
    usleep(took < 20000000 ? 200 : 5000);
    return true;
}

void expected_target(const struct node *directory, const char *what, const char *id, char *out,
                     size_t bytes)
{
    size_t length = 0;

    for (unsigned up = 0; up <= depth_of(directory); up++)
        length += (size_t)snprintf(out + length, bytes - length, "../");
    snprintf(out + length, bytes - length, "%s/%s", what, id);
}

static void check_link(const struct node *node, const char *path, const struct stat *info)
{
    char expected[512];
    char target[512] = "";
    ssize_t got = readlink(path, target, sizeof(target) - 1);

    CHECK(S_ISLNK(info->st_mode), "%s: mode %o, expected a symbolic link", short_path(path),
          info->st_mode);
    CHECK_CALL(got, "readlink", short_path(path));
    if (node->kind == NODE_TEXT)
        snprintf(expected, sizeof(expected), "%s", node->text);
    else
        expected_target(node->parent, "objects", node->object->id, expected, sizeof(expected));
    CHECK(strcmp(target, expected) == 0, "%s: link to %s, expected %s", short_path(path), target,
          expected);
    CHECK((size_t)info->st_size == strlen(target), "%s: st_size %lld of a link of %zu",
          short_path(path), (long long)info->st_size, strlen(target));
}

void check_node(const struct node *node)
{
    const char *path = path_of(node);
    struct stat info;
    int rc = lstat(path, &info);

    CHECK_CALL(rc, "lstat", short_path(path));
    switch (node->kind) {
    case NODE_DIRECTORY:
        CHECK(S_ISDIR(info.st_mode), "%s: mode %o, expected a directory", short_path(path),
              info.st_mode);
        CHECK(info.st_nlink == 2 + node->subdirectories, "%s: st_nlink %lu, expected 2 + %u",
              short_path(path), (unsigned long)info.st_nlink, node->subdirectories);
        break;
    case NODE_STAGED:
        CHECK(S_ISREG(info.st_mode), "%s: mode %o, expected a regular file (still open)",
              short_path(path), info.st_mode);
        CHECK((size_t)info.st_size == node->staged->size, "%s: size %lld, expected %zu",
              short_path(path), (long long)info.st_size, node->staged->size);
        CHECK((info.st_mode & 07777) == node->staged->mode, "%s: mode %o, expected %o",
              short_path(path), info.st_mode & 07777, node->staged->mode);
        break;
    case NODE_OBJECT:
        check_link(node, path, &info);
        check_object_stat(node->object, path);
        break;
    case NODE_TEXT:
        check_link(node, path, &info);
        break;
    }
}

void check_object_stat(const struct object *object, const char *path)
{
    uint64_t began = mob_monotonic_ns();
    struct stat info;
    bool late = false;

    for (;;) {
        int rc = stat(path, &info);

        CHECK_CALL(rc, "stat", short_path(path));
        if (info.st_nlink == object->names + object->containers)
            break;
        late = true;
        CHECK(wait_late(began), "%s: st_nlink %lu, expected %u names + %u containing objects",
              short_path(path), (unsigned long)info.st_nlink, object->names, object->containers);
    }
    model.late_links += late;
    CHECK(S_ISREG(info.st_mode), "%s: mode %o, expected a regular file", short_path(path),
          info.st_mode);
    CHECK((info.st_mode & 07777) == object->mode, "%s: mode %o, expected %o", short_path(path),
          info.st_mode & 07777, object->mode);
    CHECK((size_t)info.st_size == object->size, "%s: size %lld, expected %zu", short_path(path),
          (long long)info.st_size, object->size);
    CHECK(info.st_uid == getuid() && info.st_gid == getgid(), "%s: owner %u:%u", short_path(path),
          info.st_uid, info.st_gid);
    CHECK(info.st_mtime >= object->committed_from - 1 && info.st_mtime <= object->committed_to + 1,
          "%s: mtime %lld, committed between %lld and %lld", short_path(path),
          (long long)info.st_mtime, (long long)object->committed_from,
          (long long)object->committed_to);
}

static void compare(const char *path, const unsigned char *got, const unsigned char *expected,
                    size_t bytes, size_t offset)
{
    if (memcmp(got, expected, bytes) == 0)
        return;
    for (size_t i = 0; i < bytes; i++)
        CHECK(got[i] == expected[i], "%s: byte %zu is 0x%02x, expected 0x%02x", short_path(path),
              offset + i, got[i], expected[i]);
}

/* Reads the range, and past the end, and compares. */
static void check_range(int fd, const char *path, const unsigned char *expected, size_t size,
                        size_t offset, size_t bytes)
{
    size_t left = offset < size ? size - offset : 0;
    size_t due = bytes < left ? bytes : left;
    cleanup_free unsigned char *buffer = malloc(bytes + 1);
    ssize_t got = mob_pread_full(fd, buffer, bytes, (off_t)offset);

    errno = got < 0 ? (int)-got : 0;
    CHECK_CALL(got, "pread", short_path(path));
    CHECK((size_t)got == due, "%s: pread of %zu at %zu gave %zd of %zu (size %zu)",
          short_path(path), bytes, offset, got, due, size);
    compare(path, buffer, expected + (due ? offset : 0), due, offset);
}

void check_object_content(const struct object *object, const char *path)
{
    cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);

    CHECK_CALL(fd, "open", short_path(path));
    if (dice_percent(&model.dice, 60)) {
        check_range(fd, path, object->data, object->size, 0, object->size + 10);
        return;
    }
    for (unsigned i = 0; i < 4; i++)
        check_range(fd, path, object->data, object->size,
                    dice_below(&model.dice, object->size + 20), dice_below(&model.dice, 70000));
}

void check_held(struct held *held)
{
    size_t size = held->object ? held->object->size : held->staged->size;
    const unsigned char *data = held->object ? held->object->data : held->staged->data;
    struct stat info;
    char label[64];
    int rc = fstat(held->fd, &info);

    snprintf(label, sizeof(label), "held descriptor %d", held->fd);
    CHECK_CALL(rc, "fstat", label);
    CHECK((size_t)info.st_size == size, "%s: size %lld, expected %zu", label,
          (long long)info.st_size, size);
    if (!held->readable)
        return;
    check_range(held->fd, label, data, size, 0, size + 1);
}

/* --- directories --- */

void check_directory(const struct node *directory)
{
    const char *path = path_of(directory);
    DIR *stream = opendir(path);
    struct dirent *entry;
    unsigned seen = 0;
    bool found[NODE_LIMIT + 64] = {false};

    CHECK(stream, "opendir %s: %s", short_path(path), strerror(errno));
    while ((errno = 0, entry = readdir(stream))) {
        unsigned i = 0;

        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        while (i < model.node_count && (model.nodes[i]->parent != directory ||
                                        strcmp(model.nodes[i]->name, entry->d_name) != 0))
            i++;
        CHECK(i < model.node_count, "readdir %s lists %s, which should not be there",
              short_path(path), entry->d_name);
        CHECK(!found[i], "readdir %s lists %s twice", short_path(path), entry->d_name);
        found[i] = true;
        seen++;
        if (entry->d_type != DT_UNKNOWN) {
            unsigned char type = model.nodes[i]->kind == NODE_DIRECTORY ? DT_DIR
                                 : model.nodes[i]->kind == NODE_STAGED  ? DT_REG
                                                                        : DT_LNK;

            CHECK(entry->d_type == type, "readdir %s: %s has type %u, expected %u",
                  short_path(path), entry->d_name, entry->d_type, type);
        }
    }
    CHECK(errno == 0, "readdir %s: %s", short_path(path), strerror(errno));
    closedir(stream);
    for (unsigned i = 0; i < model.node_count; i++)
        CHECK(model.nodes[i]->parent != directory || found[i], "readdir %s does not list %s",
              short_path(path), model.nodes[i]->name);
    CHECK(seen == directory->entries, "readdir %s: %u entries, expected %u", short_path(path), seen,
          directory->entries);
}

static int compare_ids(const void *a, const void *b)
{
    return memcmp(a, b, 40);
}

/* Every live object is listed once; what was freed is not (in the end). Others may be there. */
static bool objects_listed_right(char *why, size_t bytes)
{
    char path[PATH_MAX];
    size_t count = 0, room = 1024;
    char(*ids)[41] = malloc(room * sizeof(*ids));
    struct dirent *entry;
    DIR *stream;
    bool right = true;

    snprintf(path, sizeof(path), "%s/objects", mount_root());
    stream = opendir(path);
    CHECK(stream && ids, "opendir objects: %s", strerror(errno));
    while ((errno = 0, entry = readdir(stream))) {
        if (entry->d_name[0] == '.')
            continue;
        CHECK(strlen(entry->d_name) == 40, "readdir objects lists %s", entry->d_name);
        if (count == room) {
            room *= 2;
            ids = realloc(ids, room * sizeof(*ids));
            CHECK(ids, "out of memory");
        }
        memcpy(ids[count++], entry->d_name, 41);
    }
    CHECK(errno == 0, "readdir objects: %s", strerror(errno));
    closedir(stream);
    qsort(ids, count, sizeof(*ids), compare_ids);
    for (size_t i = 1; i < count; i++)
        CHECK(memcmp(ids[i - 1], ids[i], 40) != 0, "readdir objects lists %s twice", ids[i]);
    for (unsigned i = 0; i < model.object_count; i++)
        CHECK(bsearch(model.objects[i]->id, ids, count, sizeof(*ids), compare_ids),
              "readdir objects does not list %s", model.objects[i]->id);
    for (unsigned i = 0; i < FREED_RING && i < model.freed_count && right; i++)
        if (bsearch(model.freed[i], ids, count, sizeof(*ids), compare_ids)) {
            snprintf(why, bytes, "readdir objects lists %s, which was freed", model.freed[i]);
            right = false;
        }
    free(ids);
    return right;
}

void check_objects_directory(void)
{
    uint64_t began = mob_monotonic_ns();
    char why[200];
    bool late = false;

    while (!objects_listed_right(why, sizeof(why))) {
        late = true;
        CHECK(wait_late(began), "%s", why);
    }
    model.late_frees += late;
}

void check_freed(const char *id)
{
    const char *path = mount_object_path(id);
    uint64_t began = mob_monotonic_ns();
    struct stat info;
    bool late = false;

    while (stat(path, &info) == 0) {
        late = true;
        CHECK(wait_late(began), "%s: still there (st_nlink %lu) though nothing holds it",
              short_path(path), (unsigned long)info.st_nlink);
    }
    CHECK(errno == ENOENT, "stat %s, freed: %s, expected ENOENT", short_path(path),
          strerror(errno));
    model.late_frees += late;
}

/* --- attributes --- */

void check_attributes(const char *path, const struct attribute *attributes, unsigned count)
{
    char list[8192];
    ssize_t listed = listxattr(path, list, sizeof(list));
    unsigned own = 0;

    CHECK_CALL(listed, "listxattr", short_path(path));
    for (unsigned i = 0; i < count; i++) {
        unsigned char value[128];
        ssize_t got = getxattr(path, attributes[i].name, value, sizeof(value));

        CHECK(got >= 0, "getxattr %s of %s: %s", attributes[i].name, short_path(path),
              strerror(errno));
        CHECK((size_t)got == attributes[i].bytes &&
                  memcmp(value, attributes[i].value, attributes[i].bytes) == 0,
              "getxattr %s of %s: %zd bytes, expected %zu, or other content", attributes[i].name,
              short_path(path), got, attributes[i].bytes);
    }
    for (char *name = list; name < list + listed; name += strlen(name) + 1)
        own += strncmp(name, "user.test", 9) == 0;
    CHECK(own == count, "listxattr of %s: %u of ours, expected %u", short_path(path), own, count);
}

/* --- commits --- */

struct object *check_commit(struct node *node, time_t from)
{
    const char *path = path_of(node);
    struct staged *staged = node->staged;
    struct object *object;
    char target[512] = "", expected[512];
    ssize_t got = readlink(path, target, sizeof(target) - 1);
    const char *id = strrchr(target, '/');
    struct mob_id parsed;

    CHECK(got >= 0, "readlink %s right after its last close: %s", short_path(path),
          strerror(errno));
    id = id ? id + 1 : target;
    CHECK(mob_id_parse(id, strlen(id), &parsed), "%s: link to %s, not to an object",
          short_path(path), target);
    CHECK(mob_id_index(&parsed) == 0, "%s: index of a put is not 0: %s", short_path(path), id);
    expected_target(node->parent, "objects", id, expected, sizeof(expected));
    CHECK(strcmp(target, expected) == 0, "%s: link to %s, expected %s", short_path(path), target,
          expected);
    object = object_new(id, staged->data, staged->size, staged->mode & 0555);
    object->committed_from = from;
    object->committed_to = time(NULL);
    memcpy(object->attributes, staged->attributes, sizeof(object->attributes));
    object->attribute_count = staged->attribute_count;
    node->kind = NODE_OBJECT;
    node->object = object;
    node->staged = NULL;
    object_hold_name(object);
    staged_free(staged);
    check_object_stat(object, mount_object_path(object->id));
    if (object->attribute_count)
        check_attributes(mount_object_path(object->id), object->attributes,
                         object->attribute_count);
    return object;
}
