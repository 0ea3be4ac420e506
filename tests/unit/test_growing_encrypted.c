/* core/store/growing with a key: what is on disk is never in plaintext, and is exact whatever is
 * written, cut or punched. */
#include "tests/unit/growing_fixture.h"

#include <pthread.h>
#include <time.h>

#define LIMIT (6 * UNIT)

/* --- without faults --- */

static void an_encrypted_file_is_what_the_store_reads(void **state)
{
    (void)state;
    static const uint64_t sizes[] = {0,           1,    PAGE,     BLOCK - 1,    BLOCK,
                                     BLOCK + 1,   UNIT, UNIT + 1, 3 * UNIT - 1, 5 * UNIT,
                                     5 * UNIT + 9};
    for (size_t i = 0; i < 2 * MOB_ARRAY_LENGTH(sizes); i++) {
        uint64_t size = sizes[i / 2];
        file_new_encrypted(LIMIT);
        faults.no_direct = i % 2;
        if (size)
            put_new((size_t)size, 0);
        move_to(size);
        assert_reads();
        assert_secret();
        assemble();
        assert_reads();
        succeed();
        assert_reads();
        file_close();
    }
}

static void holes_become_blocks_of_zeros(void **state)
{
    (void)state;
    file_new_encrypted(LIMIT);
    put_new(100, 3 * UNIT + 5);
    move_to(3 * UNIT);
    assert_int_equal(growing_moved(&file.growing), 3 * UNIT);
    assert_reads();
    cut(4 * UNIT + BLOCK + 7);
    assert_reads();
    assemble();
    /* Made longer where the moved part still is, and past that. */
    cut(5 * UNIT - 3);
    assert_reads();
    put_new(10, 5 * UNIT + 50);
    assert_reads();
    succeed();
    assert_reads();
    assemble();
    file_close();
}

static uint64_t below(unsigned *seed, uint64_t limit)
{
    return ((uint64_t)rand_r(seed) << 31 | (uint64_t)rand_r(seed)) % limit;
}

static uint64_t pick_offset(unsigned *seed)
{
    uint64_t offset = below(seed, 5 * UNIT);
    switch (rand_r(seed) % 4) {
    case 0:
        return file.size < 5 * UNIT ? file.size : offset;
    case 1:
        return offset - offset % BLOCK;
    default:
        return offset;
    }
}

static void random_operation(unsigned *seed)
{
    static const uint64_t counts[] = {64, 5000, 128 << 10, 1 << 20};
    uint64_t count = below(seed, counts[rand_r(seed) % 4]) + 1;
    switch (rand_r(seed) % 16) {
    case 0:
        cut(pick_offset(seed));
        break;
    case 1:
        punch(pick_offset(seed), rand_r(seed) % 3 ? count : 2 * BLOCK);
        break;
    case 2:
    case 3:
        move_to(below(seed, LIMIT));
        break;
    case 4:
        assemble();
        break;
    case 5:
        succeed();
        break;
    default:
        put_new((size_t)(rand_r(seed) % 8 ? count : BLOCK), pick_offset(seed));
    }
}

static void random_operations_are_exact(void **state)
{
    (void)state;
    const char *given = getenv("MOBULA_TEST_SEED");
    unsigned seed = given ? (unsigned)strtoul(given, NULL, 10) : (unsigned)time(NULL);
    print_message("MOBULA_TEST_SEED=%u\n", seed);
    for (int round = 0; round < 4; round++) {
        file_new_encrypted(LIMIT);
        faults.no_direct = round % 2;
        for (int i = 0; i < 120; i++) {
            random_operation(&seed);
            uint64_t begin = below(&seed, LIMIT), count = below(&seed, 3 * BLOCK);
            unsigned char *got = malloc((size_t)count + 1);
            ssize_t is = growing_read(&file.growing, got, (size_t)count, begin);
            uint64_t left = begin < file.size ? file.size - begin : 0;
            assert_int_equal(is, count < left ? count : left);
            assert_memory_equal(got, file.shared->model + begin, (size_t)is);
            free(got);
            if (i % 4 == 0)
                assert_reads();
            if (i % 10 == 0)
                assert_secret();
        }
        assert_reads();
        assemble();
        file_close();
    }
}

/* --- what is refused --- */

static void states_and_modes_that_can_not_be_are_refused(void **state)
{
    (void)state;
    file_new_encrypted(LIMIT);
    put_new(3 * UNIT, 0);
    move_to(UNIT);
    struct growing_disk disk = {.fd = file.disk_fd, .key = key, .file = FILE_NUMBER};
    struct growing_disk plain = {.fd = file.disk_fd};
    struct growing_state good = file.shared->state;
    const struct growing_state bad[] = {
        {.moved = UNIT},                                     /* of a plain file */
        {.moved = UNIT, .filled = UNIT + 1},                 /* more than was moved */
        {.moved = 2 * UNIT, .filled = UNIT},                 /* a unit without anything */
        {.moved = UNIT, .filled = UNIT, .redo = 3},          /* past the end */
        {.moved = UNIT, .filled = UNIT, .redo = UINT64_MAX}, /* nonsense */
        {.moved = UNIT, .filled = UNIT, .torn = true},
        {.moved = UINT64_MAX, .filled = UINT64_MAX},
    };
    struct growing it;
    assert_int_equal(growing_init(&it, file.memory_fd, &disk, false, NULL, note, NULL), -EINVAL);
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(bad); i++)
        assert_int_equal(growing_init(&it, file.memory_fd, &disk, true, &bad[i], note, NULL),
                         -EINVAL);
    assert_int_equal(growing_init(&it, file.memory_fd, &plain, true, &good, note, NULL), -EINVAL);
    assert_int_equal(growing_init(&it, file.memory_fd, &disk, true, &good, note, NULL), 0);
    growing_destroy(&it);
    file_close();
}

static void flip(uint64_t at)
{
    unsigned char byte;
    assert_int_equal(pread(file.disk_fd, &byte, 1, (off_t)at), 1);
    byte ^= 1;
    assert_int_equal(__real_pwrite64(file.disk_fd, &byte, 1, (off_t)at), 1);
}

static void assert_block_is_bad(uint64_t block)
{
    static unsigned char buffer[CIPHER_BLOCK_BYTES];
    memset(buffer, 0xee, sizeof buffer);
    assert_int_equal(growing_read(&file.growing, buffer, sizeof buffer, block * BLOCK), -EIO);
    for (size_t i = 0; i < sizeof buffer; i++)
        assert_int_equal(buffer[i], 0);
    assert_int_equal(growing_write(&file.growing, "x", 1, block * BLOCK + 900000), -EIO);
    assert_int_equal(growing_punch(&file.growing, block * BLOCK + 900000, 5), -EIO);
    assert_int_equal(growing_read(&file.growing, buffer, sizeof buffer, (block ^ 1) * BLOCK),
                     sizeof buffer);
}

static void a_wrong_byte_on_disk_is_an_error(void **state)
{
    (void)state;
    static const uint64_t places[] = {
        0, 9, 13, 17, 25, 33, 73, 327, CIPHER_HEAD_BYTES, CIPHER_HEAD_BYTES + 700000};
    static const char zeros[CIPHER_HEAD_BYTES];
    static unsigned char raw[2][CIPHER_STRIDE_BYTES];
    file_new_encrypted(LIMIT);
    put_new(3 * UNIT + TAIL, 0);
    move_to(3 * UNIT);
    for (size_t i = 0; i < MOB_ARRAY_LENGTH(places); i++) {
        flip(cipher_block_offset(2) + places[i]);
        assert_block_is_bad(2);
        flip(cipher_block_offset(2) + places[i]);
        assert_reads();
    }
    /* A head that was wiped, two blocks that changed places, a file that was cut. */
    for (int i = 0; i < 2; i++)
        assert_int_equal(mob_pread_full(file.disk_fd, raw[i], sizeof raw[i],
                                        (off_t)cipher_block_offset(2 + 3 * (uint64_t)i)),
                         sizeof raw[i]);
    assert_int_equal(__real_pwrite64(file.disk_fd, zeros, sizeof zeros, cipher_block_offset(2)),
                     sizeof zeros);
    assert_block_is_bad(2);
    assert_int_equal(__real_pwrite64(file.disk_fd, raw[1], sizeof raw[1], cipher_block_offset(2)),
                     sizeof raw[1]);
    assert_block_is_bad(2);
    assert_int_equal(__real_pwrite64(file.disk_fd, raw[0], sizeof raw[0], cipher_block_offset(2)),
                     sizeof raw[0]);
    assert_int_equal(__real_ftruncate64(file.disk_fd, cipher_block_offset(5)), 0);
    assert_block_is_bad(5);
    /* What is written as a whole is good again. */
    put_new(BLOCK, 5 * BLOCK);
    assert_reads();
    assemble();
    file_close();
}

/* --- readers --- */

static atomic_bool reader_ends;
static atomic_int reads, bad_reads;

static void *read_along(void *argument)
{
    unsigned char *buffer = malloc(CIPHER_BLOCK_BYTES);
    (void)argument;
    while (!reader_ends) {
        ssize_t got = growing_read(&file.growing, buffer, CIPHER_BLOCK_BYTES, BLOCK);
        bool whole =
            got == CIPHER_BLOCK_BYTES && memcmp(buffer, buffer + 1, CIPHER_BLOCK_BYTES - 1) == 0;
        bad_reads += !whole;
        reads++;
    }
    free(buffer);
    return NULL;
}

static void a_reader_never_sees_a_part_of_a_block(void **state)
{
    (void)state;
    static unsigned char bytes[CIPHER_BLOCK_BYTES];
    pthread_t threads[2];
    uint64_t until_ns = mob_monotonic_ns() + UINT64_C(500000000);
    file_new_encrypted(LIMIT);
    put_new(UNIT + TAIL, 0);
    put_through(bytes, sizeof bytes, BLOCK);
    move_to(UNIT);
    reader_ends = false;
    reads = bad_reads = 0;
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, read_along, NULL), 0);
    for (int i = 0; mob_monotonic_ns() < until_ns; i++) {
        memset(bytes, i, sizeof bytes);
        put_through(bytes, sizeof bytes, BLOCK);
    }
    reader_ends = true;
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    assert_true(reads > 0);
    assert_int_equal(bad_reads, 0);
    assert_reads();
    file_close();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_encrypted_file_is_what_the_store_reads),
        cmocka_unit_test(holes_become_blocks_of_zeros),
        cmocka_unit_test(random_operations_are_exact),
        cmocka_unit_test(states_and_modes_that_can_not_be_are_refused),
        cmocka_unit_test(a_wrong_byte_on_disk_is_an_error),
        cmocka_unit_test(a_reader_never_sees_a_part_of_a_block),
    };
    return cmocka_run_group_tests(tests, set_up_encrypted, tear_down);
}
