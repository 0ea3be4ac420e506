/* core/store/spill_io: files that are encrypted on disk, copied there and back. */
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "core/base/util.h"
#include "core/store/cipher.h"
#include "spill_io_fixture.h"

enum { FILE_NUMBER = 4711, HEAD = CIPHER_HEAD_BYTES, STRIDE = CIPHER_STRIDE_BYTES };

/* --- keys, and what is injected --- */

static struct cipher_key *key, *other_key;

static struct cipher_key *make_key(char digit)
{
    char path[96], text[64];
    struct cipher_key *made = NULL;
    snprintf(path, sizeof path, "%s/key", disk_dir);
    memset(text, digit, sizeof text);
    cleanup_fd int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_int_equal(write(fd, text, sizeof text), sizeof text);
    assert_int_equal(cipher_key_load(path, &made, NULL), 0);
    unlink(path);
    return made;
}

static int setup_keys(void **state)
{
    if (setup(state))
        return -1;
    key = make_key('1');
    other_key = make_key('2');
    return 0;
}

static int teardown_keys(void **state)
{
    cipher_key_free(key);
    cipher_key_free(other_key);
    return teardown(state);
}

static errint_t cipher_error; /* 0, or what happens to `cipher_block` */
static uint64_t cipher_block;

typedef errint_t converter(const struct cipher_key *, uint64_t, uint64_t, void *, size_t);
converter __real_cipher_encrypt_block, __real_cipher_decrypt_block;
converter __wrap_cipher_encrypt_block, __wrap_cipher_decrypt_block;
errint_t __wrap_cipher_encrypt_block(const struct cipher_key *with, uint64_t file, uint64_t block,
                                     void *buffer, size_t bytes)
{
    if (cipher_error && block == cipher_block)
        return cipher_error;
    return __real_cipher_encrypt_block(with, file, block, buffer, bytes);
}
errint_t __wrap_cipher_decrypt_block(const struct cipher_key *with, uint64_t file, uint64_t block,
                                     void *buffer, size_t bytes)
{
    if (cipher_error && block == cipher_block)
        return cipher_error;
    return __real_cipher_decrypt_block(with, file, block, buffer, bytes);
}

static off_t advised; /* what is asked for ahead ends here; -1: it was not one piece */

typedef int adviser(int, off_t, off_t, int);
adviser __wrap_posix_fadvise, __wrap_posix_fadvise64;
int __wrap_posix_fadvise(int fd, off_t offset, off_t bytes, int advice)
{
    (void)fd;
    (void)advice;
    advised = offset == advised ? offset + bytes : -1;
    return 0;
}
int __wrap_posix_fadvise64(int fd, off_t offset, off_t bytes, int advice)
{
    return __wrap_posix_fadvise(fd, offset, bytes, advice);
}

static int disarm_all(void **state)
{
    cipher_error = 0;
    return disarm(state);
}

/* --- copies --- */

static struct spill_copy copy_of(enum spill_form form, int from, int to, size_t bytes,
                                 struct spill_sum *sums)
{
    return (struct spill_copy){.from = from,
                               .to = to,
                               .bytes = bytes,
                               .sums = sums,
                               .form = form,
                               .key = form == SPILL_ENCRYPTED ? NULL : key,
                               .file = FILE_NUMBER,
                               .discard = to < 0,
                               .error = -EIO};
}

static errint_t run_one(struct spill_io *io, struct spill_copy *copy)
{
    run(io, copy, 1);
    return copy->error;
}

/* A file on disk with the encrypted content of `seed`. */
static int encrypted_file(struct spill_io *io, int flags, uint64_t seed, size_t bytes,
                          struct spill_sum *sums)
{
    cleanup_fd int memory = filled_file(memory_file(), seed, bytes);
    int disk = disk_file(flags);
    struct spill_copy copy = copy_of(SPILL_ENCRYPT, memory, disk, bytes, sums);
    assert_int_equal(run_one(io, &copy), 0);
    return disk;
}

/* The file is what cipher.h says, by what reads it without the engine; and so are the sums. */
static void assert_encrypted(int fd, uint64_t seed, size_t bytes, const struct spill_sum *sums)
{
    size_t length = cipher_file_bytes(bytes);
    cleanup_free uint8_t *content = content_of(seed, bytes), *found = malloc(length + 1);
    int flags = fcntl(fd, F_GETFL);
    assert_int_equal(fcntl(fd, F_SETFL, flags & ~O_DIRECT), 0);
    const struct cipher_file file = {.fd = fd, .number = FILE_NUMBER, .size = bytes};
    assert_int_equal(cipher_pread(key, &file, found, bytes + 1, 0, NULL), bytes);
    assert_memory_equal(found, content, bytes);
    assert_int_equal(mob_pread_full(fd, found, length + 1, 0), length);
    assert_int_equal(fcntl(fd, F_SETFL, flags), 0);
    for (size_t at = 0; at < length; at += STRIDE, sums++) {
        XXH128_canonical_t sum;
        size_t part = length - at < STRIDE ? length - at : STRIDE;
        XXH128_canonicalFromHash(&sum, XXH3_128bits(found + at, part));
        assert_memory_equal(sums->bytes, sum.digest, 16);
        if (part - HEAD > 16) /* else it may be the same by chance */
            assert_memory_not_equal(found + at + HEAD, content + at / STRIDE * MIB, part - HEAD);
    }
}

static const size_t sizes[] = {0,       1,   4095,    4096,    4097,           MIB - 4096,
                               MIB - 1, MIB, MIB + 1, 2 * MIB, 5 * MIB + 12345};

static void go_round(struct spill_io *io, size_t bytes, int flags)
{
    struct spill_sum sums[8], again[8], zero = {{0}};
    memset(sums, 0, sizeof sums);
    memset(again, 0, sizeof again);
    cleanup_fd int disk = encrypted_file(io, flags, bytes, bytes, sums), back = memory_file(),
                   plain = disk_file(flags);
    assert_encrypted(disk, bytes, bytes, sums);
    assert_memory_equal(&sums[spill_block_count(bytes)], &zero, sizeof zero);

    struct spill_copy copy = copy_of(SPILL_DECRYPT, disk, back, bytes, sums);
    copy.check = true;
    assert_int_equal(run_one(io, &copy), 0);
    assert_holds(back, bytes, bytes);
    copy.to = plain;
    assert_int_equal(run_one(io, &copy), 0);
    assert_holds(plain, bytes, bytes);
    copy.to = -1;
    copy.discard = true;
    assert_int_equal(run_one(io, &copy), 0);

    copy = copy_of(SPILL_DECRYPT, disk, -1, bytes, again);
    assert_int_equal(run_one(io, &copy), 0);
    assert_memory_equal(again, sums, sizeof sums);
    memset(again, 0, sizeof again);
    copy = copy_of(SPILL_ENCRYPTED, disk, -1, bytes, again);
    assert_int_equal(run_one(io, &copy), 0);
    assert_memory_equal(again, sums, sizeof sums);
    copy.check = true;
    assert_int_equal(run_one(io, &copy), 0);
}

static void a_file_comes_back_as_it_went(struct spill_io *io)
{
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(sizes); i++)
        for (int direct = 0; direct <= has_direct(); direct++)
            go_round(io, sizes[i], direct ? O_DIRECT : 0);
}

static void a_file_of_any_size_comes_back_as_it_went_by_either_engine(void **state)
{
    (void)state;
    with_both(a_file_comes_back_as_it_went);
}

static void longer_files(struct spill_io *io)
{
    struct spill_sum sums[2];
    size_t bytes = MIB + 9;
    for (int direct = 0; direct <= has_direct(); direct++) {
        cleanup_fd int memory = filled_file(memory_file(), 3, 4 * MIB),
                       disk = filled_file(disk_file(direct ? O_DIRECT : 0), 4, 3 * MIB),
                       back = filled_file(memory_file(), 5, 3 * MIB);
        struct spill_copy copy = copy_of(SPILL_ENCRYPT, memory, disk, bytes, sums);
        assert_int_equal(run_one(io, &copy), 0);
        assert_encrypted(disk, 3, bytes, sums);
        assert_int_equal(ftruncate(disk, 3 * MIB), 0);
        copy = copy_of(SPILL_DECRYPT, disk, back, bytes, sums);
        assert_int_equal(run_one(io, &copy), 0);
        assert_holds(back, 3, bytes);
    }
}

static void only_the_bytes_asked_for_are_copied_and_the_target_is_cut(void **state)
{
    (void)state;
    with_both(longer_files);
}

/* Encrypted and decrypted, beside files that are not. */
static void many_files(struct spill_io *io)
{
    enum { FILES = 30, BYTES = 2 * MIB + 100 };
    static struct spill_sum sums[FILES][3];
    struct spill_copy copies[FILES];
    int flags = has_direct() ? O_DIRECT : 0;
    for (int i = 0; i < FILES; i++) {
        uint64_t seed = (uint64_t)i;
        copies[i] = i % 3 == 0 ? copy_of(SPILL_PLAIN, filled_file(memory_file(), seed, BYTES),
                                         disk_file(flags), BYTES, sums[i])
                    : i % 3 == 1
                        ? copy_of(SPILL_ENCRYPT, filled_file(memory_file(), seed, BYTES),
                                  disk_file(flags), BYTES, sums[i])
                        : copy_of(SPILL_DECRYPT, encrypted_file(io, flags, seed, BYTES, sums[i]),
                                  memory_file(), BYTES, sums[i]);
    }
    run(io, copies, FILES);
    for (int i = 0; i < FILES; i++) {
        assert_int_equal(copies[i].error, 0);
        if (i % 3 == 1)
            assert_encrypted(copies[i].to, (uint64_t)i, BYTES, sums[i]);
        else
            assert_holds(copies[i].to, (uint64_t)i, BYTES);
        close(copies[i].from);
        close(copies[i].to);
    }
}

static void many_files_of_all_forms_are_copied_at_once(void **state)
{
    (void)state;
    with_both(many_files);
}

/* --- damage --- */

static void change_byte(int fd, off_t place, uint8_t with)
{
    uint8_t byte;
    int flags = fcntl(fd, F_GETFL);
    assert_int_equal(fcntl(fd, F_SETFL, flags & ~O_DIRECT), 0);
    assert_int_equal(pread(fd, &byte, 1, place), 1);
    byte ^= with;
    assert_int_equal(pwrite(fd, &byte, 1, place), 1);
    assert_int_equal(fcntl(fd, F_SETFL, flags), 0);
}

static void expect_error(struct spill_io *io, struct spill_copy copy, errint_t error,
                         uint64_t bad_block)
{
    assert_int_equal(run_one(io, &copy), error);
    assert_int_equal(copy.bad_block, bad_block);
}

/* By its sum, if it is `summed`; or by its tag. */
static void expect_damage(struct spill_io *io, int disk, size_t bytes, struct spill_sum *sums,
                          uint64_t bad_block, bool summed)
{
    struct spill_sum others[8];
    cleanup_fd int back = memory_file();
    struct spill_copy copy = copy_of(SPILL_DECRYPT, disk, back, bytes, summed ? sums : others),
                      discards = copy_of(SPILL_DECRYPT, disk, -1, bytes, copy.sums),
                      encrypted = copy_of(SPILL_ENCRYPTED, disk, -1, bytes, copy.sums);
    copy.check = discards.check = encrypted.check = summed;
    expect_error(io, copy, -EBADMSG, bad_block);
    expect_error(io, discards, -EBADMSG, bad_block);
    expect_error(io, encrypted, summed ? -EBADMSG : 0, summed ? bad_block : 0);
    /* With sums of what it is now. */
    copy.check = true;
    expect_error(io, copy, -EBADMSG, bad_block);
    /* Nothing of the damaged block was let through. */
    cleanup_free uint8_t *found = calloc(1, MIB), *zeros = calloc(1, MIB);
    ssize_t got = pread(back, found, MIB, (off_t)(bad_block * MIB));
    assert_true(got >= 0);
    assert_memory_equal(found, zeros, (size_t)got);
}

static void flipped_bits(struct spill_io *io)
{
    size_t bytes = 5 * MIB + 12345;
    struct spill_sum sums[6];
    static const struct {
        off_t place;
        bool by_tag; /* what is not authenticated is found by the sum alone */
    } flips[] = {
        {0, true},                         /* what a head begins with */
        {STRIDE + 24, true},               /* number of the block */
        {STRIDE + 33, true},               /* data key */
        {2 * STRIDE + 72 + 15 * 16, true}, /* the last tag */
        {3 * STRIDE + HEAD - 1, false},    /* zeros */
        {4 * STRIDE + HEAD, true},
        {4 * STRIDE + HEAD + MIB - 1, true},
        {5 * STRIDE + HEAD + 12344, true},
    };
    for (int direct = 0; direct <= has_direct(); direct++) {
        cleanup_fd int disk = encrypted_file(io, direct ? O_DIRECT : 0, 7, bytes, sums);
        for (size_t i = 0; i < MOB_ARRAY_LENGTH(flips); i++) {
            uint64_t block = (uint64_t)flips[i].place / STRIDE;
            change_byte(disk, flips[i].place, 0x10);
            expect_damage(io, disk, bytes, sums, block, true);
            if (flips[i].by_tag)
                expect_damage(io, disk, bytes, sums, block, false);
            change_byte(disk, flips[i].place, 0x10);
        }
        /* Of several, the lowest. */
        for (size_t i = MOB_ARRAY_LENGTH(flips); i-- > 0;) {
            change_byte(disk, flips[i].place, 0x10);
            expect_damage(io, disk, bytes, sums, (uint64_t)flips[i].place / STRIDE,
                          i % 2 || !flips[i].by_tag);
        }
    }
}

static void a_flipped_bit_is_found_by_its_sum_and_by_its_tag(void **state)
{
    (void)state;
    with_both(flipped_bits);
}

static void other_blocks(struct spill_io *io)
{
    size_t bytes = 3 * MIB;
    struct spill_sum sums[3];
    cleanup_free uint8_t *block = malloc(STRIDE);
    cleanup_fd int disk = encrypted_file(io, 0, 7, bytes, sums), back = memory_file();
    struct spill_copy copy = copy_of(SPILL_DECRYPT, disk, back, bytes, sums);
    copy.check = true;
    copy.key = other_key;
    expect_error(io, copy, -EBADMSG, 0);
    copy.key = key;
    copy.file++;
    expect_error(io, copy, -EBADMSG, 0);
    copy.file--;
    expect_error(io, copy, 0, 0);
    /* The last block is longer than it should be. */
    copy.bytes--;
    copy.check = false;
    expect_error(io, copy, -EBADMSG, 2);
    /* A block in the place of another; a hole. */
    assert_int_equal(mob_pread_full(disk, block, STRIDE, 0), STRIDE);
    assert_int_equal(mob_pwrite_full(disk, block, STRIDE, STRIDE), 0);
    expect_damage(io, disk, bytes, sums, 1, false);
    memset(block, 0, STRIDE);
    assert_int_equal(mob_pwrite_full(disk, block, STRIDE, STRIDE), 0);
    expect_damage(io, disk, bytes, sums, 1, false);
    /* A file that never was encrypted. */
    cleanup_fd int plain = filled_file(disk_file(0), 1, 4 * MIB);
    expect_damage(io, plain, bytes, sums, 0, false);
}

static void another_key_or_block_or_file_is_found(void **state)
{
    (void)state;
    with_both(other_blocks);
}

static void a_short_source(struct spill_io *io)
{
    static const off_t there[] = {0,      1,          HEAD,           HEAD + 1,
                                  STRIDE, STRIDE + 1, 2 * STRIDE + 7, 3 * STRIDE - 1};
    struct spill_sum sums[3];
    for (int direct = 0; direct <= has_direct(); direct++)
        for (size_t i = 0; i < MOB_ARRAY_LENGTH(there); i++) {
            cleanup_fd int disk = encrypted_file(io, direct ? O_DIRECT : 0, 2, 3 * MIB, sums),
                           back = memory_file();
            uint64_t bad_block = (uint64_t)there[i] / STRIDE;
            assert_int_equal(ftruncate(disk, there[i]), 0);
            expect_error(io, copy_of(SPILL_DECRYPT, disk, back, 3 * MIB, sums), -ENODATA,
                         bad_block);
            expect_error(io, copy_of(SPILL_ENCRYPTED, disk, -1, 3 * MIB, sums), -ENODATA,
                         bad_block);
            /* The other way: there is no more to encrypt. */
            cleanup_fd int memory = filled_file(memory_file(), 2, MIB + 1), to = disk_file(0);
            expect_error(io, copy_of(SPILL_ENCRYPT, memory, to, 3 * MIB, sums), -ENODATA, 1);
        }
}

static void a_file_that_is_too_short_gives_enodata(void **state)
{
    (void)state;
    with_both(a_short_source);
}

/* --- requests that come short or fail --- */

static void short_requests(struct spill_io *io)
{
    static const size_t lengths[] = {4096, 5000, 100000, MIB - 1, MIB};
    static const size_t some[] = {1, 4097, MIB, 5 * MIB + 12345};
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(lengths) * 2; i++)
        for (size_t j = 0; j < MOB_ARRAY_LENGTH(some); j++)
            for (int direct = 0; direct <= has_direct(); direct++) {
                injected.armed = true;
                injected.writes = i % 2;
                injected.fd = -1;
                injected.offset = -1;
                injected.at_most = lengths[i / 2];
                injected.times = 40;
                go_round(io, some[j], direct ? O_DIRECT : 0);
            }
    assert_true(injected.bent > 0);
}

static void short_reads_and_writes_are_continued(void **state)
{
    (void)state;
    with_both(short_requests);
}

/* Copies 5 MiB, while requests at this offset fail. */
static void copy_bent(struct spill_io *io, enum spill_form form, bool writes, int error,
                      off_t offset, int times, errint_t expected)
{
    struct spill_sum sums[5];
    size_t bytes = 5 * MIB;
    int flags = has_direct() ? O_DIRECT : 0;
    bool encrypts = form == SPILL_ENCRYPT;
    cleanup_fd int from = encrypts ? filled_file(memory_file(), 9, bytes)
                                   : encrypted_file(io, flags, 9, bytes, sums),
                   to = encrypts ? disk_file(flags) : memory_file();
    struct spill_copy copy = copy_of(form, from, to, bytes, sums);
    injected.writes = writes;
    injected.fd = writes ? to : from;
    injected.offset = offset;
    injected.error = error;
    injected.times = times;
    injected.bent = 0;
    injected.armed = true;
    assert_int_equal(run_one(io, &copy), expected);
    assert_true(injected.bent > 0);
    injected.armed = false;
    if (expected && offset >= 0)
        assert_int_equal(copy.bad_block, 3);
    else if (!expected && encrypts)
        assert_encrypted(to, 9, bytes, sums);
    else if (!expected)
        assert_holds(to, 9, bytes);
}

static void failing_requests(struct spill_io *io)
{
    static const enum spill_form forms[] = {SPILL_ENCRYPT, SPILL_DECRYPT};
    for (int form = 0; form < 2; form++)
        for (int writes = 0; writes < 2; writes++) {
            /* The side that is encrypted is the one that is written, or the other. */
            off_t third = form != writes ? 3 * STRIDE : 3 * MIB;
            copy_bent(io, forms[form], writes, EIO, third, 1, -EIO);
            copy_bent(io, forms[form], writes, ENOSPC, -1, -1, -ENOSPC);
            copy_bent(io, forms[form], writes, EINTR, -1, 100, 0);
            copy_bent(io, forms[form], writes, EAGAIN, -1, 10, 0);
            copy_bent(io, forms[form], writes, EAGAIN, -1, -1, -EAGAIN);
        }
}

static void a_read_or_write_error_ends_the_copy_and_eintr_and_eagain_do_not(void **state)
{
    (void)state;
    with_both(failing_requests);
}

static void failing_ciphers(struct spill_io *io)
{
    static const errint_t errors[] = {-ENOMEM, -EIO};
    struct spill_sum sums[5];
    cleanup_fd int memory = filled_file(memory_file(), 9, 5 * MIB), disk = disk_file(0),
                   encrypted = encrypted_file(io, 0, 9, 5 * MIB, sums), back = memory_file();
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(errors); i++)
        for (cipher_block = 0; cipher_block < 5; cipher_block++) {
            cipher_error = errors[i];
            expect_error(io, copy_of(SPILL_ENCRYPT, memory, disk, 5 * MIB, sums), cipher_error,
                         cipher_block);
            expect_error(io, copy_of(SPILL_DECRYPT, encrypted, back, 5 * MIB, sums), cipher_error,
                         cipher_block);
            expect_error(io, copy_of(SPILL_ENCRYPTED, encrypted, -1, 5 * MIB, sums), 0, 0);
        }
}

static void what_openssl_refuses_ends_the_copy(void **state)
{
    (void)state;
    with_both(failing_ciphers);
}

static void no_room(struct spill_io *io)
{
    struct statfs info;
    struct stat left;
    struct spill_sum sums[6];
    size_t bytes = 5 * MIB + 12345;
    cleanup_fd int memory = filled_file(memory_file(), 1, bytes), disk = disk_file(0),
                   full = open("/dev/full", O_WRONLY | O_CLOEXEC);
    expect_error(io, copy_of(SPILL_ENCRYPT, memory, full, bytes, sums), -ENOSPC, 0);
    assert_int_equal(fstatfs(disk, &info), 0);
    if (info.f_type == TMPFS_MAGIC)
        return;
    fallocate_error = ENOSPC;
    expect_error(io, copy_of(SPILL_ENCRYPT, memory, disk, bytes, sums), -ENOSPC, 0);
    assert_int_equal(fstat(disk, &left), 0);
    assert_int_equal(left.st_size, 0);
    fallocate_error = 0;
    expect_error(io, copy_of(SPILL_ENCRYPT, memory, disk, bytes, sums), 0, 0);
    assert_int_equal(fallocated, cipher_file_bytes(bytes));
    /* A file without content has no block, and so no head. */
    fallocates = 0;
    expect_error(io, copy_of(SPILL_ENCRYPT, memory, disk, 0, sums), 0, 0);
    assert_int_equal(fallocates, 0);
    assert_int_equal(fstat(disk, &left), 0);
    assert_int_equal(left.st_size, 0);
}

static void a_disk_without_room_for_heads_and_content_gives_enospc(void **state)
{
    (void)state;
    with_both(no_room);
}

/* --- cancelling --- */

static struct spill_io *cancelled_io;

static void cancel(void)
{
    spill_io_cancel(cancelled_io, true);
}

/* Within a request of this offset, which comes short: the stage has another one to make. */
static void cancel_at(struct spill_io *io, struct spill_copy *copy, bool writes, off_t offset)
{
    cancelled_io = io;
    injected.writes = writes;
    injected.fd = writes ? copy->to : copy->from;
    injected.offset = offset;
    injected.at_most = 4096;
    injected.hook = cancel;
    injected.times = 1;
    injected.armed = true;
    assert_int_equal(run_one(io, copy), -ECANCELED);
    assert_int_equal(injected.times, 0);
    spill_io_cancel(io, false);
    assert_int_equal(run_one(io, copy), 0);
}

static void cancel_in_either_stage(struct spill_io *io)
{
    static const size_t lengths[] = {20 * MIB, 4 * MIB};
    struct spill_sum sums[20];
    int flags = has_direct() ? O_DIRECT : 0;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(lengths); i++) {
        size_t bytes = lengths[i];
        cleanup_fd int memory = filled_file(memory_file(), 8, bytes), to = disk_file(flags),
                       disk = encrypted_file(io, flags, 8, bytes, sums), back = memory_file();
        /* The last block of the shorter file: no other is kept from being begun. */
        struct spill_copy copy = copy_of(SPILL_ENCRYPT, memory, to, bytes, sums);
        cancel_at(io, &copy, false, 3 * MIB);
        cancel_at(io, &copy, true, 3 * STRIDE);
        assert_encrypted(to, 8, bytes, sums);
        copy = copy_of(SPILL_DECRYPT, disk, back, bytes, sums);
        cancel_at(io, &copy, false, 3 * STRIDE);
        cancel_at(io, &copy, true, 3 * MIB);
        assert_holds(back, 8, bytes);
        copy = copy_of(SPILL_DECRYPT, disk, -1, bytes, sums);
        cancel_at(io, &copy, false, 3 * STRIDE);
    }
}

static void a_copy_is_cancelled_in_either_stage_and_begun_anew(void **state)
{
    (void)state;
    with_both(cancel_in_either_stage);
}

/* --- how it is asked for --- */

static void what_makes_no_sense_is_refused(void **state)
{
    (void)state;
    struct spill_sum sums[1];
    cleanup_engine struct spill_io *io = engine(true);
    cleanup_fd int memory = filled_file(memory_file(), 1, 5), disk = disk_file(0),
                   encrypted = encrypted_file(io, 0, 1, 5, sums);
    struct spill_copy wrong[] = {
        copy_of(SPILL_ENCRYPT, memory, disk, 5, sums),
        copy_of(SPILL_ENCRYPT, memory, disk, 5, sums),
        copy_of(SPILL_ENCRYPT, memory, -1, 5, sums),
        copy_of(SPILL_DECRYPT, encrypted, disk, 5, sums),
        copy_of(SPILL_ENCRYPTED, encrypted, disk, 5, sums),
        copy_of((enum spill_form)4, memory, disk, 5, sums),
    };
    wrong[0].key = NULL;
    wrong[1].check = true;
    wrong[3].key = NULL;
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(wrong); i++)
        expect_error(io, wrong[i], -EINVAL, 0);
    assert_holds(disk, 0, 0);
    static const uint64_t too_long[] = {UINT64_MAX, INT64_MAX, INT64_MAX / 2 + 1};
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(too_long); i++) {
        struct spill_copy copy = copy_of(SPILL_ENCRYPT, memory, disk, 5, sums);
        copy.bytes = too_long[i];
        expect_error(io, copy, -EFBIG, 0);
    }
}

static void reading_ahead_is_asked_for_where_the_blocks_are(void **state)
{
    (void)state;
    struct spill_sum sums[16];
    struct statfs info;
    cleanup_engine struct spill_io *io = engine(false);
    cleanup_fd int disk = encrypted_file(io, 0, 1, 16 * MIB, sums);
    assert_int_equal(fstatfs(disk, &info), 0);
    if (info.f_type == TMPFS_MAGIC)
        skip();
    advised = 0;
    struct spill_copy copy = copy_of(SPILL_DECRYPT, disk, -1, 16 * MIB, sums);
    assert_int_equal(run_one(io, &copy), 0);
    assert_int_equal(advised, 16 * STRIDE);
}

#define TEST(name) cmocka_unit_test_teardown(name, disarm_all)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_file_of_any_size_comes_back_as_it_went_by_either_engine),
        TEST(only_the_bytes_asked_for_are_copied_and_the_target_is_cut),
        TEST(many_files_of_all_forms_are_copied_at_once),
        TEST(a_flipped_bit_is_found_by_its_sum_and_by_its_tag),
        TEST(another_key_or_block_or_file_is_found),
        TEST(a_file_that_is_too_short_gives_enodata),
        TEST(short_reads_and_writes_are_continued),
        TEST(a_read_or_write_error_ends_the_copy_and_eintr_and_eagain_do_not),
        TEST(what_openssl_refuses_ends_the_copy),
        TEST(a_disk_without_room_for_heads_and_content_gives_enospc),
        TEST(a_copy_is_cancelled_in_either_stage_and_begun_anew),
        TEST(what_makes_no_sense_is_refused),
        TEST(reading_ahead_is_asked_for_where_the_blocks_are),
    };
    return cmocka_run_group_tests(tests, setup_keys, teardown_keys);
}
