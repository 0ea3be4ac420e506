/* Finding the mount; reading small files and attributes of it. */
#include "tools/cli_mount.h"

#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/xattr.h>

/* --- mountinfo --- */

/* Undoes the kernel's octal escapes (\040 for a space) in place. */
static void unescape(char *text)
{
    char *out = text;
    for (const char *in = text; *in; in++) {
        bool octal = in[0] == '\\' && in[1] >= '0' && in[1] <= '3' && in[2] >= '0' &&
                     in[2] <= '7' && in[3] >= '0' && in[3] <= '7';
        if (octal) {
            *out++ = (char)((in[1] - '0') << 6 | (in[2] - '0') << 3 | (in[3] - '0'));
            in += 3;
        } else {
            *out++ = *in;
        }
    }
    *out = '\0';
}

/* Takes the mount point out of a line of mountinfo(5) if it is a whole mobula mount (a bind mount
 * of a part of one is none). Changes the line. */
static char *parse_mountinfo(char *line)
{
    char *separator = strstr(line, " - ");
    if (!separator || strncmp(separator + 3, "fuse.mobula ", 12))
        return NULL;
    *separator = '\0';
    char *rest = NULL;
    char *field = strtok_r(line, " ", &rest);
    char *root = NULL;
    for (int i = 0; field && i < 4; i++) {
        if (i == 3)
            root = field;
        field = strtok_r(NULL, " ", &rest);
    }
    if (!field || !root || strcmp(root, "/"))
        return NULL;
    unescape(field);
    return field;
}

void cli_mount_each(bool (*each)(void *context, const char *path), void *context)
{
    cleanup_file FILE *file = fopen("/proc/self/mountinfo", "re");
    if (!file)
        return;
    cleanup_free char *line = NULL;
    size_t line_bytes = 0;
    while (getline(&line, &line_bytes, file) > 0) {
        line[strcspn(line, "\n")] = '\0';
        const char *path = parse_mountinfo(line);
        if (path && !each(context, path))
            break;
    }
}

struct search {
    const char *wanted; /* the mount that holds this path; NULL = all */
    char best[PATH_MAX];
    char first[PATH_MAX];
    unsigned count;
    char list[256]; /* for a sentence */
    bool more;      /* not all are in it */
};

static bool is_inside(const char *path, const char *mount)
{
    size_t length = strlen(mount);
    if (length == 1)
        return true;
    return !strncmp(path, mount, length) && (path[length] == '\0' || path[length] == '/');
}

static bool search_each(void *context, const char *path)
{
    struct search *search = context;
    if (search->wanted && is_inside(search->wanted, path) && strlen(path) >= strlen(search->best))
        snprintf(search->best, sizeof search->best, "%s", path);
    if (!search->count)
        snprintf(search->first, sizeof search->first, "%s", path);
    /* A stale mount under a fresh one on the same directory shows twice; it is one for us. */
    if (search->count && !strcmp(search->first, path))
        return true;
    size_t used = strlen(search->list), room = sizeof search->list - sizeof " and more";
    if (!search->more && used + strlen(path) + 2 > room) { /* whole paths, or none */
        strcpy(search->list + used, " and more");
        search->more = true;
    }
    if (!search->more)
        sprintf(search->list + used, "%s%s", search->count ? ", " : "", path);
    search->count++;
    return true;
}

/* The mount that `path` lies in, into `out`. */
static bool mount_around(const char *path, char out[PATH_MAX])
{
    struct search search = {.wanted = path};
    cli_mount_each(search_each, &search);
    if (!search.best[0])
        return false;
    snprintf(out, PATH_MAX, "%s", search.best);
    return true;
}

bool cli_mount_is_mounted(const char *path)
{
    char around[PATH_MAX];
    return mount_around(path, around) && !strcmp(around, path);
}

/* --- finding --- */

/* For tests of the command without a daemon, and for a mount seen through another filesystem: a
 * directory that has what a mount has. */
static bool looks_like_mount(const char *path)
{
    static const char *const parts[] = {"objects", "staging", "run", "jobs"};
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(parts); i++) {
        char part[PATH_MAX];
        struct stat st;
        if (snprintf(part, sizeof part, "%s/%s", path, parts[i]) >= (int)sizeof part ||
            stat(part, &st) || !S_ISDIR(st.st_mode))
            return false;
    }
    return true;
}

/* What was asked for by `source`: "$MOBULA: ", which one may not think of, or "". */
static errint_t locate_given(const char *source, const char *given, char path[PATH_MAX],
                             struct mob_error *err)
{
    char real[PATH_MAX];
    if (!realpath(given, real))
        return mob_error_set(err, -errno, "%s%s: %s", source, given, strerror(errno));
    if (mount_around(real, path))
        return 0;
    if (looks_like_mount(real)) {
        snprintf(path, PATH_MAX, "%s", real);
        return 0;
    }
    return mob_error_set(err, -ENOENT, "%s%s is no mobula mount; 'mobula up %s' makes it one",
                         source, given, given);
}

static errint_t locate_only(char path[PATH_MAX], struct mob_error *err)
{
    char here[PATH_MAX];
    if (getcwd(here, sizeof here) && mount_around(here, path))
        return 0;
    struct search search = {.wanted = NULL};
    cli_mount_each(search_each, &search);
    if (search.count == 1) {
        snprintf(path, PATH_MAX, "%s", search.first);
        return 0;
    }
    if (search.count)
        return mob_error_set(
            err, -ENOENT, "which mount? There are %s: choose with --mount or $MOBULA", search.list);
    return mob_error_set(err, -ENOENT,
                         "nothing is mounted: 'mobula up DIRECTORY' mounts a store there");
}

errint_t cli_mount_locate(const struct cli *cli, const char *argument, char path[PATH_MAX],
                          struct mob_error *err)
{
    const char *variable = getenv("MOBULA");
    if (argument)
        return locate_given("", argument, path, err);
    if (cli->mount_option)
        return locate_given("", cli->mount_option, path, err);
    if (variable && *variable)
        return locate_given("$MOBULA: ", variable, path, err);
    return locate_only(path, err);
}

errint_t cli_mount_find(const struct cli *cli, struct cli_mount *out, struct mob_error *err)
{
    out->fd = -1;
    errint_t error = cli_mount_locate(cli, NULL, out->path, err);
    if (error)
        return error;
    struct stat st;
    struct statfs fs;
    out->fd = open(out->path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    /* fstatfs(2) asks the daemon; stat(2) may be answered by what the kernel remembers of it. */
    if (out->fd >= 0 && !fstatfs(out->fd, &fs) && !fstatat(out->fd, "objects", &st, 0))
        return 0;
    error = -errno;
    cli_mount_close(out);
    if (error == -ENOTCONN || error == -ECONNABORTED)
        return mob_error_set(err, error, "%s: its daemon is dead; 'mobula up %s' brings it back",
                             out->path, out->path);
    if (error == -EIO)
        return mob_error_set(
            err, error,
            "%s: its daemon answers no more: its log says why; 'mobula down %s' ends it", out->path,
            out->path);
    return mob_error_set(err, error, "%s: %s", out->path, cli_errno_text(error));
}

void cli_mount_close(struct cli_mount *mount)
{
    mob_cleanup_fd(&mount->fd);
}

/* --- reading --- */

char *cli_mount_path(const struct cli_mount *mount, char *out, const char *format, ...)
{
    /* Too long a path is cut, and then names nothing that exists: the next call says ENOENT or
     * ENAMETOOLONG. */
    int used = snprintf(out, PATH_MAX, "%s/", mount->path);
    if (used < 0 || used >= PATH_MAX)
        return out;
    va_list args;
    va_start(args, format);
    vsnprintf(out + used, (size_t)(PATH_MAX - used), format, args);
    va_end(args);
    return out;
}

enum { SMALL_FILE_BYTES = 16 << 20 };

char *cli_mount_read(const struct cli_mount *mount, const char *path)
{
    cleanup_fd int fd = openat(mount->fd, path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    size_t capacity = 4096, used = 0;
    cleanup_free char *text = malloc(capacity);
    while (text) {
        ssize_t got = mob_read_full(fd, text + used, capacity - 1 - used);
        if (got < 0) {
            errno = (int)-got;
            return NULL;
        }
        used += (size_t)got;
        if (used < capacity - 1)
            break;
        if (capacity >= SMALL_FILE_BYTES) {
            errno = EFBIG;
            return NULL;
        }
        char *larger = realloc(text, capacity *= 2);
        if (!larger)
            return NULL;
        text = larger;
    }
    if (!text)
        return NULL;
    if (used && text[used - 1] == '\n')
        used--;
    text[used] = '\0';
    return steal_pointer(&text);
}

char *cli_xattr_at(int dir_fd, const char *path, const char *name)
{
    char link[64], full[256];
    cleanup_fd int fd = openat(dir_fd, path, O_PATH | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd); /* O_PATH: it may be pending */
    snprintf(full, sizeof full, "user.mobula.%s", name);
    for (int attempt = 0; attempt < 4; attempt++) {
        ssize_t bytes = getxattr(link, full, NULL, 0);
        if (bytes < 0)
            return NULL;
        cleanup_free char *value = malloc((size_t)bytes + 1);
        if (!value)
            return NULL;
        ssize_t got = getxattr(link, full, value, (size_t)bytes);
        if (got < 0 && errno == ERANGE)
            continue; /* it grew in between */
        if (got < 0)
            return NULL;
        while (got && (value[got - 1] == '\n' || value[got - 1] == '\0'))
            got--;
        value[got] = '\0';
        return steal_pointer(&value);
    }
    return NULL;
}

char *cli_mount_xattr(const struct cli_mount *mount, const struct mob_id *object, const char *name)
{
    char path[64] = "objects/";
    mob_id_format(object, path + strlen(path));
    return cli_xattr_at(mount->fd, path, name);
}

static json_t *parse_value(const char *text)
{
    char *end;
    size_t digits = strspn(text, "0123456789");
    if (digits && !text[digits] && digits < 19)
        return json_integer(strtoll(text, NULL, 10));
    if (digits && text[strspn(text, "0123456789.")] == '\0') {
        double value = strtod(text, &end);
        if (!*end)
            return json_real(value);
    }
    if (!strcmp(text, "yes") || !strcmp(text, "no"))
        return json_boolean(*text == 'y');
    return json_string(text);
}

json_t *cli_parse_key_values(const char *text)
{
    json_t *object = json_object();
    while (object && *text) {
        size_t length = strcspn(text, "\n");
        cleanup_free char *line = strndup(text, length);
        if (!line)
            break;
        size_t key_length = strcspn(line, " \t");
        if (line[key_length]) {
            line[key_length] = '\0';
            const char *value = line + key_length + 1;
            value += strspn(value, " \t");
            /* "0.1" is no number there. */
            bool plain = !strcmp(line, "version");
            json_object_set_new(object, line, plain ? json_string(value) : parse_value(value));
        }
        text += length + (text[length] == '\n');
    }
    return object;
}
