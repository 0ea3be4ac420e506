/* mobula put: files become objects. */
#include "tools/cli_object.h"
#include "tools/cli_target.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>

static const char help[] =
    "Usage: mobula put [FILE|-]... [--name NAME] [--ref ID]... [--sync] [--json]\n"
    "Put files, or standard input, into the store; print the ID of each.\n"
    "\n"
    "  -n, --name NAME    the name in staging/ (default: the ID); a name that exists is\n"
    "                     replaced; 'DIR/' puts each FILE there under its own name\n"
    "  -r, --ref ID       the new object holds this one too (may be repeated)\n"
    "  -s, --sync         wait until each is on disk and survives a power cut, name and all\n"
    "      --mount DIR    the mount to use\n"
    "      --json         print JSON\n"
    "\n"
    "Example:\n"
    "  mobula put data.csv\n"
    "  tar c src | mobula put --name src.tar\n";

struct put {
    const struct cli *cli;
    const struct cli_mount *mount;
    const char *name;
    char *refs; /* "ID ID", or NULL */
    bool sync;
    json_t *list;
};

/* What an xattr can carry at most (XATTR_SIZE_MAX of the kernel). */
enum { REFS_BYTES = 65536 };

static void add_ref(struct put *put, const char *text)
{
    struct cli_target target;
    struct mob_error err = {0};
    if (cli_target_object(put->mount, text, &target, &err)) {
        char sentence[600];
        exit(cli_fail(put->cli, cli_status(err.code), "--ref: %s",
                      mob_error_format(&err, sentence, sizeof sentence)));
    }
    size_t used = put->refs ? strlen(put->refs) : 0;
    if (used + 1 + MOB_ID_DIGITS > REFS_BYTES)
        exit(cli_fail(put->cli, EX_DATAERR,
                      "--ref: too many; put a list, an ID a line, with user.mobula.refs=content"));
    char *larger = realloc(put->refs, used + 2 + MOB_ID_DIGITS);
    if (!larger)
        exit(cli_fail(put->cli, EX_OSERR, "no memory"));
    put->refs = larger;
    snprintf(larger + used, MOB_ID_DIGITS + 2, "%s%s", used ? " " : "", target.id_text);
}

/* Fills the staged file: bytes, then references. */
static int fill(const struct put *put, int in, const char *label, int staged_fd, uint64_t *bytes)
{
    struct cli_progress progress;
    bool reading = false;
    cli_progress_start(&progress);
    errint_t error = cli_copy(in, staged_fd, bytes, &reading, &progress);
    if (error && reading)
        return cli_fail(put->cli, cli_status(error), "%s: %s", label, cli_errno_text(error));
    if (error == -ENOSPC)
        return cli_fail(put->cli, EX_IOERR, "%s: the store is full ('df %s')", label,
                        put->mount->path);
    if (error)
        return cli_fail(put->cli, cli_status(error), "%s: cannot write to the store: %s", label,
                        cli_errno_text(error));
    if (put->refs && fsetxattr(staged_fd, "user.mobula.refs", put->refs, strlen(put->refs), 0))
        return cli_fail(put->cli, EX_DATAERR, "--ref: %s",
                        errno == EINVAL ? "an object that does not exist, or no list of IDs"
                                        : strerror(errno));
    return EX_OK;
}

/* The name below the mount for `label` once its ID is known. False: too long. */
static bool final_name(const struct put *put, const char *label, const char *id, char *out)
{
    const char *name = put->name ? put->name : id;
    const char *file = "";
    if (name[0] && name[strlen(name) - 1] == '/') {
        const char *slash = strrchr(label, '/');
        file = !strcmp(label, "-") ? id : slash ? slash + 1 : label;
    }
    return snprintf(out, PATH_MAX, "staging/%s%s", name, file) < PATH_MAX;
}

static void show(const struct put *put, const char *label, const char *id, const char *path,
                 uint64_t bytes)
{
    if (put->cli->json)
        json_array_append_new(put->list,
                              json_pack("{s:s, s:s*, s:s*, s:I}", "id", id, "file",
                                        mob_is_utf8(label, strlen(label)) ? label : NULL, "name",
                                        mob_is_utf8(path, strlen(path)) ? path : NULL, "size",
                                        (json_int_t)bytes));
    else
        printf("%s\n", id);
}

/* Object and name are durable when this returns: what the mount's fsync says of an object. */
static int sync_one(const struct put *put, const char *path)
{
    cleanup_fd int fd = openat(put->mount->fd, path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && fsync(fd) == 0)
        return EX_OK;
    if (errno == EOPNOTSUPP)
        return cli_fail(put->cli, EX_UNAVAILABLE,
                        "--sync: %s is in memory, and the store has no spill directory", path);
    return cli_fail(put->cli, cli_status(-errno), "--sync: %s: %s", path, cli_errno_text(-errno));
}

static int put_one(const struct put *put, const char *label)
{
    struct mob_error err = {0};
    struct stat st;
    bool from_stdin = !strcmp(label, "-");
    cleanup_fd int opened = from_stdin ? -1 : open(label, O_RDONLY | O_CLOEXEC);
    int in = from_stdin ? STDIN_FILENO : opened;
    if (in < 0 || fstat(in, &st))
        return cli_fail(put->cli, cli_status(-errno), "%s: %s", label, strerror(errno));
    if (S_ISDIR(st.st_mode))
        return cli_fail(put->cli, EX_NOINPUT, "%s: is a directory; 'cp -r' it to %s/staging", label,
                        put->mount->path);
    mode_t mode = 0666 | (S_ISREG(st.st_mode) ? st.st_mode & 0111 : 0);
    struct cli_staged staged;
    if (cli_stage_begin(put->mount, "staging", "put", mode, &staged, &err))
        return cli_report(put->cli, &err);
    uint64_t bytes = 0;
    int status = fill(put, in, label, staged.fd, &bytes);
    struct mob_id object;
    char path[PATH_MAX], id[MOB_ID_STRING_BYTES];
    if (!status && cli_stage_commit(put->mount, &staged, &object, &err))
        status = cli_report(put->cli, &err);
    if (!status && !final_name(put, label, mob_id_format(&object, id), path))
        status = cli_fail(put->cli, EX_USAGE, "--name: too long");
    if (!status && cli_stage_rename(put->mount, &staged, path, &err))
        status = cli_fail(put->cli, cli_name_status(err.code), "%s", err.message);
    if (status) {
        cli_stage_abort(put->mount, &staged);
        return status;
    }
    if (put->sync)
        status = sync_one(put, path);
    show(put, label, id, path, bytes);
    return status;
}

static int run(struct cli *cli, int argc, char **argv)
{
    static const struct option longs[] = {CLI_COMMON_OPTIONS,
                                          CLI_JSON_OPTION,
                                          {"name", required_argument, NULL, 'n'},
                                          {"ref", required_argument, NULL, 'r'},
                                          {"sync", no_argument, NULL, 's'},
                                          {NULL, 0, NULL, 0}};
    cleanup_mount struct cli_mount mount = CLI_MOUNT_NONE;
    struct put put = {.cli = cli, .mount = &mount};
    cleanup_free const char **refs = calloc((size_t)argc + 1, sizeof *refs);
    size_t ref_count = 0;
    if (!refs)
        return cli_fail(cli, EX_OSERR, "no memory");
    for (int option; (option = cli_getopt(cli, argc, argv, "n:r:s", longs)) != -1;) {
        if (option == 'n')
            put.name = optarg;
        else if (option == 's')
            put.sync = true;
        else
            refs[ref_count++] = optarg;
    }
    char *only_stdin[] = {(char[]){"-"}, NULL};
    char **files = argc > optind ? argv + optind : only_stdin;
    int count = argc > optind ? argc - optind : 1;
    if (put.name)
        cli_check_name(cli, put.name);
    if (put.name && count > 1 && put.name[strlen(put.name) - 1] != '/')
        cli_usage(cli, "--name: one name for %d files; 'DIR/' puts each there under its own name",
                  count);
    struct mob_error err = {0};
    if (cli_mount_find(cli, &mount, &err))
        return cli_report(cli, &err);
    for (size_t i = 0; i < ref_count; i++)
        add_ref(&put, refs[i]);
    put.list = cli->json ? json_array() : NULL;
    int status = EX_OK;
    for (int i = 0; i < count; i++) {
        int one = put_one(&put, files[i]);
        status = status ? status : one;
    }
    if (cli->json)
        cli_print_json(put.list);
    free(put.refs);
    return status;
}

const struct cli_command cmd_put = {"put", "put files into the store and print their IDs", help,
                                    run};
