/* fs: which objects' content is given to the kernel before an open is answered, and when. */
#include "store_fixture.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>

#include "fs/node.h"
#include "fs/prefill.h"

/* The kernel, played. It keeps what it was given last, and does not return from a store of an
 * object while `held`. */
static struct {
    bool too_old, held;
    errint_t refuses;
    unsigned stores;
    uint64_t node;
    size_t bytes;
    char content[65536];
    sem_t entered, leave;
    atomic_bool done;
} kernel;

bool __wrap_transport_can_store(const struct transport *transport);
bool __wrap_transport_can_store(const struct transport *transport)
{
    (void)transport;
    return !kernel.too_old;
}

errint_t __wrap_transport_store(struct transport *transport, uint64_t node, const void *content,
                                size_t bytes);
errint_t __wrap_transport_store(struct transport *transport, uint64_t node, const void *content,
                                size_t bytes)
{
    (void)transport;
    kernel.stores++;
    kernel.node = node;
    kernel.bytes = bytes;
    memcpy(kernel.content, content, bytes);
    if (kernel.held) {
        sem_post(&kernel.entered);
        sem_wait(&kernel.leave);
    }
    atomic_store(&kernel.done, true);
    return kernel.refuses;
}

/* What is on disk is damaged. */
static bool damaged;
ssize_t __real_store_read_inline(struct store *store, uint64_t number, void *buffer, size_t bytes,
                                 uint64_t offset);
ssize_t __wrap_store_read_inline(struct store *store, uint64_t number, void *buffer, size_t bytes,
                                 uint64_t offset);
ssize_t __wrap_store_read_inline(struct store *store, uint64_t number, void *buffer, size_t bytes,
                                 uint64_t offset)
{
    return damaged ? -EIO : __real_store_read_inline(store, number, buffer, bytes, offset);
}

struct scene {
    struct store *store;
    struct prefill *prefill;
    char content[65536];
    uint64_t node, number;
};

static struct scene scene;

/* An object of that size, looked up and never opened. */
static void put_object(void **state, size_t bytes)
{
    static unsigned names;
    struct fixture *fixture = *state;
    struct object_info info;
    char name[16];
    memset(&kernel, 0, sizeof kernel);
    sem_init(&kernel.entered, 0, 0);
    sem_init(&kernel.leave, 0, 0);
    scene.store = fixture->store;
    for (size_t i = 0; i < sizeof scene.content; i++)
        scene.content[i] = (char)(i * 31 + i / 256);
    snprintf(name, sizeof name, "%u", names++);
    struct mob_id id = fixture_put(scene.store, NAMES_STAGING, name, scene.content, bytes);
    assert_int_equal(store_find(scene.store, &id, &info), 0);
    scene.number = info.number;
    scene.node = node_id(NODE_OBJECT, 0, info.number);
    prefill_looked_up(scene.prefill, scene.node);
}

static void open_with(bool cache)
{
    assert_int_equal(store_opened(scene.store, scene.number), 0);
    prefill_before_open(scene.prefill, NULL, scene.store, scene.node, cache);
}

static void open_object(void)
{
    open_with(true);
}

static void close_object(void)
{
    store_open_dropped(scene.store, scene.number);
}

static unsigned stores_of_first_open(void **state, size_t bytes)
{
    put_object(state, bytes);
    open_object();
    close_object();
    return kernel.stores;
}

static void the_first_open_after_a_look_up_gives_the_content(void **state)
{
    assert_int_equal(stores_of_first_open(state, 10000), 1);
    assert_int_equal(kernel.node, scene.node);
    assert_int_equal(kernel.bytes, 10000);
    assert_memory_equal(kernel.content, scene.content, 10000);
    open_object();
    close_object();
    assert_int_equal(kernel.stores, 1);
    prefill_looked_up(scene.prefill, scene.node);
    open_object();
    close_object();
    assert_int_equal(kernel.stores, 2);
}

static void only_small_objects_are_given(void **state)
{
    assert_int_equal(stores_of_first_open(state, 0), 0);
    assert_int_equal(stores_of_first_open(state, 1), 1);
    assert_int_equal(stores_of_first_open(state, 32768), 1);
    assert_memory_equal(kernel.content, scene.content, 32768);
    assert_int_equal(stores_of_first_open(state, 32769), 0);
}

static void nothing_is_given_to_a_kernel_that_would_show_other_bytes(void **state)
{
    put_object(state, 100);
    kernel.too_old = true;
    open_object();
    close_object();
    assert_int_equal(kernel.stores, 0);
}

static void nothing_is_given_of_an_object_that_is_damaged(void **state)
{
    damaged = true;
    assert_int_equal(stores_of_first_open(state, 100), 0);
    damaged = false;
}

static void who_reads_past_the_cache_is_given_nothing(void **state)
{
    put_object(state, 100);
    open_with(false);
    close_object();
    assert_int_equal(kernel.stores, 0);
    open_object();
    close_object();
    assert_int_equal(kernel.stores, 1);
}

static void what_the_kernel_refuses_is_not_tried_again(void **state)
{
    put_object(state, 100);
    kernel.refuses = -ENOENT;
    open_object();
    open_object();
    close_object();
    close_object();
    assert_int_equal(kernel.stores, 1);
}

/* Who has it open may be reading it: its pages may be locked. */
static void nothing_is_given_while_another_has_it_open(void **state)
{
    put_object(state, 100);
    open_object();
    assert_int_equal(kernel.stores, 1);
    prefill_looked_up(scene.prefill, scene.node);
    open_object();
    assert_int_equal(kernel.stores, 1);
    close_object();
    close_object();
    open_object(); /* who had it open has read it */
    close_object();
    assert_int_equal(kernel.stores, 1);
}

static void *open_in_thread(void *argument)
{
    (void)argument;
    open_object();
    return NULL;
}

static _Atomic int waiter_id;
static atomic_bool waiter_returned, done_when_returned;

static void *open_meanwhile(void *argument)
{
    (void)argument;
    atomic_store(&waiter_id, (int)syscall(SYS_gettid));
    open_with(false);
    atomic_store(&done_when_returned, atomic_load(&kernel.done));
    atomic_store(&waiter_returned, true);
    return NULL;
}

static bool sleeps(int thread)
{
    char path[64], text[256], *end;
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", thread);
    FILE *file = fopen(path, "r");
    bool asleep =
        file && fgets(text, sizeof text, file) && (end = strrchr(text, ')')) && end[2] == 'S';
    if (file)
        fclose(file);
    return asleep;
}

static void who_opens_it_meanwhile_is_answered_after_that(void **state)
{
    pthread_t first, second;
    put_object(state, 100);
    kernel.held = true;
    assert_int_equal(pthread_create(&first, NULL, open_in_thread, NULL), 0);
    sem_wait(&kernel.entered);
    assert_int_equal(pthread_create(&second, NULL, open_meanwhile, NULL), 0);
    while (!atomic_load(&waiter_returned) &&
           (!atomic_load(&waiter_id) || !sleeps(atomic_load(&waiter_id))))
        sched_yield();
    sem_post(&kernel.leave);
    pthread_join(first, NULL);
    pthread_join(second, NULL);
    assert_true(atomic_load(&done_when_returned));
    assert_int_equal(kernel.stores, 1);
    close_object();
    close_object();
}

static int setup(void **state)
{
    return fixture_setup(state) || prefill_open(&scene.prefill);
}

static int teardown(void **state)
{
    prefill_close(scene.prefill);
    return fixture_teardown(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_first_open_after_a_look_up_gives_the_content, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(only_small_objects_are_given, setup, teardown),
        cmocka_unit_test_setup_teardown(nothing_is_given_to_a_kernel_that_would_show_other_bytes,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(nothing_is_given_of_an_object_that_is_damaged, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(who_reads_past_the_cache_is_given_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(what_the_kernel_refuses_is_not_tried_again, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(nothing_is_given_while_another_has_it_open, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(who_opens_it_meanwhile_is_answered_after_that, setup,
                                        teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
