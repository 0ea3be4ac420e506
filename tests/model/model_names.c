/* Operations on names, and reads of objects. See model.h. */
#include "tests/model/model.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/base/util.h"

/* --- reading --- */

void op_read_object(void)
{
    struct object *object = any_object();

    if (!object || object->names + object->containers == 0)
        return;
    say("read %s, %zu bytes", object->id, object->size);
    check_object_content(object, mount_object_path(object->id));
}

void op_read_name(void)
{
    struct node *node = any_of(NODE_OBJECT);

    if (!node)
        return;
    say("read %s, %zu bytes", short_path(path_of(node)), node->object->size);
    check_object_content(node->object, path_of(node));
}

void op_map_object(void)
{
    struct object *object = any_named_object();
    void *map;
    int fd;

    if (!object || object->size == 0)
        return;
    say("map %s, %zu bytes", object->id, object->size);
    fd = open(mount_object_path(object->id), O_RDONLY | O_CLOEXEC);
    CHECK_CALL(fd, "open", object->id);
    CHECK(mmap(NULL, object->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED,
          "%s can be mapped shared and writable", object->id);
    map = mmap(NULL, object->size, PROT_READ,
               dice_percent(&model.dice, 50) ? MAP_SHARED : MAP_PRIVATE, fd, 0);
    CHECK(map != MAP_FAILED, "mmap %s: %s", object->id, strerror(errno));
    CHECK(close(fd) == 0, "close: %s", strerror(errno));
    CHECK(memcmp(map, object->data, object->size) == 0, "mapping of %s has other content",
          object->id);
    munmap(map, object->size);
}

void op_freed(void)
{
    const char *id;

    if (model.freed_count == 0)
        return;
    id = model.freed[dice_below(&model.dice,
                                model.freed_count < FREED_RING ? model.freed_count : FREED_RING)];
    say("look for %s, freed", id);
    check_freed(id);
    CHECK_REFUSED(open(mount_object_path(id), O_RDONLY), "open of freed", id, ENOENT);
}

void op_stat(void)
{
    struct node *node = any_node();

    if (!node)
        return;
    say("stat %s", short_path(path_of(node)));
    check_node(node);
    if (node->kind == NODE_OBJECT)
        check_object_stat(node->object, mount_object_path(node->object->id));
    if (node->kind == NODE_OBJECT && node->object->attribute_count)
        check_attributes(path_of(node), node->object->attributes, node->object->attribute_count);
}

void op_list(void)
{
    struct node *directory = any_directory();

    say("list %s", short_path(path_of(directory)));
    check_directory(directory);
    if (directory->parent)
        check_node(directory);
}

void op_list_objects(void)
{
    say("list objects");
    check_objects_directory();
}

/* --- directories --- */

void op_make_directory(void)
{
    struct node *directory = any_directory();
    const char *name = any_name();
    const char *path = path_in(directory, name);

    say("mkdir %s", short_path(path));
    if (child_of(directory, name)) {
        CHECK_REFUSED(mkdir(path, 0755), "mkdir", short_path(path), EEXIST);
        return;
    }
    CHECK_CALL(mkdir(path, 0755), "mkdir", short_path(path));
    check_node(node_add(directory, name, NODE_DIRECTORY));
}

void op_remove_directory(void)
{
    struct node *node = any_node();
    const char *path;

    if (!node)
        return;
    path = path_of(node);
    say("rmdir %s", short_path(path));
    if (node->kind != NODE_DIRECTORY) {
        CHECK_REFUSED(rmdir(path), "rmdir", short_path(path), ENOTDIR);
    } else if (node->entries) {
        CHECK_REFUSED(rmdir(path), "rmdir", short_path(path), ENOTEMPTY);
    } else {
        CHECK_CALL(rmdir(path), "rmdir", short_path(path));
        node_remove(node);
        CHECK_REFUSED(access(path, F_OK), "access after rmdir", short_path(path), ENOENT);
    }
}

void op_unlink(void)
{
    struct node *node = any_node();
    char id[41] = "";
    struct object *object = NULL;
    const char *path;
    bool gone;

    if (!node)
        return;
    path = path_of(node);
    if (node->kind == NODE_DIRECTORY) {
        say("unlink %s, a directory", short_path(path));
        CHECK_REFUSED(unlink(path), "unlink", short_path(path), EISDIR, EPERM);
        return;
    }
    if (node->kind == NODE_OBJECT) {
        object = node->object;
        memcpy(id, object->id, sizeof(id));
    }
    say("unlink %s%s", short_path(path), node->kind == NODE_STAGED ? ", which is open" : "");
    CHECK_CALL(unlink(path), "unlink", short_path(path));
    gone = object && object->names == 1 && object->containers == 0 && object->opens == 0;
    node_remove(node);
    if (gone)
        check_freed(id);
    else if (object && object->names + object->containers)
        check_object_stat(object, mount_object_path(id));
    CHECK_REFUSED(readlink(path, id, sizeof(id)), "readlink after unlink", short_path(path),
                  ENOENT);
}

/* --- links --- */

void op_link(void)
{
    struct object *object = any_named_object();
    struct node *directory = any_directory();
    const char *name = any_name();
    const char *path = path_in(directory, name);
    bool by_name = dice_percent(&model.dice, 30);
    const char *from;
    struct node *node;

    if (!object)
        return;
    from = mount_object_path(object->id);
    if (by_name) {
        node = any_of(NODE_OBJECT);
        object = node->object;
        from = path_of(node);
    }
    say("link %s to %s", short_path(from), short_path(path));
    if (child_of(directory, name)) {
        CHECK_REFUSED(linkat(AT_FDCWD, from, AT_FDCWD, path, AT_SYMLINK_FOLLOW), "link",
                      short_path(path), EEXIST);
        return;
    }
    CHECK_CALL(linkat(AT_FDCWD, from, AT_FDCWD, path, AT_SYMLINK_FOLLOW), "link", short_path(path));
    node = node_add(directory, name, NODE_OBJECT);
    node->object = object;
    object_hold_name(object);
    check_node(node);
}

/* A symbolic link to an object holds it; any other is kept as it is. */
void op_symlink(void)
{
    struct object *object = any_named_object();
    struct node *directory = any_directory();
    const char *name = any_name();
    const char *path = path_in(directory, name);
    char text[128];
    struct node *node;

    if (!object || dice_percent(&model.dice, 30)) {
        object = NULL;
        snprintf(text, sizeof(text), "nowhere/%u", (unsigned)dice_below(&model.dice, 1000));
    } else {
        expected_target(directory, "objects", object->id, text, sizeof(text));
    }
    say("symlink %s to %s", short_path(path), text);
    if (child_of(directory, name)) {
        CHECK_REFUSED(symlink(text, path), "symlink", short_path(path), EEXIST);
        return;
    }
    CHECK_CALL(symlink(text, path), "symlink", short_path(path));
    node = node_add(directory, name, object ? NODE_OBJECT : NODE_TEXT);
    if (object) {
        node->object = object;
        object_hold_name(object);
    } else {
        snprintf(node->text, sizeof(node->text), "%s", text);
    }
    check_node(node);
}

/* --- rename --- */

/* What rename(2) must say, in the order in which the kernel looks; 0: it works. */
static int rename_expected(const struct node *node, const struct node *directory,
                           const struct node *target, unsigned flags)
{
    if ((flags & RENAME_NOREPLACE) && target)
        return EEXIST;
    if ((flags & RENAME_EXCHANGE) && !target)
        return ENOENT;
    if (is_inside(directory, node))
        return EINVAL;
    if (target && target != node && is_inside(node, target))
        return flags & RENAME_EXCHANGE ? EINVAL : ENOTEMPTY;
    if (!target || target == node || (flags & RENAME_EXCHANGE))
        return 0;
    if (node->kind == NODE_DIRECTORY && target->kind != NODE_DIRECTORY)
        return ENOTDIR;
    if (node->kind != NODE_DIRECTORY && target->kind == NODE_DIRECTORY)
        return EISDIR;
    if (target->kind == NODE_DIRECTORY && target->entries)
        return ENOTEMPTY;
    return 0;
}

static void exchange(struct node *a, struct node *b)
{
    struct node *a_parent = a->parent;
    char a_name[256];

    memcpy(a_name, a->name, sizeof(a_name));
    node_move(a, b->parent, b->name);
    node_move(b, a_parent, a_name);
}

void op_rename(void)
{
    struct node *node = any_node();
    struct node *directory = any_directory();
    struct node *target;
    char name[256], from[PATH_MAX], to[PATH_MAX];
    unsigned flags = dice_percent(&model.dice, 75)   ? 0
                     : dice_percent(&model.dice, 50) ? RENAME_NOREPLACE
                                                     : RENAME_EXCHANGE;
    int expected, rc;

    if (!node)
        return;
    snprintf(name, sizeof(name), "%s", any_name());
    if (dice_percent(&model.dice, 30)) { /* over something that is there, whatever it is */
        target = any_node();
        directory = target->parent;
        memcpy(name, target->name, sizeof(name));
    }
    target = child_of(directory, name);
    snprintf(from, sizeof(from), "%s", path_of(node));
    snprintf(to, sizeof(to), "%s", path_in(directory, name));
    say("rename %s to %s%s%s", short_path(from), short_path(to),
        flags == RENAME_NOREPLACE  ? " (no replace)"
        : flags == RENAME_EXCHANGE ? " (exchange)"
                                   : "",
        target ? ", which is there" : "");
    expected = rename_expected(node, directory, target, flags);
    rc = renameat2(AT_FDCWD, from, AT_FDCWD, to, flags);
    /* a file being written is not exchanged with what is not */
    if (rc < 0 && errno == EBUSY && expected == 0 && (flags & RENAME_EXCHANGE) &&
        (node->kind == NODE_STAGED) != (target->kind == NODE_STAGED)) {
        check_node(node);
        check_node(target);
        return;
    }
    if (expected) {
        CHECK_REFUSED(rc, "rename to", short_path(to), expected);
        return;
    }
    CHECK_CALL(rc, "rename to", short_path(to));
    if (target == node)
        return;
    /* Two names of one object at one depth are one inode to the kernel, as hard links are:
     * rename(2) of one over the other leaves both. */
    if (target && !flags && node->kind == NODE_OBJECT && target->kind == NODE_OBJECT &&
        node->object == target->object && access(from, F_OK) == 0) {
        check_node(node);
        check_node(target);
        return;
    }
    if (flags & RENAME_EXCHANGE) {
        exchange(node, target);
        check_node(target);
    } else {
        if (target)
            node_remove(target);
        node_move(node, directory, name);
        CHECK_REFUSED(readlink(from, to, sizeof(to)), "readlink after rename", short_path(from),
                      ENOENT);
    }
    check_node(node);
}
