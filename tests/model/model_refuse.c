/* Operations that must fail, and with which errno; and a job now and then. See model.h. */
#include "tests/model/model.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "core/base/id.h"
#include "core/base/util.h"

/* Opens to write what must not be written; a descriptor that comes all the same fails the test. */
static long open_refused(const char *path, int flags)
{
    return open(path, flags | O_CLOEXEC, 0644);
}

/* A way in that must be closed: `path` is an object, `name` a link to one, `fresh` free. */
static long try_refused(unsigned kind, const char *path, const char *name, const char *fresh)
{
    switch (kind) {
    case 0:
        return open_refused(path, O_WRONLY);
    case 1:
        return open_refused(path, O_RDWR);
    case 2:
        return open_refused(path, O_WRONLY | O_TRUNC);
    case 3:
        return truncate(path, 0);
    case 4:
        return unlink(path);
    case 5:
        return rename(path, fresh);
    case 6:
        return rename(name, path);
    case 7:
        return link(path, mount_object_path("0123456789012345678901234567890123456789"));
    case 8:
        return chmod(path, 0644);
    case 9:
        return setxattr(path, "user.test9", "x", 1, 0);
    case 10:
        return open_refused(mount_object_path("fresh"), O_WRONLY | O_CREAT);
    case 11:
        return mkdir(mount_object_path("fresh"), 0755);
    case 12:
        return open_refused(path, O_WRONLY | O_APPEND);
    case 13:
        return open_refused(name, O_WRONLY | O_CREAT);
    }
    return -1;
}

void op_refused_object(void)
{
    struct object *object = any_named_object();
    const char *path, *name;
    char fresh[PATH_MAX];
    unsigned kind = (unsigned)dice_below(&model.dice, 14);
    long rc;
    static const char *const what[] = {
        "open to write",
        "open to read and write",
        "open to truncate",
        "truncate",
        "unlink",
        "rename away",
        "rename over",
        "link in objects",
        "chmod",
        "set an attribute",
        "create in objects",
        "mkdir in objects",
        "open to append",
        "open to write by name",
    };

    if (!object)
        return;
    path = mount_object_path(object->id);
    name = path_of(any_of(NODE_OBJECT));
    snprintf(fresh, sizeof(fresh), "%s/staging/never", mount_root());
    say("must refuse: %s, %s", what[kind], object->id);
    errno = 0;
    rc = try_refused(kind, path, name, fresh);
    CHECK_REFUSED(rc, what[kind], object->id, EPERM, EROFS, EACCES, kind == 5 ? EXDEV : EPERM,
                  kind == 6 ? EXDEV : EPERM);
    CHECK_REFUSED(access(fresh, F_OK), "access", "staging/never", ENOENT);
    check_object_stat(object, path);
    check_object_content(object, path);
}

static long create_refused(const char *path, int flags)
{
    long fd = open(path, flags | O_CREAT | O_WRONLY | O_CLOEXEC, 0644);

    if (fd >= 0)
        close((int)fd);
    return fd;
}

void op_refused_name(void)
{
    struct node *directory = any_directory();
    struct node *node = any_node();
    struct node *object = any_of(NODE_OBJECT);
    char path[PATH_MAX], name[300];
    unsigned kind = (unsigned)dice_below(&model.dice, 10);

    say("must refuse: names, kind %u", kind);
    memset(name, 'x', 256);
    name[256] = '\0';
    switch (kind) {
    case 0:
        CHECK_REFUSED(create_refused(path_in(directory, name), 0), "create with", "256 letters",
                      ENAMETOOLONG);
        break;
    case 1:
        CHECK_REFUSED(mkdir(path_in(directory, name), 0755), "mkdir with", "256 letters",
                      ENAMETOOLONG);
        break;
    case 2:
        if (child_of(directory, "missing"))
            break;
        CHECK_REFUSED(create_refused(path_in(directory, "missing/x"), 0), "create in", "missing/",
                      ENOENT);
        break;
    case 3:
        if (!object)
            break;
        snprintf(path, sizeof(path), "%s/x", path_of(object));
        CHECK_REFUSED(create_refused(path, 0), "create in a link to an object", short_path(path),
                      ENOTDIR);
        break;
    case 4:
        if (node)
            CHECK_REFUSED(create_refused(path_of(node), O_EXCL), "create, exclusive,",
                          short_path(path_of(node)), EEXIST);
        break;
    case 5:
        snprintf(path, sizeof(path), "%s/fresh", mount_root());
        CHECK_REFUSED(create_refused(path, 0), "create in", "the root", EPERM, EROFS, EACCES);
        CHECK_REFUSED(mkdir(path, 0755), "mkdir in", "the root", EPERM, EROFS, EACCES);
        break;
    case 6:
        CHECK_REFUSED(open(mount_object_path("zz"), O_RDONLY), "open", "objects/zz", ENOENT);
        CHECK_REFUSED(open(mount_object_path("ABCDEF0123456789ABCDEF0123456789ABCDEF01"), O_RDONLY),
                      "open", "an ID in capitals", ENOENT);
        CHECK_REFUSED(open(mount_object_path("00000000000000000000000000000000ffffffff"), O_RDONLY),
                      "open", "an unknown ID", ENOENT);
        break;
    case 7:
        snprintf(path, sizeof(path), "%s/staging", mount_root());
        CHECK_REFUSED(rmdir(path), "rmdir", "staging", EBUSY, EPERM, EROFS, EACCES);
        break;
    case 8:
        if (!object)
            break;
        snprintf(path, sizeof(path), "%s/run/moved", mount_root());
        CHECK_REFUSED(rename(path_of(object), path), "rename to", "run/", EXDEV);
        break;
    case 9:
        if (object)
            CHECK_REFUSED(open(path_of(object), O_RDONLY | O_DIRECTORY), "open as a directory",
                          short_path(path_of(object)), ENOTDIR);
        break;
    }
}

void op_refused_attribute(void)
{
    struct node *directory = any_directory();
    struct object *object = any_named_object();
    const char *path = path_in(directory, "attributes");
    char value[256];
    ssize_t got;
    int fd;

    if (object) {
        say("attributes of %s", object->id);
        got = getxattr(mount_object_path(object->id), "user.mobula.state", value, sizeof(value));
        CHECK(got == 5 && memcmp(value, "ready", 5) == 0, "user.mobula.state: %zd, %.*s", got,
              (int)(got > 0 ? got : 0), value);
        got = getxattr(mount_object_path(object->id), "user.mobula.tier", value, sizeof(value));
        CHECK((got == 6 && (memcmp(value, "inline", 6) == 0 || memcmp(value, "memory", 6) == 0)) ||
                  (got == 4 && memcmp(value, "disk", 4) == 0),
              "user.mobula.tier: %zd", got);
        CHECK_REFUSED(getxattr(mount_object_path(object->id), "user.none", value, sizeof(value)),
                      "getxattr", "user.none", ENODATA);
    }
    if (child_of(directory, "attributes"))
        return;
    say("must refuse: attributes of %s", short_path(path));
    fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    CHECK_CALL(fd, "create", short_path(path));
    CHECK_REFUSED(fsetxattr(fd, "user.mobula.tier", "disk", 4, 0), "fsetxattr", "user.mobula.tier",
                  EPERM);
    CHECK_REFUSED(fsetxattr(fd, "user.mobula.refs", "nonsense", 8, 0), "fsetxattr of nonsense",
                  "user.mobula.refs", EINVAL);
    CHECK_REFUSED(
        fsetxattr(fd, "user.mobula.refs", "0123456789012345678901234567890123456789", 40, 0),
        "fsetxattr of an unknown ID", "user.mobula.refs", EINVAL);
    CHECK_REFUSED(fgetxattr(fd, "user.none", value, sizeof(value)), "fgetxattr", "user.none",
                  ENODATA);
    CHECK_CALL(unlink(path), "unlink", short_path(path));
    CHECK(close(fd) == 0, "close: %s", strerror(errno));
}

/* --- jobs --- */

static void read_whole(const char *path, char *out, size_t bytes)
{
    cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got;

    CHECK_CALL(fd, "open", short_path(path));
    got = mob_read_full(fd, out, bytes - 1);
    CHECK(got >= 0, "read %s: %s", short_path(path), strerror((int)-got));
    out[got] = '\0';
}

/* Waits for a result without blocking in open, as a program with an event loop does. */
static void poll_result(const char *path)
{
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    struct pollfd waiting = {.fd = fd, .events = POLLIN};
    char byte;
    ssize_t got;

    CHECK_CALL(fd, "open with O_NONBLOCK", short_path(path));
    while ((got = read(fd, &byte, 1)) < 0) {
        int rc;

        CHECK(errno == EAGAIN, "read of a pending %s: %s", short_path(path), strerror(errno));
        rc = poll(&waiting, 1, 15000);
        CHECK(rc == 1, "poll of a pending %s: %d (%s)", short_path(path), rc, strerror(errno));
    }
    close(fd);
}

/* Drops `cat` of an object as run/model-STEP and gives its ID. */
static void drop_cat(const struct object *object, const char *path, struct mob_id *job)
{
    char text[300], target[300] = "";
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);

    CHECK_CALL(fd, "create", short_path(path));
    snprintf(text, sizeof(text), "{\"command\": [\"cat\", {\"object\": \"%s\"}]}", object->id);
    CHECK(mob_write_full(fd, text, strlen(text)) == 0, "write of a spec: %s", strerror(errno));
    CHECK(close(fd) == 0, "close of a spec: %s", strerror(errno));
    CHECK(readlink(path, target, sizeof(target) - 1) > 0, "readlink %s: %s", short_path(path),
          strerror(errno));
    CHECK(strncmp(target, "../jobs/", 8) == 0 && mob_id_parse(target + 8, strlen(target + 8), job),
          "%s: link to %s, not to a job", short_path(path), target);
}

static void check_job_file(const char *id, const char *file, const char *expected)
{
    char path[PATH_MAX], text[300];

    snprintf(path, sizeof(path), "%s/jobs/%s/%s", mount_root(), id, file);
    read_whole(path, text, sizeof(text));
    CHECK(strcmp(text, expected) == 0, "%s of cat is %s", file, text);
}

/* A `cat` of an object: waits, compares; mostly keeps the result by a name of its own. */
void op_job(void)
{
    struct object *object = any_named_object(), *result;
    struct node *directory = any_directory(), *node;
    const char *name = any_name();
    char path[PATH_MAX], id[41], result_id[41];
    struct mob_id job, output;
    time_t from = time(NULL);

    if (!object || !dice_percent(&model.dice, model.job_percent))
        return;
    snprintf(path, sizeof(path), "%s/run/model-%llu", mount_root(), (unsigned long long)model.step);
    say("job: cat %s", object->id);
    drop_cat(object, path, &job);
    mob_id_format(&job, id);
    output = mob_id_with_index(&job, MOB_INDEX_FIRST_OUTPUT);
    mob_id_format(&output, result_id);
    if (dice_percent(&model.dice, 40))
        poll_result(mount_object_path(result_id));
    result = object_new(result_id, object->data, object->size, 0444);
    result->names = 1; /* the job's */
    result->committed_from = from;
    check_object_content(result, mount_object_path(result_id)); /* opening waits for the end */
    result->committed_to = time(NULL);
    check_job_file(id, "exit_code", "0\n");
    check_job_file(id, "state", "succeeded\n");
    check_object_stat(result, mount_object_path(result_id));
    check_object_stat(object, mount_object_path(object->id)); /* the job has let go of it */
    if (!child_of(directory, name)) {
        say("keep the result as %s", short_path(path_in(directory, name)));
        CHECK_CALL(link(mount_object_path(result_id), path_in(directory, name)), "link result to",
                   short_path(path_in(directory, name)));
        node = node_add(directory, name, NODE_OBJECT);
        node->object = result;
        result->names++;
    }
    CHECK_CALL(unlink(path), "unlink", short_path(path));
    result->names--;
    if (result->names)
        check_object_stat(result, mount_object_path(result_id));
    else
        object_release(result);
}
