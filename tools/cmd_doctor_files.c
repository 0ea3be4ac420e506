/* mobula doctor --spill: what is in a spill directory, by what the directory itself says. */
#include "tools/cmd_doctor.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "core/store/disk_header.h"

/* An unknown file is not damaged, as far as can be told. */
enum verdict { INTACT, DAMAGED, UNKNOWN, VERDICTS };
static const char *const verdict_words[VERDICTS] = {"intact", "damaged", "unknown"};

struct inspection {
    const struct cli *cli;
    const char *path;
    int objects_fd;
    char **names; /* sorted */
    size_t count, capacity;
    uint64_t verdicts[VERDICTS];
    uint64_t read_bytes;
    json_t *files; /* with --json */
    bool without_attributes;
    struct cli_progress progress;
};

struct finding {
    const char *name;
    enum verdict verdict;
    struct disk_header header;
    bool has_header;
    char text[200];
};

/* --- one file --- */

static void judge(struct finding *finding, enum verdict verdict, const char *format, ...)
    MOB_PRINTF(3, 4);
static void judge(struct finding *finding, enum verdict verdict, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(finding->text, sizeof finding->text, format, args);
    va_end(args);
    finding->verdict = verdict;
}

static void judge_header(struct inspection *it, struct finding *finding, errint_t error,
                         uint64_t bytes)
{
    if (error == -EBADMSG)
        judge(finding, DAMAGED, "its header (%s) is torn", DISK_HEADER_NAME);
    else if (error == -EPROTO)
        judge(finding, UNKNOWN, "its header is of another version of mobula");
    else if (error == -EOPNOTSUPP)
        judge(finding, UNKNOWN, "it has no header: its filesystem has no user attributes");
    else if (error == -ENODATA && !bytes)
        judge(finding, UNKNOWN, "it is empty, and ready to be written");
    else if (error == -ENODATA)
        judge(finding, UNKNOWN, "it has no header: it is being written, or was left behind");
    else
        judge(finding, DAMAGED, "its header can't be read: %s", cli_errno_text(error));
    it->without_attributes |= error == -EOPNOTSUPP;
}

static void verify(struct inspection *it, struct finding *finding, int fd, uint64_t bytes)
{
    const struct disk_header *header = &finding->header;
    char name[DATA_NAME_BYTES];
    uint64_t read_bytes = 0;
    if (strcmp(data_name(header->file, name), finding->name) != 0) {
        judge(finding, DAMAGED, "its header is that of the file %s", name);
        return;
    }
    if (bytes != disk_header_file_bytes(header)) {
        judge(finding, DAMAGED, "it has %llu bytes, and should have %llu",
              (unsigned long long)bytes, (unsigned long long)disk_header_file_bytes(header));
        return;
    }
    if (!header->sealed) {
        judge(finding, UNKNOWN, "its checksums were not made yet");
        return;
    }
    errint_t error = disk_header_verify(fd, header, &read_bytes);
    it->read_bytes += read_bytes;
    if (error == -EBADMSG)
        judge(finding, DAMAGED, "its bytes are not those that were written");
    else if (error == -ENOMEM)
        judge(finding, UNKNOWN, "no memory to read it");
    else if (error)
        judge(finding, DAMAGED, "it can't be read at %llu: %s", (unsigned long long)read_bytes,
              cli_errno_text(error));
    else
        finding->verdict = INTACT;
}

/* False: it has gone meanwhile, as objects do. */
static bool inspect(struct inspection *it, struct finding *finding)
{
    struct stat st;
    uint64_t file;
    if (fstatat(it->objects_fd, finding->name, &st, AT_SYMLINK_NOFOLLOW))
        return false;
    if (!S_ISREG(st.st_mode) || !data_name_parse(finding->name, &file)) {
        judge(finding, UNKNOWN, "it is no file of mobula's");
        return true;
    }
    const int flags = O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
    cleanup_fd int fd = openat(it->objects_fd, finding->name, flags | O_DIRECT);
    if (fd < 0 && errno == EINVAL)
        fd = openat(it->objects_fd, finding->name, flags);
    if (fd < 0 && errno == ENOENT)
        return false;
    if (fd < 0 || fstat(fd, &st)) {
        judge(finding, errno == EIO ? DAMAGED : UNKNOWN, "it can't be opened: %s", strerror(errno));
        return true;
    }
    errint_t error = disk_header_read(fd, &finding->header);
    finding->has_header = !error;
    if (error)
        judge_header(it, finding, error, (uint64_t)st.st_size);
    else
        verify(it, finding, fd, (uint64_t)st.st_size);
    return true;
}

/* --- what is printed --- */

static const char *time_text(uint64_t ns, char out[32])
{
    time_t seconds = (time_t)(ns / 1000000000);
    struct tm calendar;
    if (!gmtime_r(&seconds, &calendar) || !strftime(out, 32, "%Y-%m-%dT%H:%M:%SZ", &calendar))
        return "-";
    return out;
}

/* A foreign file may have any name: what is not plain is a '?'. */
static const char *name_text(const char *name, char out[NAME_MAX + 1])
{
    size_t length = 0;
    for (; *name && length < NAME_MAX; name++)
        out[length++] = *name > ' ' && *name < 0x7f ? *name : '?';
    out[length] = '\0';
    return out;
}

static void print_finding(struct inspection *it, const struct finding *finding)
{
    const struct disk_header *header = &finding->header;
    char shown[NAME_MAX + 1];
    const char *name = name_text(finding->name, shown);
    char id[MOB_ID_STRING_BYTES] = "-", size[32] = "-", when[32] = "-";
    const char *word = verdict_words[finding->verdict], *time = "-";
    bool encrypted = finding->has_header && header->encrypted;
    if (finding->has_header) {
        mob_id_format(&header->id, id);
        mob_format_size(header->size, size);
        time = time_text(header->mtime_ns, when);
    }
    if (!it->files) {
        cli_progress_clear(&it->progress);
        printf("%-8s %-40s %10s  %-20s  %s%s%s%s\n", word, id, size, time, name,
               encrypted ? ", encrypted" : "", *finding->text ? ": " : "", finding->text);
        return;
    }
    json_t *entry = json_pack("{s:s, s:s}", "file", name, "status", word);
    if (*finding->text)
        json_object_set_new(entry, "text", json_string(finding->text));
    if (finding->has_header)
        json_object_update_new(entry, json_pack("{s:s, s:I, s:s, s:i, s:I, s:I}", "id", id, "size",
                                                (json_int_t)header->size, "time", time, "mode",
                                                (int)header->mode, "uid", (json_int_t)header->uid,
                                                "gid", (json_int_t)header->gid));
    if (encrypted)
        json_object_set_new(entry, "encrypted", json_true());
    json_array_append_new(it->files, entry);
}

static void print_summary(const struct inspection *it, const struct disk_identity *identity)
{
    char size[32];
    const uint64_t *verdicts = it->verdicts;
    mob_format_size(it->read_bytes, size);
    if (it->files)
        cli_print_json(
            json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:o}", "spill", it->path, "directory",
                      identity->directory, "intact", (json_int_t)verdicts[INTACT], "damaged",
                      (json_int_t)verdicts[DAMAGED], "unknown", (json_int_t)verdicts[UNKNOWN],
                      "read_bytes", (json_int_t)it->read_bytes, "files", it->files));
    else
        printf("%llu intact, %llu damaged, %llu unknown; %s read\n",
               (unsigned long long)verdicts[INTACT], (unsigned long long)verdicts[DAMAGED],
               (unsigned long long)verdicts[UNKNOWN], size);
}

/* --- the directory --- */

static int read_identity(struct inspection *it, int fd, struct disk_identity *identity)
{
    cleanup_free char *text = NULL;
    size_t bytes = 0;
    errint_t error = mob_read_file(fd, DISK_IDENTITY_NAME, DISK_IDENTITY_TEXT_BYTES, &text, &bytes);
    if (error == -ENOENT)
        return cli_fail(it->cli, EX_DATAERR,
                        "%s is no spill directory: it has no file %s, which names its owner",
                        it->path, DISK_IDENTITY_NAME);
    if (error && error != -EFBIG)
        return cli_fail(it->cli, cli_status(error), "%s/%s: %s", it->path, DISK_IDENTITY_NAME,
                        cli_errno_text(error));
    if (error || disk_identity_parse(text, bytes, identity))
        return cli_fail(it->cli, EX_DATAERR, "%s was made by another version of mobula: see %s/%s",
                        it->path, it->path, DISK_IDENTITY_NAME);
    return EX_OK;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool add_name(struct inspection *it, const char *name)
{
    if (it->count == it->capacity) {
        size_t capacity = it->capacity ? it->capacity * 2 : 256;
        char **names = realloc(it->names, capacity * sizeof *names);
        if (!names)
            return false;
        it->names = names;
        it->capacity = capacity;
    }
    it->names[it->count] = strdup(name);
    return it->names[it->count++] != NULL;
}

static int list(struct inspection *it, int fd)
{
    it->objects_fd = openat(fd, "objects", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    cleanup_fd int copy = it->objects_fd < 0 ? -1 : fcntl(it->objects_fd, F_DUPFD_CLOEXEC, 0);
    DIR *dir = copy < 0 ? NULL : fdopendir(copy);
    if (!dir)
        return cli_fail(it->cli, cli_status(-errno), "%s/objects: %s", it->path, strerror(errno));
    copy = -1; /* it is the DIR's */
    const struct dirent *entry;
    bool fits = true;
    while (errno = 0, fits && (entry = readdir(dir)))
        if (entry->d_name[0] != '.')
            fits = add_name(it, entry->d_name);
    int error = errno;
    closedir(dir);
    if (!fits)
        return cli_fail(it->cli, EX_OSERR, "no memory");
    if (error)
        return cli_fail(it->cli, cli_status(-error), "%s/objects: %s", it->path, strerror(error));
    if (it->count)
        qsort(it->names, it->count, sizeof *it->names, compare_names);
    return EX_OK;
}

static int inspect_all(struct inspection *it, const struct disk_identity *identity)
{
    cli_progress_start(&it->progress);
    if (it->cli->json)
        it->files = json_array();
    for (size_t i = 0; i < it->count; i++) {
        struct finding finding = {.name = it->names[i]};
        if (cli_progress_due(&it->progress))
            cli_progress_show(&it->progress, "verified %zu of %zu files", i, it->count);
        if (!inspect(it, &finding))
            continue;
        it->verdicts[finding.verdict]++;
        print_finding(it, &finding);
    }
    cli_progress_clear(&it->progress);
    print_summary(it, identity);
    if (it->verdicts[DAMAGED])
        return 1;
    if (it->without_attributes && !it->verdicts[INTACT])
        return cli_fail(it->cli, EX_UNAVAILABLE,
                        "%s: its filesystem has no user attributes, so its files can't be verified",
                        it->path);
    return EX_OK;
}

int doctor_check_files(const struct cli *cli, const char *path)
{
    struct inspection it = {.cli = cli, .path = path, .objects_fd = -1};
    struct disk_identity identity;
    cleanup_fd int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return cli_fail(cli, cli_status(-errno), "%s: %s", path, strerror(errno));
    int status = read_identity(&it, fd, &identity);
    if (!status)
        status = list(&it, fd);
    if (!status)
        status = inspect_all(&it, &identity);
    for (size_t i = 0; i < it.count; i++)
        free(it.names[i]);
    free(it.names);
    mob_cleanup_fd(&it.objects_fd);
    return status;
}
