/* mobula stat: everything that is known of an object or a job, and who holds it. */
#include "tools/cli_job.h"

#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <time.h>

static const char help[] =
    "Usage: mobula stat ID|NAME... [--json]\n"
    "Show everything about an object or a job, with each holder of a reference to an object.\n"
    "The checksum of a large object is computed when it is first asked for.\n"
    "\n"
    "      --json         print JSON\n"
    "      --mount DIR    the mount to use\n"
    "\n"
    "Example:\n"
    "  mobula stat $(echo hello | mobula put)\n";

/* Adds text unless there is none. */
static void set_text(json_t *object, const char *key, const char *text)
{
    if (text && *text && mob_is_utf8(text, strlen(text)))
        json_object_set_new(object, key, json_string(text));
}

/* `text`, split at newlines and (for lists of IDs) spaces. */
static json_t *split(const char *text, const char *separators)
{
    json_t *list = json_array();
    while (*text) {
        size_t length = strcspn(text, separators);
        if (length && mob_is_utf8(text, length))
            json_array_append_new(list, json_stringn(text, length));
        text += length + (text[length] != '\0');
    }
    return list;
}

static void set_xattr_text(const struct cli_mount *mount, const struct mob_id *id, json_t *object,
                           const char *name)
{
    cleanup_free char *value = cli_mount_xattr(mount, id, name);
    set_text(object, name, value);
}

static void set_xattr_list(const struct cli_mount *mount, const struct mob_id *id, json_t *object,
                           const char *name, const char *separators)
{
    cleanup_free char *value = cli_mount_xattr(mount, id, name);
    if (value)
        json_object_set_new(object, name, split(value, separators));
}

static void set_inode(json_t *object, const struct stat *st)
{
    char text[64];
    struct tm calendar;
    const struct passwd *user = getpwuid(st->st_uid);
    const struct group *group = getgrgid(st->st_gid);
    snprintf(text, sizeof text, "%04o", (unsigned)(st->st_mode & 07777));
    set_text(object, "mode", text);
    json_object_set_new(object, "uid", json_integer(st->st_uid));
    json_object_set_new(object, "gid", json_integer(st->st_gid));
    set_text(object, "user", user ? user->pw_name : NULL);
    set_text(object, "group", group ? group->gr_name : NULL);
    if (gmtime_r(&st->st_mtim.tv_sec, &calendar) &&
        strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &calendar))
        set_text(object, "modified", text);
}

/* The user's own attributes: everything that is not user.mobula.*. */
static void set_other_xattrs(const struct cli_mount *mount, const char *id_text, json_t *object)
{
    char path[PATH_MAX], value[4096];
    cli_mount_path(mount, path, "objects/%s", id_text);
    ssize_t bytes = listxattr(path, NULL, 0);
    cleanup_free char *names = bytes > 0 ? calloc(1, (size_t)bytes + 1) : NULL;
    if (!names || (bytes = listxattr(path, names, (size_t)bytes)) <= 0)
        return;
    json_t *others = json_object();
    for (const char *name = names; name < names + bytes; name += strlen(name) + 1) {
        if (strncmp(name, "user.", 5) || !strncmp(name, "user.mobula.", 12))
            continue;
        ssize_t length = getxattr(path, name, value, sizeof value);
        if (length >= 0 && mob_is_utf8(value, (size_t)length) && mob_is_utf8(name, strlen(name)))
            json_object_set_new(others, name, json_stringn(value, (size_t)length));
    }
    if (json_object_size(others))
        json_object_set(object, "attributes", others);
    json_decref(others);
}

static json_t *describe_object(const struct cli_mount *mount, const struct cli_target *target,
                               const struct stat *st)
{
    json_t *object = json_pack("{s:s, s:s}", "id", target->id_text, "kind", "object");
    if (!object)
        return NULL;
    cleanup_free char *state = cli_mount_xattr(mount, &target->id, "state");
    set_text(object, "state", state);
    json_object_set_new(object, "size", json_integer(st->st_size));
    set_xattr_text(mount, &target->id, object, "tier");
    set_xattr_text(mount, &target->id, object, "place");
    set_inode(object, st);
    set_xattr_text(mount, &target->id, object, "owner");
    set_xattr_text(mount, &target->id, object, "nodes");
    set_xattr_text(mount, &target->id, object, "job");
    set_xattr_text(mount, &target->id, object, "error");
    if (state && !strcmp(state, "ready"))
        set_xattr_text(mount, &target->id, object, "sha256");
    set_xattr_list(mount, &target->id, object, "refs", " \n");
    set_other_xattrs(mount, target->id_text, object);
    json_object_set_new(object, "references", json_integer((json_int_t)st->st_nlink));
    set_xattr_list(mount, &target->id, object, "holders", "\n");
    return object;
}

static char *read_job_file(const struct cli_mount *mount, const char *id_text, const char *name)
{
    char path[96];
    snprintf(path, sizeof path, "jobs/%s/%s", id_text, name);
    return cli_mount_read(mount, path);
}

static void set_outputs(const struct cli_mount *mount, const char *id_text, json_t *job)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "jobs/%s/outputs", id_text);
    DIR *directory = NULL;
    int fd = openat(mount->fd, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || !(directory = fdopendir(fd))) {
        mob_cleanup_fd(&fd);
        return;
    }
    json_t *outputs = json_object();
    for (const struct dirent *entry; (entry = readdir(directory));) {
        struct mob_id object;
        char text[MOB_ID_STRING_BYTES];
        if (entry->d_name[0] == '.' || !mob_is_utf8(entry->d_name, strlen(entry->d_name)))
            continue;
        snprintf(path, sizeof path, "jobs/%s/outputs/%s", id_text, entry->d_name);
        if (!cli_read_link(mount, path, "objects", &object))
            json_object_set_new(outputs, entry->d_name, json_string(mob_id_format(&object, text)));
    }
    closedir(directory);
    if (json_object_size(outputs))
        json_object_set(job, "outputs", outputs);
    json_decref(outputs);
}

static json_t *describe_job(const struct cli_mount *mount, const struct cli_target *target,
                            const struct stat *st)
{
    static const char *const texts[] = {"state", "node", "error"};
    json_t *job = json_pack("{s:s, s:s}", "id", target->id_text, "kind", "job");
    if (!job)
        return NULL;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(texts); i++) {
        cleanup_free char *text = read_job_file(mount, target->id_text, texts[i]);
        set_text(job, texts[i], text);
    }
    cleanup_free char *code = read_job_file(mount, target->id_text, "exit_code");
    if (code && *code)
        json_object_set_new(job, "exit_code", json_integer(strtol(code, NULL, 10)));
    set_inode(job, st);
    struct mob_id result;
    struct mob_error err = {0};
    char id[MOB_ID_STRING_BYTES];
    if (!cli_job_result(mount, &target->id, &result, &err))
        set_text(job, "result", mob_id_format(&result, id));
    set_outputs(mount, target->id_text, job);
    cleanup_free char *usage = read_job_file(mount, target->id_text, "usage");
    if (usage && *usage)
        json_object_set_new(job, "usage", cli_parse_key_values(usage));
    cleanup_free char *spec = read_job_file(mount, target->id_text, "spec");
    json_error_t error;
    json_t *parsed = spec ? json_loads(spec, 0, &error) : NULL;
    if (parsed)
        json_object_set_new(job, "spec", parsed);
    else
        set_text(job, "spec", spec);
    return job;
}

static json_t *describe_staged(const struct cli_mount *mount, const struct cli_target *target,
                               const struct stat *st)
{
    cleanup_free char *error = cli_xattr_at(mount->fd, target->path, "error");
    json_t *staged =
        json_pack("{s:s, s:s, s:I}", "kind", error ? "file that was closed" : "file being written",
                  "state", error ? "failed" : "staged", "size", (json_int_t)st->st_size);
    set_text(staged, "error", error);
    set_text(staged, "name", target->path);
    set_inode(staged, st);
    return staged;
}

/* --- as text --- */

static void print_value(const char *key, const json_t *value)
{
    const char *text = json_string_value(value);
    if (text) {
        /* Lines of a script under each other. */
        for (const char *label = key; *text; label = "") {
            size_t length = strcspn(text, "\n");
            printf("%-12s%.*s\n", label, (int)length, text);
            text += length + (text[length] == '\n');
        }
        return;
    }
    cleanup_free char *dump = json_dumps(value, JSON_ENCODE_ANY | CLI_JSON_FLAGS);
    printf("%-12s%s\n", key, dump ? dump : "");
}

static void print_text(json_t *description)
{
    const char *key;
    json_t *value;
    json_object_foreach(description, key, value)
    {
        size_t place;
        json_t *item;
        const char *inner, *label = key; /* the macro needs `key` as it is */
        if (json_is_array(value)) {
            json_array_foreach(value, place, item) print_value(place ? "" : key, item);
        } else if (json_is_object(value) && strcmp(key, "spec")) {
            json_object_foreach(value, inner, item)
            {
                cleanup_free char *dump = json_string_value(item)
                                              ? strdup(json_string_value(item))
                                              : json_dumps(item, JSON_ENCODE_ANY | CLI_JSON_FLAGS);
                printf("%-12s%s %s\n", label, inner, dump ? dump : "");
                label = "";
            }
        } else {
            print_value(key, value);
        }
    }
}

static int stat_one(const struct cli *cli, const struct cli_mount *mount, const char *text,
                    json_t *list, bool *first)
{
    struct mob_error err = {0};
    struct cli_target target;
    struct stat st;
    if (cli_target_find(mount, text, &target, &err))
        return cli_report(cli, &err);
    if (fstatat(mount->fd, target.path, &st, AT_SYMLINK_NOFOLLOW))
        return cli_fail(cli, cli_status(-errno), "%s: %s", text, strerror(errno));
    json_t *description = target.kind == CLI_TARGET_OBJECT ? describe_object(mount, &target, &st)
                          : target.kind == CLI_TARGET_JOB  ? describe_job(mount, &target, &st)
                                                           : describe_staged(mount, &target, &st);
    if (!description)
        return cli_fail(cli, EX_OSERR, "no memory");
    if (list)
        return json_array_append_new(list, description) ? EX_OSERR : EX_OK;
    if (!*first)
        putchar('\n');
    *first = false;
    print_text(description);
    json_decref(description);
    return EX_OK;
}

static int run(struct cli *cli, int argc, char **argv)
{
    static const struct option longs[] = {CLI_COMMON_OPTIONS, CLI_JSON_OPTION, {NULL, 0, NULL, 0}};
    while (cli_getopt(cli, argc, argv, "", longs) != -1)
        continue;
    if (argc == optind)
        cli_usage(cli, "expected at least one ID or NAME");
    struct mob_error err = {0};
    cleanup_mount struct cli_mount mount = CLI_MOUNT_NONE;
    if (cli_mount_find(cli, &mount, &err))
        return cli_report(cli, &err);
    json_t *list = cli->json ? json_array() : NULL;
    int status = EX_OK;
    bool first = true;
    for (int i = optind; i < argc; i++) {
        int one = stat_one(cli, &mount, argv[i], list, &first);
        status = status ? status : one;
    }
    /* One argument gives one object, several a list. */
    if (list && argc - optind == 1 && json_array_size(list) == 1) {
        json_t *only = json_incref(json_array_get(list, 0));
        json_decref(list);
        list = only;
    }
    if (cli->json)
        cli_print_json(list);
    return status;
}

const struct cli_command cmd_stat = {"stat", "show everything about an object or a job", help, run};
