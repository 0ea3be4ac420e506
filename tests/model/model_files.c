/* Operations on files being written, and their way to an object. See model.h. */
#include "tests/model/model.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "core/base/util.h"

enum { STAGED_SIZE_LIMIT = 5 << 20 };

/* --- held descriptors --- */

static struct held *held_add(int fd, struct staged *staged, struct object *object, int flags)
{
    struct held *held;

    CHECK(model.held_count < HELD_LIMIT, "the model's table of open files is full");
    held = &model.held[model.held_count++];
    *held = (struct held){
        .fd = fd,
        .staged = staged,
        .object = object,
        .readable = (flags & O_ACCMODE) != O_WRONLY,
        .writable = (flags & O_ACCMODE) != O_RDONLY,
        .append = flags & O_APPEND,
    };
    if (staged)
        staged->opens++;
    else
        object->opens++;
    return held;
}

static struct held *any_held(bool writable_staged)
{
    struct held *found = NULL;
    unsigned seen = 0;

    for (unsigned i = 0; i < model.held_count; i++) {
        struct held *held = &model.held[i];

        if (writable_staged && !(held->staged && held->writable))
            continue;
        if (dice_below(&model.dice, ++seen) == 0)
            found = held;
    }
    return found;
}

/* Descriptors for reading that are left when the last writer closes: whether they hold up the
 * commit depends on whether somebody looks the name up, so the game has none of them. */
static void close_readers(const struct staged *staged, int fd)
{
    for (unsigned i = 0; i < model.held_count; i++)
        if (model.held[i].staged == staged && model.held[i].writable && model.held[i].fd != fd)
            return;
    for (unsigned i = 0; i < model.held_count;) {
        if (model.held[i].staged == staged && model.held[i].fd != fd)
            held_close(i);
        else
            i++;
    }
}

static unsigned index_of(int fd)
{
    unsigned i = 0;

    while (i < model.held_count && model.held[i].fd != fd)
        i++;
    CHECK(i < model.held_count, "descriptor %d isn't held (an error of the test)", fd);
    return i;
}

void held_close(unsigned index)
{
    struct held held = model.held[index];
    time_t from = time(NULL);
    int rc;

    if (held.staged && held.writable) {
        close_readers(held.staged, held.fd);
        index = index_of(held.fd);
    }
    model.held[index] = model.held[--model.held_count];
    rc = close(held.fd);
    CHECK(rc == 0, "close of held descriptor %d: %s", held.fd, strerror(errno));
    if (held.object) {
        held.object->opens--;
        object_release(held.object);
        return;
    }
    if (--held.staged->opens > 0) {
        if (held.staged->node)
            check_node(held.staged->node);
        return;
    }
    if (held.staged->node)
        check_commit(held.staged->node, from);
    else
        staged_free(held.staged);
}

/* --- opening --- */

/* A free place for a new file: a directory and a name that isn't there. */
static bool free_place(struct node **directory, const char **name)
{
    for (unsigned tries = 0; tries < 20; tries++) {
        *directory = any_directory();
        *name = any_name();
        if (!child_of(*directory, *name))
            return true;
    }
    return false;
}

static struct node *create(struct node *directory, const char *name, int flags, mode_t mode,
                           int *fd)
{
    const char *path = path_in(directory, name);
    struct node *node;

    *fd = open(path, flags | O_CREAT | O_CLOEXEC, mode);
    CHECK_CALL(*fd, "create", short_path(path));
    node = node_add(directory, name, NODE_STAGED);
    node->staged = calloc(1, sizeof(*node->staged));
    CHECK(node->staged, "out of memory");
    node->staged->node = node;
    node->staged->mode = mode & ~(mode_t)022;
    return node;
}

static void write_random(struct held *held, size_t offset, size_t bytes)
{
    cleanup_free unsigned char *data = malloc(bytes + 1);
    size_t at = held->append ? held->staged->size : offset;
    errint_t rc;

    content_fill(dice_next(&model.dice), 0, data, bytes);
    if (held->append)
        rc = mob_write_full(held->fd, data, bytes);
    else
        rc = mob_pwrite_full(held->fd, data, bytes, (off_t)offset);
    CHECK(rc == 0, "write of %zu at %zu to descriptor %d: %s", bytes, at, held->fd, strerror(-rc));
    staged_write_model(held->staged, at, data, bytes);
}

/* Create, write, close: the commonest way in. */
void op_put(void)
{
    static const int flags[] = {O_WRONLY, O_WRONLY | O_EXCL, O_WRONLY | O_TRUNC, O_RDWR};
    static const mode_t modes[] = {0644, 0600, 0755, 0666};
    struct node *directory, *node;
    const char *name;
    size_t bytes = dice_size(&model.dice);
    int chosen = flags[dice_below(&model.dice, 4)];
    mode_t mode = modes[dice_below(&model.dice, 4)];
    struct held *held;
    int fd;

    if (!free_place(&directory, &name) || model.held_count == HELD_LIMIT)
        return;
    say("put %s, %zu bytes, mode %o", short_path(path_in(directory, name)), bytes, mode);
    node = create(directory, name, chosen, mode, &fd);
    held = held_add(fd, node->staged, NULL, chosen);
    for (size_t done = 0; done < bytes;) {
        size_t count = dice_percent(&model.dice, 50) ? bytes - done
                                                     : 1 + dice_below(&model.dice, bytes - done);

        write_random(held, done, count);
        done += count;
    }
    held_close(model.held_count - 1);
}

/* An object that lists others. */
void op_put_refs(void)
{
    struct object *refs[REF_LIMIT];
    char list[REF_LIMIT * 41 + 1] = "";
    unsigned count = 1 + (unsigned)dice_below(&model.dice, REF_LIMIT - 1);
    struct node *directory, *node;
    struct object *object;
    const char *name;
    bool by_content = dice_percent(&model.dice, 40);
    time_t from = time(NULL);
    int fd, rc;

    if (!free_place(&directory, &name) || !any_named_object())
        return;
    for (unsigned i = 0; i < count; i++) {
        refs[i] = any_named_object();
        for (unsigned j = 0; j < i; j++)
            if (refs[j] == refs[i]) { /* once each: what twice would count isn't specified */
                count = i;
                break;
            }
        if (i < count)
            snprintf(list + strlen(list), sizeof(list) - strlen(list), "%s%c", refs[i]->id,
                     by_content ? '\n' : ' ');
    }
    if (!by_content)
        list[strlen(list) - 1] = '\0';
    say("put %s with %u references, %s", short_path(path_in(directory, name)), count,
        by_content ? "as content" : "listed");
    node = create(directory, name, O_WRONLY, 0644, &fd);
    rc = fsetxattr(fd, "user.mobula.refs", by_content ? "content" : list,
                   by_content ? 7 : strlen(list), 0);
    CHECK(rc == 0, "fsetxattr user.mobula.refs: %s", strerror(errno));
    CHECK(mob_write_full(fd, list, strlen(list)) == 0, "write: %s", strerror(errno));
    staged_write_model(node->staged, 0, list, strlen(list));
    CHECK(close(fd) == 0, "close of an object with references: %s", strerror(errno));
    for (unsigned i = 0; i < count; i++)
        refs[i]->containers++;
    object = check_commit(node, from);
    memcpy(object->refs, refs, sizeof(refs));
    object->ref_count = count;
    check_object_stat(refs[0], mount_object_path(refs[0]->id));
}

/* Create and keep it open. */
void op_hold_staged(void)
{
    struct node *directory, *node;
    const char *name;
    int flags = dice_percent(&model.dice, 60) ? O_RDWR : O_WRONLY;
    struct held *held;
    int fd;

    if (!free_place(&directory, &name) || model.held_count >= HELD_LIMIT - 2)
        return;
    if (dice_percent(&model.dice, 20))
        flags |= O_APPEND;
    say("create %s and hold it", short_path(path_in(directory, name)));
    node = create(directory, name, flags | O_EXCL, 0644, &fd);
    held = held_add(fd, node->staged, NULL, flags);
    if (dice_percent(&model.dice, 70))
        write_random(held, 0, dice_size(&model.dice));
    check_node(node);
}

/* Another open file on one that is being written. */
void op_reopen_staged(void)
{
    static const int modes[] = {O_RDONLY,         O_WRONLY,
                                O_RDWR,           O_WRONLY | O_APPEND,
                                O_RDWR | O_TRUNC, O_WRONLY | O_CREAT | O_TRUNC};
    struct node *node = any_of(NODE_STAGED);
    int flags = modes[dice_below(&model.dice, 6)];
    int fd;

    if (!node || model.held_count >= HELD_LIMIT - 2)
        return;
    say("open %s again, flags %o", short_path(path_of(node)), flags);
    fd = open(path_of(node), flags | O_CLOEXEC, 0644);
    CHECK_CALL(fd, "open again", short_path(path_of(node)));
    held_add(fd, node->staged, NULL, flags);
    if (flags & O_TRUNC)
        staged_resize_model(node->staged, 0);
    check_node(node);
}

/* --- what writers do --- */

void op_write_held(void)
{
    struct held *held = any_held(true);
    size_t offset, bytes;

    if (!held)
        return;
    bytes = dice_size(&model.dice);
    offset = dice_below(&model.dice, held->staged->size + 5000);
    if (dice_percent(&model.dice, 40))
        offset = held->staged->size;
    if (held->staged->size + bytes > STAGED_SIZE_LIMIT)
        bytes = dice_below(&model.dice, 1000);
    say("write %zu at %zu%s to descriptor %d (%s)", bytes, offset, held->append ? " (append)" : "",
        held->fd, held->staged->node ? short_path(path_of(held->staged->node)) : "unlinked");
    write_random(held, offset, bytes);
    if (held->staged->node)
        check_node(held->staged->node);
}

void op_truncate_held(void)
{
    struct held *held = any_held(true);
    size_t size;
    int rc;

    if (!held)
        return;
    size = dice_percent(&model.dice, 50) ? dice_below(&model.dice, held->staged->size + 1)
                                         : dice_size(&model.dice);
    if (held->staged->node && dice_percent(&model.dice, 30)) {
        say("truncate %s to %zu", short_path(path_of(held->staged->node)), size);
        rc = truncate(path_of(held->staged->node), (off_t)size);
    } else {
        say("ftruncate descriptor %d to %zu", held->fd, size);
        rc = ftruncate(held->fd, (off_t)size);
    }
    CHECK(rc == 0, "truncate to %zu: %s", size, strerror(errno));
    staged_resize_model(held->staged, size);
    check_held(held);
}

/* Writes through a shared mapping. */
void op_map_held(void)
{
    struct held *held = any_held(true);
    cleanup_free unsigned char *data = NULL;
    unsigned char *map;
    size_t offset, bytes;

    if (!held || !held->readable || held->staged->size == 0)
        return;
    offset = dice_below(&model.dice, held->staged->size);
    bytes = 1 + dice_below(&model.dice, held->staged->size - offset);
    data = malloc(bytes);
    CHECK(data, "out of memory");
    say("write %zu at %zu to a mapping of descriptor %d", bytes, offset, held->fd);
    map = mmap(NULL, held->staged->size, PROT_READ | PROT_WRITE, MAP_SHARED, held->fd, 0);
    CHECK(map != MAP_FAILED, "mmap shared and writable: %s", strerror(errno));
    CHECK(memcmp(map, held->staged->data, held->staged->size) == 0,
          "a mapping of descriptor %d has other content than was written", held->fd);
    content_fill(dice_next(&model.dice), 0, data, bytes);
    memcpy(map + offset, data, bytes);
    CHECK(munmap(map, held->staged->size) == 0, "munmap: %s", strerror(errno));
    staged_write_model(held->staged, offset, data, bytes);
    check_held(held);
}

void op_allocate_held(void)
{
    struct held *held = any_held(true);
    size_t offset, bytes;
    int mode, rc;

    if (!held || held->append)
        return;
    offset = dice_below(&model.dice, held->staged->size + 5000);
    bytes = 1 + dice_below(&model.dice, 100000);
    mode = dice_percent(&model.dice, 50)   ? 0
           : dice_percent(&model.dice, 50) ? FALLOC_FL_KEEP_SIZE
                                           : FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE;
    say("fallocate mode %d, %zu at %zu of descriptor %d", mode, bytes, offset, held->fd);
    rc = fallocate(held->fd, mode, (off_t)offset, (off_t)bytes);
    CHECK(rc == 0, "fallocate mode %d: %s", mode, strerror(errno));
    if (mode == 0 && offset + bytes > held->staged->size)
        staged_resize_model(held->staged, offset + bytes);
    if ((mode & FALLOC_FL_PUNCH_HOLE) && offset < held->staged->size) {
        size_t left = held->staged->size - offset;

        memset(held->staged->data + offset, 0, bytes < left ? bytes : left);
    }
    check_held(held);
}

/* Closing a duplicate is no commit. */
void op_duplicate_held(void)
{
    struct held *held = any_held(false);
    int copy;

    if (!held)
        return;
    say("duplicate descriptor %d and close the copy", held->fd);
    copy = fcntl(held->fd, F_DUPFD_CLOEXEC, 0);
    CHECK(copy >= 0 && close(copy) == 0, "dup and close: %s", strerror(errno));
    if (held->staged && held->staged->node)
        check_node(held->staged->node);
    check_held(held);
}

void op_sync_held(void)
{
    struct held *held = any_held(true);

    if (!held)
        return;
    say("fsync descriptor %d", held->fd);
    CHECK(fsync(held->fd) == 0, "fsync: %s", strerror(errno));
}

void op_mode_held(void)
{
    static const mode_t modes[] = {0644, 0755, 0600, 0700, 0444};
    struct held *held = any_held(true);
    mode_t mode = modes[dice_below(&model.dice, 5)];

    if (!held)
        return;
    say("fchmod descriptor %d to %o", held->fd, mode);
    CHECK(fchmod(held->fd, mode) == 0, "fchmod: %s", strerror(errno));
    held->staged->mode = mode;
    if (held->staged->node)
        check_node(held->staged->node);
}

static struct attribute *attribute_find(struct staged *staged, const char *name)
{
    for (unsigned i = 0; i < staged->attribute_count; i++)
        if (strcmp(staged->attributes[i].name, name) == 0)
            return &staged->attributes[i];
    return NULL;
}

void op_attribute_held(void)
{
    struct held *held = any_held(true);
    struct attribute *attribute;
    char name[32];
    int rc;

    if (!held)
        return;
    snprintf(name, sizeof(name), "user.test%u", (unsigned)dice_below(&model.dice, ATTRIBUTE_LIMIT));
    attribute = attribute_find(held->staged, name);
    if (attribute && dice_percent(&model.dice, 40)) {
        say("fremovexattr %s of descriptor %d", name, held->fd);
        rc = fremovexattr(held->fd, name);
        CHECK(rc == 0, "fremovexattr: %s", strerror(errno));
        *attribute = held->staged->attributes[--held->staged->attribute_count];
        CHECK_REFUSED(fgetxattr(held->fd, name, NULL, 0), "fgetxattr", name, ENODATA);
    } else {
        if (!attribute) {
            attribute = &held->staged->attributes[held->staged->attribute_count++];
            snprintf(attribute->name, sizeof(attribute->name), "%s", name);
        }
        attribute->bytes = dice_below(&model.dice, sizeof(attribute->value) + 1);
        content_fill(dice_next(&model.dice), 0, attribute->value, attribute->bytes);
        say("fsetxattr %s of descriptor %d, %zu bytes", name, held->fd, attribute->bytes);
        rc = fsetxattr(held->fd, name, attribute->value, attribute->bytes, 0);
        CHECK(rc == 0, "fsetxattr: %s", strerror(errno));
    }
    if (held->staged->node)
        check_attributes(path_of(held->staged->node), held->staged->attributes,
                         held->staged->attribute_count);
}

void op_check_held(void)
{
    struct held *held = any_held(false);

    if (!held)
        return;
    say("compare descriptor %d", held->fd);
    check_held(held);
}

void op_close_held(void)
{
    unsigned index;

    if (model.held_count == 0)
        return;
    index = (unsigned)dice_below(&model.dice, model.held_count);
    say("close descriptor %d (%s)", model.held[index].fd,
        model.held[index].object         ? model.held[index].object->id
        : model.held[index].staged->node ? short_path(path_of(model.held[index].staged->node))
                                         : "unlinked");
    held_close(index);
}

/* Object to object inside the kernel: sendfile or copy_file_range, as cp does. */
void op_copy_object(void)
{
    struct object *object = any_named_object();
    struct node *directory, *node;
    const char *name;
    bool by_range = dice_percent(&model.dice, 50);
    time_t from = time(NULL);
    size_t done = 0;
    int in, out;

    if (!object || !free_place(&directory, &name))
        return;
    say("copy %s to %s by %s", object->id, short_path(path_in(directory, name)),
        by_range ? "copy_file_range" : "sendfile");
    in = open(mount_object_path(object->id), O_RDONLY | O_CLOEXEC);
    CHECK_CALL(in, "open", object->id);
    node = create(directory, name, O_WRONLY | O_EXCL, 0644, &out);
    while (done < object->size) {
        ssize_t got = by_range ? copy_file_range(in, NULL, out, NULL, object->size - done, 0)
                               : sendfile(out, in, NULL, object->size - done);

        if (got < 0 && by_range && (errno == EXDEV || errno == EOPNOTSUPP || errno == EINVAL)) {
            by_range = false; /* as cp falls back */
            continue;
        }
        CHECK(got > 0, "copy after %zu of %zu bytes: %s", done, object->size, strerror(errno));
        done += (size_t)got;
    }
    staged_write_model(node->staged, 0, object->data, object->size);
    CHECK(close(in) == 0 && close(out) == 0, "close of a copy: %s", strerror(errno));
    check_commit(node, from);
}

/* --- objects held open --- */

void op_hold_object(void)
{
    struct object *object = any_named_object();
    int fd;

    if (!object || model.held_count >= HELD_LIMIT - 2)
        return;
    say("open %s and hold it", object->id);
    fd = open(mount_object_path(object->id), O_RDONLY | O_CLOEXEC);
    CHECK_CALL(fd, "open", object->id);
    check_held(held_add(fd, NULL, object, O_RDONLY));
}
