/* The journal's files are read after a crash, and may hold anything. An input is a script that
 * makes a directory of them: for each file a byte that says of which kind and number, what is done
 * to its checksums, and two bytes of length. With its checksums mended, an input gets to the
 * operations. */
#include <fcntl.h>
#include <ftw.h>
#include <string.h>
#include <sys/stat.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/base/log.h"
#include "core/base/util.h"
#include "core/store/journal_internal.h"
#include "core/store/meta.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* Instead of those of core/base/log and the C library: what is damaged is logged, thousands of
 * times a second, and room on a tmpfs costs time. */
void mob_log(enum mob_log_level level, const char *format, ...)
{
    (void)level, (void)format;
}

int fallocate(int fd, int mode, off_t offset, off_t bytes)
{
    (void)fd, (void)mode, (void)offset, (void)bytes;
    errno = EOPNOTSUPP;
    return -1;
}

static pthread_mutex_t writer = PTHREAD_MUTEX_INITIALIZER;

static void require(bool condition)
{
    if (!condition)
        abort();
}

static int remove_one(const char *path, const struct stat *info, int type, struct FTW *walk)
{
    (void)info, (void)type, (void)walk;
    return remove(path);
}

static void mend_frames(uint8_t *bytes, size_t size, uint64_t base)
{
    struct journal_frame frame;
    for (size_t at = sizeof(struct journal_file_header); at + journal_frame_length(0) <= size;) {
        memcpy(&frame, bytes + at, sizeof frame);
        frame.magic = JOURNAL_FRAME_MAGIC;
        frame.kind = 1 + frame.kind % 3;
        frame.bytes %= size;
        uint64_t length = journal_frame_length(frame.bytes);
        if (length > size - at)
            frame.bytes = (size - at - journal_frame_length(0)) / 8 * 8;
        length = journal_frame_length(frame.bytes);
        XXH128_hash_t sum = XXH3_128bits(bytes + at + sizeof frame, journal_padded(frame.bytes));
        frame.sum[0] = sum.low64;
        frame.sum[1] = sum.high64;
        frame.header_sum =
            XXH3_64bits_withSeed(&frame, offsetof(struct journal_frame, header_sum), base);
        memcpy(bytes + at, &frame, sizeof frame);
        memcpy(bytes + at + length - sizeof length, &length, sizeof length);
        at += length;
    }
}

static void mend_header(uint8_t *bytes, size_t size, uint64_t base)
{
    struct journal_file_header header = {.version = JOURNAL_VERSION, .byte_order = 1, .base = base};
    if (size < sizeof header)
        return;
    memcpy(header.magic, JOURNAL_MAGIC, sizeof header.magic);
    header.sum = XXH3_64bits(&header, offsetof(struct journal_file_header, sum));
    memcpy(bytes, &header, sizeof header);
}

/* bits 0-2: number; 3: snapshot or log; 4: header mended; 5: frames mended. */
static size_t make_file(const char *directory, const uint8_t *data, size_t bytes)
{
    char path[160], name[JOURNAL_NAME_BYTES];
    uint8_t what = data[0];
    uint64_t base = what & 7;
    size_t size = data[1] | (size_t)data[2] << 8;
    if (size > bytes - 3)
        size = bytes - 3;
    uint8_t *content = malloc(size + 1);
    require(content != NULL);
    memcpy(content, data + 3, size);
    if (what & 16)
        mend_header(content, size, base);
    if (what & 32)
        mend_frames(content, size, base);
    snprintf(path, sizeof path, "%s/journal/%s", directory,
             journal_name(base, what & 8 ? "snapshot" : "log", name));
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    require(fd >= 0 && mob_pwrite_full(fd, content, size, 0) == 0);
    close(fd);
    free(content);
    return 3 + size;
}

/* Whatever was found, what follows can be replayed. */
static void go_on(struct journal *journal, struct meta *meta)
{
    MDB_txn *txn;
    meta->journal = journal;
    require(journal->next_sequence > journal->written);
    require(meta_begin(meta, 1000, &txn) == 0);
    require(meta_put(meta, txn, META_STATE, "key", 3, "value", 5) == 0);
    require(meta_commit(txn) == 0);
    meta->journal = NULL;
}

static void try_files(const char *directory, bool replay)
{
    struct journal_options options = {.state_dir = directory, .writer = &writer};
    struct journal *journal;
    struct meta meta;
    struct mob_error err = {0};
    char path[160];
    bool damaged;
    snprintf(path, sizeof path, "%s/meta", directory);
    require(journal_open(&options, &journal, &err) == 0);
    require(meta_open(&meta, path, false, &err) == 0);
    errint_t error = replay ? journal_replay(journal, &meta, &damaged, &err)
                            : journal_resume(journal, meta_last_txn(&meta), &err);
    if (!error)
        go_on(journal, &meta);
    else
        require((error == -EINVAL || error == -EIO) && err.message[0]);
    journal_close(journal);
    meta_close(&meta);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    char directory[] = "/dev/shm/mobula-fuzz-XXXXXX", path[160];
    require(mkdtemp(directory) != NULL);
    snprintf(path, sizeof path, "%s/journal", directory);
    require(mkdir(path, 0700) == 0);
    snprintf(path, sizeof path, "%s/meta", directory);
    require(mkdir(path, 0700) == 0);
    bool replay = bytes && data[0] & 1;
    for (size_t at = 1; at + 3 <= bytes;)
        at += make_file(directory, data + at, bytes - at);
    try_files(directory, replay);
    try_files(directory, !replay);
    nftw(directory, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    return 0;
}
