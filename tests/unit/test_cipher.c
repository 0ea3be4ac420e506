/* Unit tests of keys: what was encrypted is opened, and nothing else is. */
#include "core/store/cipher.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/util.h"
#include "unit.h"

enum { FILE_NUMBER = 4711 };

struct keys {
    char path[64];
    struct cipher_key *key, *other;
};

static void write_file(const char *path, const void *bytes, size_t count)
{
    cleanup_fd int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, count), count);
}

static struct cipher_key *load(const char *path)
{
    struct cipher_key *key = NULL;
    struct mob_error err = {0};
    assert_int_equal(cipher_key_load(path, &key, &err), 0);
    return key;
}

static int setup(void **state)
{
    static struct keys keys;
    uint8_t bytes[32];
    snprintf(keys.path, sizeof keys.path, "/tmp/mobula-cipher-XXXXXX");
    int fd = mkstemp(keys.path);
    assert_true(fd >= 0);
    close(fd);
    memset(bytes, 7, sizeof bytes);
    write_file(keys.path, bytes, sizeof bytes);
    keys.key = load(keys.path);
    bytes[31] = 8;
    write_file(keys.path, bytes, sizeof bytes);
    keys.other = load(keys.path);
    *state = &keys;
    return 0;
}

static int teardown(void **state)
{
    struct keys *keys = *state;
    cipher_key_free(keys->key);
    cipher_key_free(keys->other);
    unlink(keys->path);
    return 0;
}

static void fill(uint8_t *bytes, size_t count, unsigned seed)
{
    for (size_t i = 0; i < count; i++)
        bytes[i] = (uint8_t)(seed = seed * 1103515245u + 12345u, seed >> 16);
}

static const size_t lengths[] = {
    1,      4095,    CIPHER_CHUNK_BYTES - 1, CIPHER_CHUNK_BYTES, CIPHER_CHUNK_BYTES + 1,
    300000, 1000000, CIPHER_BLOCK_BYTES};

static void blocks_come_back(void **state)
{
    const struct keys *keys = *state;
    cleanup_free uint8_t *block = malloc(CIPHER_STRIDE_BYTES), *plain = malloc(CIPHER_BLOCK_BYTES);
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(lengths); i++) {
        size_t bytes = lengths[i], said;
        fill(plain, bytes, 1);
        memcpy(block + CIPHER_HEAD_BYTES, plain, bytes);
        assert_int_equal(cipher_encrypt_block(keys->key, FILE_NUMBER, i, block, bytes), 0);
        if (bytes > 16)
            assert_memory_not_equal(block + CIPHER_HEAD_BYTES, plain, bytes);
        assert_int_equal(cipher_head_bytes(block, FILE_NUMBER, i, &said), 0);
        assert_int_equal(said, bytes);
        assert_int_equal(cipher_decrypt_block(keys->key, FILE_NUMBER, i, block, bytes), 0);
        assert_memory_equal(block + CIPHER_HEAD_BYTES, plain, bytes);
    }
}

static void what_is_encrypted_twice_differs(void **state)
{
    const struct keys *keys = *state;
    cleanup_free uint8_t *a = calloc(1, CIPHER_STRIDE_BYTES), *b = calloc(1, CIPHER_STRIDE_BYTES);
    assert_int_equal(cipher_encrypt_block(keys->key, FILE_NUMBER, 0, a, 4096), 0);
    assert_int_equal(cipher_encrypt_block(keys->key, FILE_NUMBER, 0, b, 4096), 0);
    assert_memory_not_equal(a + 32, b + 32, 40); /* the data keys */
    assert_memory_not_equal(a + CIPHER_HEAD_BYTES, b + CIPHER_HEAD_BYTES, 4096);
}

static void a_block_is_only_what_it_was_encrypted_as(void **state)
{
    const struct keys *keys = *state;
    const size_t bytes = CIPHER_CHUNK_BYTES + 100;
    cleanup_free uint8_t *encrypted = malloc(CIPHER_STRIDE_BYTES),
                         *block = malloc(CIPHER_STRIDE_BYTES);
    fill(encrypted + CIPHER_HEAD_BYTES, bytes, 2);
    assert_int_equal(cipher_encrypt_block(keys->key, FILE_NUMBER, 3, encrypted, bytes), 0);
    const struct {
        const struct cipher_key *key;
        uint64_t file, block;
        size_t bytes;
        errint_t error;
    } tries[] = {
        {keys->key, FILE_NUMBER, 3, bytes, 0},
        {keys->other, FILE_NUMBER, 3, bytes, -EBADMSG},
        {keys->key, FILE_NUMBER + 1, 3, bytes, -EBADMSG},
        {keys->key, FILE_NUMBER, 4, bytes, -EBADMSG},
        {keys->key, FILE_NUMBER, 3, bytes - 1, -EBADMSG},
        {keys->key, FILE_NUMBER, 3, bytes + 1, -EBADMSG},
    };
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(tries); i++) {
        memcpy(block, encrypted, CIPHER_STRIDE_BYTES);
        assert_int_equal(cipher_decrypt_block(tries[i].key, tries[i].file, tries[i].block, block,
                                              tries[i].bytes),
                         tries[i].error);
        /* Nor with a head that says what is asked for. */
        memcpy(block, encrypted, CIPHER_STRIDE_BYTES);
        uint32_t length = (uint32_t)tries[i].bytes;
        memcpy(block + 12, &length, 4);
        memcpy(block + 16, &tries[i].file, 8);
        memcpy(block + 24, &tries[i].block, 8);
        assert_int_equal(cipher_decrypt_block(tries[i].key, tries[i].file, tries[i].block, block,
                                              tries[i].bytes),
                         tries[i].error);
    }
}

static void every_flipped_bit_is_noticed(void **state)
{
    const struct keys *keys = *state;
    enum { BYTES = CIPHER_CHUNK_BYTES + 40, USED = 72 + 2 * 16 };
    cleanup_free uint8_t *encrypted = malloc(CIPHER_STRIDE_BYTES),
                         *block = malloc(CIPHER_STRIDE_BYTES);
    fill(encrypted + CIPHER_HEAD_BYTES, BYTES, 3);
    assert_int_equal(cipher_encrypt_block(keys->key, FILE_NUMBER, 0, encrypted, BYTES), 0);
    for (unsigned bit = 0; bit < USED * 8; bit++) {
        memcpy(block, encrypted, CIPHER_STRIDE_BYTES);
        block[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_int_equal(cipher_decrypt_block(keys->key, FILE_NUMBER, 0, block, BYTES), -EBADMSG);
    }
    for (size_t byte = CIPHER_HEAD_BYTES; byte < CIPHER_HEAD_BYTES + BYTES; byte += 997) {
        memcpy(block, encrypted, CIPHER_STRIDE_BYTES);
        block[byte] ^= 16;
        assert_int_equal(cipher_decrypt_block(keys->key, FILE_NUMBER, 0, block, BYTES), -EBADMSG);
    }
}

/* An encrypted file of `size` bytes of `plain`. */
static int make_file(const struct keys *keys, const uint8_t *plain, size_t size)
{
    cleanup_free uint8_t *block = malloc(CIPHER_STRIDE_BYTES);
    int fd = open("/tmp", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    for (size_t at = 0, i = 0; at < size; at += CIPHER_BLOCK_BYTES, i++) {
        size_t bytes = size - at < CIPHER_BLOCK_BYTES ? size - at : CIPHER_BLOCK_BYTES;
        memcpy(block + CIPHER_HEAD_BYTES, plain + at, bytes);
        assert_int_equal(cipher_encrypt_block(keys->key, FILE_NUMBER, i, block, bytes), 0);
        assert_int_equal(
            mob_pwrite_full(fd, block, CIPHER_HEAD_BYTES + bytes, (off_t)cipher_block_offset(i)),
            0);
    }
    struct stat info;
    assert_int_equal(fstat(fd, &info), 0);
    assert_int_equal(info.st_size, cipher_file_bytes(size));
    return fd;
}

static void files_are_read_at_any_place(void **state)
{
    const struct keys *keys = *state;
    const size_t size = 2 * CIPHER_BLOCK_BYTES + 123456;
    cleanup_free uint8_t *plain = malloc(size), *out = malloc(size + 1);
    fill(plain, size, 4);
    cleanup_fd int fd = make_file(keys, plain, size);
    const struct cipher_file file = {.fd = fd, .number = FILE_NUMBER, .size = size};
    unsigned seed = 5;
    for (int i = 0; i < 300; i++) {
        seed = seed * 1103515245u + 12345u;
        uint64_t offset = seed % (size + 10);
        seed = seed * 1103515245u + 12345u;
        size_t bytes = i % 3 ? seed % 200000 : seed % size,
               left = offset < size ? size - offset : 0;
        size_t expected = bytes < left ? bytes : left;
        assert_int_equal(cipher_pread(keys->key, &file, out, bytes, offset, NULL), expected);
        assert_memory_equal(out, plain + offset, expected);
    }
    assert_int_equal(cipher_pread(keys->key, &file, out, size + 1, 0, NULL), size);
    assert_memory_equal(out, plain, size);
}

static void a_damaged_chunk_is_not_read(void **state)
{
    const struct keys *keys = *state;
    const size_t size = 2 * CIPHER_BLOCK_BYTES;
    cleanup_free uint8_t *plain = malloc(size), *out = malloc(size);
    uint64_t bad = 99;
    fill(plain, size, 6);
    cleanup_fd int fd = make_file(keys, plain, size);
    const struct cipher_file file = {.fd = fd, .number = FILE_NUMBER, .size = size};
    uint8_t byte;
    off_t place = (off_t)cipher_block_offset(1) + CIPHER_HEAD_BYTES + 3 * CIPHER_CHUNK_BYTES + 5;
    assert_int_equal(pread(fd, &byte, 1, place), 1);
    byte ^= 1;
    assert_int_equal(pwrite(fd, &byte, 1, place), 1);
    memset(out, 1, size);
    assert_int_equal(cipher_pread(keys->key, &file, out, size, 0, &bad), -EBADMSG);
    assert_int_equal(bad, 1);
    assert_int_equal(out[0], 0); /* nothing of it */
    /* The chunks beside it are as they were. */
    uint64_t offset = CIPHER_BLOCK_BYTES + 4 * CIPHER_CHUNK_BYTES;
    assert_int_equal(cipher_pread(keys->key, &file, out, 1000, offset, &bad), 1000);
    assert_memory_equal(out, plain + offset, 1000);
    assert_int_equal(cipher_pread(keys->other, &file, out, 10, 0, &bad), -EBADMSG);
    assert_int_equal(ftruncate(fd, (off_t)cipher_block_offset(1) + 50), 0);
    assert_int_equal(cipher_pread(keys->key, &file, out, 10, offset, &bad), -ENODATA);
    assert_int_equal(bad, 1);
}

static void a_head_of_zeros_is_refused(void **state)
{
    const struct keys *keys = *state;
    cleanup_free uint8_t *block = calloc(1, CIPHER_STRIDE_BYTES);
    size_t bytes = 1;
    assert_int_equal(cipher_head_bytes(block, 0, 0, &bytes), -EBADMSG);
    assert_int_equal(bytes, 0);
    assert_int_equal(cipher_decrypt_block(keys->key, 0, 0, block, 10), -EBADMSG);
    assert_int_equal(cipher_decrypt_block(keys->key, 0, 0, block, 0), -EBADMSG);
    cleanup_fd int fd = open("/tmp", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, CIPHER_STRIDE_BYTES), 0);
    const struct cipher_file file = {.fd = fd, .size = CIPHER_BLOCK_BYTES};
    assert_int_equal(cipher_pread(keys->key, &file, block, CIPHER_BLOCK_BYTES, 0, NULL), -EBADMSG);
}

static void values_come_back(void **state)
{
    const struct keys *keys = *state;
    uint8_t value[200], encrypted[200 + CIPHER_VALUE_BYTES], out[200];
    fill(value, sizeof value, 8);
    for (size_t bytes = 0; bytes <= sizeof value; bytes += 50) {
        size_t total = bytes + CIPHER_VALUE_BYTES;
        assert_int_equal(cipher_encrypt_value(keys->key, 2, 9, value, bytes, encrypted), 0);
        assert_int_equal(cipher_decrypt_value(keys->key, 2, 9, encrypted, total, out), 0);
        assert_memory_equal(out, value, bytes);
        assert_int_equal(cipher_decrypt_value(keys->other, 2, 9, encrypted, total, out), -EBADMSG);
        assert_int_equal(cipher_decrypt_value(keys->key, 3, 9, encrypted, total, out), -EBADMSG);
        assert_int_equal(cipher_decrypt_value(keys->key, 2, 8, encrypted, total, out), -EBADMSG);
        assert_int_equal(cipher_decrypt_value(keys->key, 2, 9, encrypted, total - 1, out),
                         -EBADMSG);
        for (size_t i = 0; i < total; i++) {
            encrypted[i] ^= 4;
            assert_int_equal(cipher_decrypt_value(keys->key, 2, 9, encrypted, total, out),
                             -EBADMSG);
            encrypted[i] ^= 4;
        }
    }
    assert_int_equal(cipher_decrypt_value(keys->key, 2, 9, encrypted, 3, out), -EBADMSG);
}

static void keys_are_bytes_or_digits(void **state)
{
    const struct keys *keys = *state;
    struct mob_error err = {0};
    struct cipher_key *key;
    static const char digits[] = "0707070707070707070707070707070707070707070707070707070707070707";
    write_file(keys->path, digits, 64);
    key = load(keys->path);
    assert_string_equal(cipher_key_name(key), cipher_key_name(keys->key));
    assert_string_not_equal(cipher_key_name(key), cipher_key_name(keys->other));
    assert_int_equal(strlen(cipher_key_name(key)), 32);
    cipher_key_free(key);
    char text[70];
    snprintf(text, sizeof text, "%s\n", digits);
    write_file(keys->path, text, 65);
    cipher_key_free(load(keys->path));
    const struct {
        const char *text;
        size_t bytes;
    } refused[] = {{"", 0},
                   {digits, 63},
                   {text, 31},
                   {text, 33},
                   {"", 1},
                   {"a passphrase is no key of 32 byt\n", 32},
                   {"with a newline it isn't either.\n", 32}};
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(refused); i++) {
        write_file(keys->path, refused[i].text, refused[i].bytes);
        assert_int_equal(cipher_key_load(keys->path, &key, &err), -EINVAL);
        assert_non_null(strstr(err.message, keys->path));
        assert_non_null(strstr(err.message, "64 hexadecimal digits"));
    }
    text[10] = 'g';
    write_file(keys->path, text, 65);
    assert_int_equal(cipher_key_load(keys->path, &key, &err), -EINVAL);
    text[10] = '0';
    text[65] = '\n';
    write_file(keys->path, text, 66);
    assert_int_equal(cipher_key_load(keys->path, &key, &err), -EINVAL);
    unlink(keys->path);
    assert_int_equal(cipher_key_load(keys->path, &key, &err), -ENOENT);
    assert_non_null(strstr(err.message, keys->path));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(blocks_come_back, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_encrypted_twice_differs, setup, teardown),
        cmocka_unit_test_setup_teardown(a_block_is_only_what_it_was_encrypted_as, setup, teardown),
        cmocka_unit_test_setup_teardown(every_flipped_bit_is_noticed, setup, teardown),
        cmocka_unit_test_setup_teardown(files_are_read_at_any_place, setup, teardown),
        cmocka_unit_test_setup_teardown(a_damaged_chunk_is_not_read, setup, teardown),
        cmocka_unit_test_setup_teardown(a_head_of_zeros_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(values_come_back, setup, teardown),
        cmocka_unit_test_setup_teardown(keys_are_bytes_or_digits, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
