/* Unit tests of what a spill directory says of itself: mobula-spill, names, headers of files. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/base/util.h"
#include "core/store/disk_header.h"
#include "tests/unit/unit.h"

enum { MIB = 1 << 20 };

/* --- what the filesystem says --- */

static int refuse_set;         /* fsetxattr(2) fails with this */
static int refuse_read;        /* pread(2), likewise */
static size_t most_read;       /* 0, or a read gives no more */
static unsigned reads_at_once; /* so many reads are let through before either */

int __real_fsetxattr(int fd, const char *name, const void *value, size_t bytes, int flags);
int __wrap_fsetxattr(int fd, const char *name, const void *value, size_t bytes, int flags);
int __wrap_fsetxattr(int fd, const char *name, const void *value, size_t bytes, int flags)
{
    if (!refuse_set)
        return __real_fsetxattr(fd, name, value, bytes, flags);
    errno = refuse_set;
    return -1;
}

typedef ssize_t reader(int fd, void *data, size_t bytes, off_t offset);
reader __real_pread, __real_pread64, __wrap_pread, __wrap_pread64;
static ssize_t read_some(reader *real, int fd, void *data, size_t bytes, off_t offset)
{
    if (reads_at_once) {
        reads_at_once--;
        return real(fd, data, bytes, offset);
    }
    if (refuse_read) {
        errno = refuse_read;
        return -1;
    }
    return real(fd, data, most_read && bytes > most_read ? most_read : bytes, offset);
}
ssize_t __wrap_pread(int fd, void *data, size_t bytes, off_t offset)
{
    return read_some(__real_pread, fd, data, bytes, offset);
}
ssize_t __wrap_pread64(int fd, void *data, size_t bytes, off_t offset)
{
    return read_some(__real_pread64, fd, data, bytes, offset);
}

/* --- an example --- */

static const struct disk_header example = {
    .id = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20}},
    .file = 0x1234,
    .size = (uint64_t)5 << 40,
    .mtime_ns = UINT64_C(1764000000123456789),
    .mode = 0555,
    .uid = 1000,
    .gid = UINT32_MAX,
    .sealed = true,
    .digest = {0xff, 0xfe, 0xfd, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13},
};

static void check_same(const struct disk_header *is, const struct disk_header *expected)
{
    assert_memory_equal(is->id.bytes, expected->id.bytes, MOB_ID_BYTES);
    assert_true(is->file == expected->file && is->size == expected->size);
    assert_true(is->mtime_ns == expected->mtime_ns);
    assert_int_equal(is->mode, expected->mode);
    assert_true(is->uid == expected->uid && is->gid == expected->gid);
    assert_int_equal(is->sealed, expected->sealed);
    assert_int_equal(is->encrypted, expected->encrypted);
    assert_memory_equal(is->digest, expected->digest, DISK_DIGEST_BYTES);
}

/* --- headers as bytes --- */

static void a_header_is_read_as_it_was_written(void **state)
{
    uint8_t bytes[DISK_HEADER_BYTES];
    struct disk_header is, open = example;
    (void)state;
    disk_header_encode(&example, bytes);
    assert_memory_equal(bytes, "mobulaob\1\0\0\0\1\0\0\0\1\2\3", 19);
    assert_memory_equal(bytes + 36, "\0\0\x10\0\0\0\0\0\0\5\0\0", 12);
    assert_int_equal(disk_header_decode(bytes, sizeof bytes, &is), 0);
    check_same(&is, &example);
    open.sealed = false; /* its digest is not written */
    disk_header_encode(&open, bytes);
    assert_int_equal(disk_header_decode(bytes, sizeof bytes, &is), 0);
    memset(open.digest, 0, sizeof open.digest);
    check_same(&is, &open);
}

static void a_header_says_that_its_file_is_encrypted_and_how_long_it_is(void **state)
{
    uint8_t bytes[DISK_HEADER_BYTES], plain[DISK_HEADER_BYTES];
    struct disk_header is, encrypted = example, open;
    (void)state;
    encrypted.encrypted = true;
    disk_header_encode(&example, plain);
    disk_header_encode(&encrypted, bytes);
    assert_int_equal(bytes[12], 3);
    assert_memory_equal(bytes, plain, 12); /* and nothing else in it is different */
    assert_memory_equal(bytes + 13, plain + 13, 96 - 13);
    assert_int_equal(disk_header_decode(bytes, sizeof bytes, &is), 0);
    check_same(&is, &encrypted);
    open = encrypted;
    open.sealed = false;
    memset(open.digest, 0, sizeof open.digest);
    disk_header_encode(&open, bytes);
    assert_int_equal(bytes[12], 2);
    assert_int_equal(disk_header_decode(bytes, sizeof bytes, &is), 0);
    check_same(&is, &open);
    assert_true(disk_header_file_bytes(&example) == example.size);
    assert_true(disk_header_file_bytes(&encrypted) == cipher_file_bytes(example.size));
}

static void a_header_with_any_bit_flipped_or_byte_missing_is_refused(void **state)
{
    uint8_t bytes[DISK_HEADER_BYTES + 1] = {0};
    struct disk_header is;
    (void)state;
    disk_header_encode(&example, bytes);
    for (size_t bit = 0; bit < 8 * DISK_HEADER_BYTES; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_int_equal(disk_header_decode(bytes, DISK_HEADER_BYTES, &is), -EBADMSG);
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    for (size_t count = 0; count <= sizeof bytes; count++)
        assert_int_equal(disk_header_decode(bytes, count, &is),
                         count == DISK_HEADER_BYTES ? 0 : -EBADMSG);
}

/* With a checksum that fits. */
static void a_header_that_says_what_cannot_be_is_refused(void **state)
{
    uint8_t bytes[DISK_HEADER_BYTES];
    struct disk_header is, wrong[] = {example, example, example, example};
    (void)state;
    wrong[0].size = (uint64_t)INT64_MAX + 1;
    wrong[1].file = 0;
    wrong[2].file = UINT64_C(1) << 48;
    wrong[3].mode = S_IFREG | 0444;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(wrong); i++) {
        disk_header_encode(&wrong[i], bytes);
        assert_int_equal(disk_header_decode(bytes, sizeof bytes, &is), -EBADMSG);
    }
    /* version, flags, bytes of a block, what is 0 */
    static const size_t places[] = {8, 12, 13, 36, 76};
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(places); i++) {
        disk_header_encode(&example, bytes);
        bytes[places[i]] |= 4;
        uint64_t sum = XXH3_64bits(bytes, 96); /* in the order of this machine, as most have it */
        memcpy(bytes + 96, &sum, sizeof sum);
        assert_int_equal(disk_header_decode(bytes, sizeof bytes, &is), -EPROTO);
    }
}

/* --- names and mobula-spill --- */

static void names_of_data_files_are_sixteen_digits(void **state)
{
    char name[DATA_NAME_BYTES];
    uint64_t file = 0;
    static const char *const wrong[] = {"",
                                        "12",
                                        "00000000000000010",
                                        "000000000000000A",
                                        "000000000000000/",
                                        "0000000000000001",
                                        "0001000000000000"};
    (void)state;
    assert_string_equal(data_name(0xabcdef012345, name), "0000abcdef012345");
    assert_true(data_name_parse(name, &file));
    assert_true(file == 0xabcdef012345);
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(wrong); i++)
        assert_false(data_name_parse(wrong[i], &file));
}

static void an_identity_is_read_with_its_directory_or_as_an_older_version_wrote_it(void **state)
{
    struct disk_identity identity = {.owner = {0xab, 2, 3, 4, 5, 6, 7, 8}}, is;
    char text[DISK_IDENTITY_TEXT_BYTES], other[DISK_IDENTITY_BYTES];
    (void)state;
    disk_identity_format(&identity, text);
    assert_string_equal(text, "mobula spill directory\nversion 1\nowner ab02030405060708\n");
    assert_int_equal(disk_identity_parse(text, strlen(text), &is), 0);
    assert_memory_equal(is.owner, identity.owner, MOB_ID_OWNER_BYTES);
    assert_string_equal(is.directory, "");
    assert_int_equal(disk_identity_new(identity.directory), 0);
    assert_int_equal(disk_identity_new(other), 0);
    assert_string_not_equal(identity.directory, other);
    assert_int_equal(strlen(identity.directory), 32);
    disk_identity_format(&identity, text);
    assert_int_equal(disk_identity_parse(text, strlen(text), &is), 0);
    assert_string_equal(is.directory, identity.directory);
    /* Cut anywhere but where the older version ended, or with any byte changed. */
    for (size_t count = 0; count < strlen(text); count++)
        assert_int_equal(disk_identity_parse(text, count, &is), count == 56 ? 0 : -EINVAL);
    for (size_t i = 0; i < strlen(text); i++) {
        text[i] ^= 0x80;
        assert_int_equal(disk_identity_parse(text, strlen(text), &is), -EINVAL);
        text[i] ^= 0x80;
    }
    assert_int_equal(disk_identity_parse(text, strlen(text) + 1, &is), -EINVAL);
}

static void an_identity_may_name_a_key(void **state)
{
    static const char name[] = "0123456789abcdef0123456789abcdef";
    struct disk_identity identity = {.owner = {0xab, 2, 3, 4, 5, 6, 7, 8}}, is;
    char text[2 * DISK_IDENTITY_TEXT_BYTES], without[DISK_IDENTITY_TEXT_BYTES];
    (void)state;
    assert_int_equal(disk_identity_new(identity.directory), 0);
    disk_identity_format(&identity, without);
    strcpy(identity.key, name);
    disk_identity_format(&identity, text);
    /* It is one line more, the last. */
    assert_memory_equal(text, without, strlen(without));
    assert_string_equal(text + strlen(without), "key 0123456789abcdef0123456789abcdef\n");
    assert_int_equal(disk_identity_parse(text, strlen(text), &is), 0);
    assert_string_equal(is.key, name);
    assert_string_equal(is.directory, identity.directory);
    assert_int_equal(disk_identity_parse(without, strlen(without), &is), 0);
    assert_string_equal(is.key, "");
    for (size_t count = 0; count < strlen(text); count++)
        assert_int_equal(disk_identity_parse(text, count, &is),
                         count == 56 || count == strlen(without) ? 0 : -EINVAL);
    for (size_t i = 0; i < strlen(text); i++) {
        text[i] ^= 0x80;
        assert_int_equal(disk_identity_parse(text, strlen(text), &is), -EINVAL);
        text[i] ^= 0x80;
    }
    /* Not before the directory, and not twice. */
    snprintf(text, sizeof text, "%.56skey %s\n%s", without, name, without + 56);
    assert_int_equal(disk_identity_parse(text, strlen(text), &is), -EINVAL);
    snprintf(text, sizeof text, "%.56skey %s\nkey %s\n", without, name, name);
    assert_int_equal(disk_identity_parse(text, strlen(text), &is), -EINVAL);
}

/* --- headers of files --- */

struct file {
    int fd;
    struct disk_header header;
};

static int setup(void **state)
{
    struct file *file = calloc(1, sizeof *file);
    char path[] = "/tmp/mobula-header-XXXXXX";
    refuse_set = refuse_read = 0;
    most_read = reads_at_once = 0;
    file->fd = mkstemp(path);
    assert_true(file->fd >= 0 && unlink(path) == 0);
    file->header = example;
    *state = file;
    return 0;
}

static int teardown(void **state)
{
    struct file *file = *state;
    refuse_set = refuse_read = 0;
    close(file->fd);
    free(file);
    return 0;
}

static bool has_attributes(const struct file *file)
{
    return fsetxattr(file->fd, "user.test", "", 0, 0) == 0;
}

/* Verifying knows nothing of what is in a block, encrypted or not. */
static void fill(struct file *file, uint64_t content)
{
    struct spill_sum *sums = calloc(spill_block_count(content) + 1, sizeof *sums);
    size_t stride = file->header.encrypted ? MIB + 4096 : MIB;
    char *block = malloc(stride);
    file->header.size = content;
    uint64_t bytes = content + spill_block_count(content) * (stride - MIB);
    assert_int_equal(ftruncate(file->fd, 0), 0);
    for (uint64_t done = 0; done < bytes; done += stride) {
        size_t part = bytes - done < stride ? (size_t)(bytes - done) : stride;
        for (size_t i = 0; i < part; i++)
            block[i] = (char)((done >> 20) + i * 7 + i / 4096);
        assert_int_equal(mob_pwrite_full(file->fd, block, part, (off_t)done), 0);
        spill_sum_block(block, part, &sums[done / stride]);
    }
    disk_header_seal(&file->header, sums);
    free(block);
    free(sums);
}

static void a_file_gets_its_header_once(void **state)
{
    struct file *file = *state;
    struct disk_header is;
    struct stat before, after;
    if (!has_attributes(file))
        skip();
    assert_int_equal(disk_header_read(file->fd, &is), -ENODATA);
    assert_int_equal(disk_header_write(file->fd, &example), 0);
    assert_int_equal(disk_header_read(file->fd, &is), 0);
    check_same(&is, &example);
    assert_int_equal(fstat(file->fd, &before), 0);
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    assert_int_equal(disk_header_write(file->fd, &example), 0);
    assert_int_equal(fstat(file->fd, &after), 0);
    assert_memory_equal(&before.st_ctim, &after.st_ctim, sizeof before.st_ctim);
    file->header.uid++;
    assert_int_equal(disk_header_write(file->fd, &file->header), 0);
    assert_int_equal(disk_header_read(file->fd, &is), 0);
    check_same(&is, &file->header);
}

static void a_torn_attribute_is_no_header(void **state)
{
    struct file *file = *state;
    uint8_t bytes[DISK_HEADER_BYTES + 40] = {0};
    struct disk_header is;
    if (!has_attributes(file))
        skip();
    disk_header_encode(&example, bytes);
    for (size_t count = 0; count <= sizeof bytes; count += 8) {
        assert_int_equal(fsetxattr(file->fd, DISK_HEADER_NAME, bytes, count, 0), 0);
        assert_int_equal(disk_header_read(file->fd, &is),
                         count == DISK_HEADER_BYTES ? 0 : -EBADMSG);
    }
}

static void where_a_header_cannot_be_set_none_is_left_of_somebody_else(void **state)
{
    struct file *file = *state;
    struct disk_header is;
    static const int refusals[] = {ENOSPC, EDQUOT, EIO};
    if (!has_attributes(file))
        skip();
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(refusals); i++) {
        assert_int_equal(disk_header_write(file->fd, &example), 0);
        file->header.size++;
        refuse_set = refusals[i];
        assert_int_equal(disk_header_write(file->fd, &file->header), -refusals[i]);
        refuse_set = 0;
        assert_int_equal(disk_header_read(file->fd, &is), -ENODATA);
    }
    refuse_set = EOPNOTSUPP;
    assert_int_equal(disk_header_write(file->fd, &example), -EOPNOTSUPP);
}

/* --- verifying --- */

static const uint64_t sizes[] = {
    0, 1, 4095, MIB - 1, MIB, MIB + 1, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 9 * MIB, 16 * MIB + 4097};

static errint_t verify(struct file *file, uint64_t *read_bytes)
{
    uint64_t bytes;
    return disk_header_verify(file->fd, &file->header, read_bytes ? read_bytes : &bytes);
}

static void verify_any_size(struct file *file)
{
    uint64_t read_bytes;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(sizes); i++)
        for (int direct = 0; direct < 2; direct++) {
            fill(file, sizes[i]);
            assert_int_equal(fsync(file->fd), 0);
            if (fcntl(file->fd, F_SETFL, direct ? O_DIRECT : 0) < 0)
                continue;
            assert_int_equal(verify(file, &read_bytes), 0);
            assert_true(read_bytes == disk_header_file_bytes(&file->header));
            assert_int_equal(fcntl(file->fd, F_SETFL, 0), 0);
        }
}

static void files_of_any_size_are_verified_past_the_page_cache_and_through_it(void **state)
{
    verify_any_size(*state);
}

static void encrypted_files_of_any_size_are_verified_without_a_key(void **state)
{
    struct file *file = *state;
    file->header.encrypted = true;
    verify_any_size(file);
}

static void flip_everywhere(struct file *file, const off_t *places, size_t count)
{
    char byte;
    fill(file, 9 * MIB + 5);
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(pread(file->fd, &byte, 1, places[i]), 1);
        byte ^= 4;
        assert_int_equal(pwrite(file->fd, &byte, 1, places[i]), 1);
        assert_int_equal(verify(file, NULL), -EBADMSG);
        byte ^= 4;
        assert_int_equal(pwrite(file->fd, &byte, 1, places[i]), 1);
        assert_int_equal(verify(file, NULL), 0);
    }
}

static void a_flipped_bit_anywhere_is_found(void **state)
{
    static const off_t places[] = {0, MIB - 1, MIB, 8 * MIB - 1, 8 * MIB, 9 * MIB + 4};
    flip_everywhere(*state, places, MOB_ARRAY_LENGTH(places));
}

static void a_flipped_bit_anywhere_in_an_encrypted_file_is_found(void **state)
{
    enum { HEAD = 4096, STRIDE = HEAD + MIB };
    static const off_t places[] = {
        0,          HEAD - 1,       HEAD,       STRIDE - 1,        STRIDE,
        8 * STRIDE, 8 * STRIDE - 1, 9 * STRIDE, 9 * STRIDE + HEAD, 9 * STRIDE + HEAD + 4};
    struct file *file = *state;
    file->header.encrypted = true;
    flip_everywhere(file, places, MOB_ARRAY_LENGTH(places));
}

static void an_encrypted_file_of_another_length_is_found_without_reading_it(void **state)
{
    static const off_t wrong[] = {2 * MIB, 2 * (MIB + 4096) - 1, 2 * (MIB + 4096) + 1, 0};
    struct file *file = *state;
    uint64_t read_bytes = 1;
    file->header.encrypted = true;
    fill(file, 2 * MIB);
    assert_int_equal(verify(file, NULL), 0);
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(wrong); i++) {
        assert_int_equal(ftruncate(file->fd, wrong[i]), 0);
        assert_int_equal(verify(file, &read_bytes), -ENODATA);
        assert_true(read_bytes == 0);
    }
}

static void a_file_of_another_length_is_found_without_reading_it(void **state)
{
    struct file *file = *state;
    uint64_t read_bytes = 1;
    fill(file, 2 * MIB);
    assert_int_equal(ftruncate(file->fd, 2 * MIB + 1), 0);
    assert_int_equal(verify(file, &read_bytes), -ENODATA);
    assert_int_equal(ftruncate(file->fd, 2 * MIB - 1), 0);
    assert_int_equal(verify(file, &read_bytes), -ENODATA);
    assert_true(read_bytes == 0);
}

static void short_reads_are_gone_on_with_and_errors_say_where(void **state)
{
    struct file *file = *state;
    uint64_t read_bytes;
    fill(file, 17 * MIB + 100);
    most_read = 4096 * 3 + 1;
    assert_int_equal(verify(file, NULL), 0);
    if (fcntl(file->fd, F_SETFL, O_DIRECT) == 0) /* which doesn't like such lengths */
        assert_int_equal(verify(file, NULL), 0);
    most_read = 0;
    refuse_read = EIO;
    reads_at_once = 2;
    assert_int_equal(verify(file, &read_bytes), -EIO);
    assert_true(read_bytes == 16 * MIB);
}

int main(void)
{
#define FILED(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_header_is_read_as_it_was_written),
        cmocka_unit_test(a_header_says_that_its_file_is_encrypted_and_how_long_it_is),
        cmocka_unit_test(a_header_with_any_bit_flipped_or_byte_missing_is_refused),
        cmocka_unit_test(a_header_that_says_what_cannot_be_is_refused),
        cmocka_unit_test(names_of_data_files_are_sixteen_digits),
        cmocka_unit_test(an_identity_is_read_with_its_directory_or_as_an_older_version_wrote_it),
        cmocka_unit_test(an_identity_may_name_a_key),
        FILED(a_file_gets_its_header_once),
        FILED(a_torn_attribute_is_no_header),
        FILED(where_a_header_cannot_be_set_none_is_left_of_somebody_else),
        FILED(files_of_any_size_are_verified_past_the_page_cache_and_through_it),
        FILED(encrypted_files_of_any_size_are_verified_without_a_key),
        FILED(a_flipped_bit_anywhere_is_found),
        FILED(a_flipped_bit_anywhere_in_an_encrypted_file_is_found),
        FILED(an_encrypted_file_of_another_length_is_found_without_reading_it),
        FILED(a_file_of_another_length_is_found_without_reading_it),
        FILED(short_reads_are_gone_on_with_and_errors_say_where),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
