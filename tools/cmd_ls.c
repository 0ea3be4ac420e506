/* mobula ls: objects or jobs, as they are read from the directory; a million of them take no
 * memory. */
#include "tools/cli_mount.h"

#include <dirent.h>
#include <fcntl.h>
#include <pwd.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

static const char help[] =
    "Usage: mobula ls [objects|jobs] [-l] [--json]\n"
    "List the IDs of objects (default; pending ones are not listed) or jobs.\n"
    "\n"
    "  -l, --long         objects: tier, size, references, user, time, ID;\n"
    "                     jobs: state, user, time, ID, command\n"
    "      --json         print JSON, with all of that\n"
    "      --mount DIR    the mount to use\n"
    "\n"
    "Example:\n"
    "  mobula ls -l objects\n";

struct listing {
    const struct cli *cli;
    const struct cli_mount *mount;
    bool jobs, with_details;
    uint64_t shown;
    uid_t uid; /* of `user` */
    char user[64];
};

static const char *user_name(struct listing *listing, uid_t uid)
{
    if (listing->user[0] && listing->uid == uid)
        return listing->user;
    const struct passwd *entry = getpwuid(uid);
    listing->uid = uid;
    if (entry)
        snprintf(listing->user, sizeof listing->user, "%s", entry->pw_name);
    else
        snprintf(listing->user, sizeof listing->user, "%u", (unsigned)uid);
    return listing->user;
}

static const char *time_text(const struct timespec *when, char out[32])
{
    struct tm calendar;
    if (!localtime_r(&when->tv_sec, &calendar) ||
        !strftime(out, 32, "%Y-%m-%d %H:%M:%S", &calendar))
        snprintf(out, 32, "-");
    return out;
}

static void print_element(struct listing *listing, json_t *value)
{
    cleanup_free char *text = value ? json_dumps(value, CLI_JSON_FLAGS) : NULL;
    json_decref(value);
    if (text)
        printf("%s\n  %s", listing->shown ? "," : "", text);
}

static void show_object(struct listing *listing, const struct mob_id *id, const char *id_text,
                        const struct stat *st)
{
    char when[32];
    cleanup_free char *tier = cli_mount_xattr(listing->mount, id, "tier");
    const char *user = user_name(listing, st->st_uid);
    if (listing->cli->json)
        print_element(listing,
                      json_pack("{s:s, s:s*, s:I, s:I, s:s, s:f, s:b}", "id", id_text, "tier", tier,
                                "size", (json_int_t)st->st_size, "references",
                                (json_int_t)st->st_nlink, "user", user, "mtime",
                                (double)st->st_mtim.tv_sec + (double)st->st_mtim.tv_nsec / 1e9,
                                "executable", (st->st_mode & 0111) != 0));
    else
        printf("%-7s %14lld %4lu %-10s %s %s\n", tier ? tier : "-", (long long)st->st_size,
               (unsigned long)st->st_nlink, user, time_text(&st->st_mtim, when), id_text);
}

/* The command of a spec, as a person would type it, on one line. */
static void command_text(const char *spec, char *out, size_t out_bytes)
{
    json_error_t error;
    json_t *root = spec ? json_loads(spec, 0, &error) : NULL;
    json_t *command = json_object_get(root, "command");
    size_t used = 0, place;
    json_t *word;
    out[0] = '\0';
    json_array_foreach(command, place, word)
    {
        const char *text = json_string_value(word);
        const char *reference = json_string_value(json_object_get(word, "object"));
        if (!text)
            text = reference ? reference : json_string_value(json_object_get(word, "output"));
        used += (size_t)snprintf(out + used, out_bytes - used, "%s%s", place ? " " : "",
                                 text ? text : "{...}");
        if (used >= out_bytes)
            break;
    }
    if (!root && spec)
        snprintf(out, out_bytes, "%.*s", (int)strcspn(spec, "\n"), spec);
    for (char *c = out; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            *c = ' ';
    json_decref(root);
}

static void show_job(struct listing *listing, const char *id_text, const struct stat *st)
{
    char path[96], command[160], when[32];
    snprintf(path, sizeof path, "jobs/%.40s/state", id_text);
    cleanup_free char *state = cli_mount_read(listing->mount, path);
    snprintf(path, sizeof path, "jobs/%.40s/spec", id_text);
    cleanup_free char *spec = cli_mount_read(listing->mount, path);
    command_text(spec, command, sizeof command);
    size_t bytes = strlen(command);
    while (bytes && !mob_is_utf8(command, bytes))
        command[--bytes] = '\0'; /* it was cut within a character */
    const char *user = user_name(listing, st->st_uid);
    if (listing->cli->json)
        print_element(listing,
                      json_pack("{s:s, s:s*, s:s, s:f, s:s}", "id", id_text, "state", state, "user",
                                user, "mtime",
                                (double)st->st_mtim.tv_sec + (double)st->st_mtim.tv_nsec / 1e9,
                                "command", command));
    else
        printf("%-10s %-10s %s %s %s\n", state ? state : "-", user, time_text(&st->st_mtim, when),
               id_text, command);
}

/* False: standard output takes no more. */
static bool show(struct listing *listing, DIR *directory, const char *name)
{
    struct mob_id id;
    struct stat st;
    if (!mob_id_parse(name, strlen(name), &id))
        return true;
    if (!listing->with_details) {
        printf("%s\n", name);
    } else if (fstatat(dirfd(directory), name, &st, AT_SYMLINK_NOFOLLOW)) {
        return true; /* freed since the directory was read */
    } else if (listing->jobs) {
        show_job(listing, name, &st);
    } else {
        show_object(listing, &id, name, &st);
    }
    listing->shown++;
    return !ferror(stdout);
}

static int list(struct listing *listing)
{
    const char *name = listing->jobs ? "jobs" : "objects";
    int fd = openat(listing->mount->fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    if (!directory) {
        int error = -errno;
        mob_cleanup_fd(&fd);
        return cli_fail(listing->cli, cli_status(error), "%s/%s: %s", listing->mount->path, name,
                        cli_errno_text(error));
    }
    int status = EX_OK;
    if (listing->cli->json)
        putchar('[');
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(directory);
        if (!entry && errno)
            status = cli_fail(listing->cli, cli_status(-errno), "%s/%s: %s", listing->mount->path,
                              name, strerror(errno));
        if (!entry || !show(listing, directory, entry->d_name))
            break;
    }
    if (listing->cli->json)
        fputs(listing->shown ? "\n]\n" : "]\n", stdout);
    closedir(directory);
    return status;
}

static int run(struct cli *cli, int argc, char **argv)
{
    static const struct option longs[] = {
        CLI_COMMON_OPTIONS, CLI_JSON_OPTION, {"long", no_argument, NULL, 'l'}, {NULL, 0, NULL, 0}};
    cleanup_mount struct cli_mount mount = CLI_MOUNT_NONE;
    struct listing listing = {.cli = cli, .mount = &mount};
    while (cli_getopt(cli, argc, argv, "l", longs) != -1)
        listing.with_details = true;
    if (argc - optind > 1)
        cli_usage(cli, "expected objects or jobs, not both");
    const char *what = argc > optind ? argv[optind] : "objects";
    if (!strcmp(what, "jobs"))
        listing.jobs = true;
    else if (!strcmp(what, "actors") || !strcmp(what, "nodes"))
        return cli_fail(cli, EX_UNAVAILABLE,
                        "'%s' is not there yet: this release has objects and jobs", what);
    else if (strcmp(what, "objects"))
        cli_usage(cli, "'%s': expected objects or jobs", what);
    listing.with_details |= cli->json;
    struct mob_error err = {0};
    if (cli_mount_find(cli, &mount, &err))
        return cli_report(cli, &err);
    return list(&listing);
}

const struct cli_command cmd_ls = {"ls", "list objects or jobs", help, run};
