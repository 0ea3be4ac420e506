/* Open files of the mount, in session memory.
 *
 * `valid` is stored last when a slot is taken and first when it is given back, with release and
 * acquire order, so that a successor sees whole slots only. Which slots are free is this server's
 * own memory, found again by a walk. */
#include "fs/handles.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/util.h"

#define HANDLE_SLOTS (1u << 20)
#define FILE_PAGE 4096u

_Static_assert(sizeof(struct handle) == 64, "a handle is a cache line");

struct handles {
    struct backing_slot *backing;
    struct handle *slots;
    pthread_mutex_t mutex; /* free list, files */
    uint32_t *free;        /* stack of slots given back */
    uint32_t free_count, free_capacity;
    uint32_t fresh; /* slots from here on have never been used */
    struct store_file *files[HANDLE_SLOTS / FILE_PAGE]; /* descriptor 0: none; made as needed */
};

size_t handles_bytes(void)
{
    return sizeof(struct backing_slot) * BACKING_SLOTS + sizeof(struct handle) * HANDLE_SLOTS;
}

static bool push_free(struct handles *handles, uint32_t slot)
{
    if (handles->free_count == handles->free_capacity) {
        uint32_t capacity = handles->free_capacity ? handles->free_capacity * 2 : 1024;
        uint32_t *larger = realloc(handles->free, capacity * sizeof *larger);
        if (!larger)
            return false; /* the slot is found again by the next server's walk */
        handles->free = larger;
        handles->free_capacity = capacity;
    }
    handles->free[handles->free_count++] = slot;
    return true;
}

errint_t handles_open(void *area, struct handles **out)
{
    struct handles *handles = calloc(1, sizeof *handles);
    if (!handles)
        return -ENOMEM;
    handles->backing = area;
    handles->slots = (struct handle *)(handles->backing + BACKING_SLOTS);
    pthread_mutex_init(&handles->mutex, NULL);
    /* Slots are taken from the bottom, so the first never-used one (generation 0) ends the walk. */
    while (handles->fresh < HANDLE_SLOTS && handles->slots[handles->fresh].generation) {
        if (!handles->slots[handles->fresh].valid)
            push_free(handles, handles->fresh);
        handles->fresh++;
    }
    *out = handles;
    return 0;
}

void handles_close(struct handles *handles)
{
    if (!handles)
        return;
    for (size_t page = 0; page < HANDLE_SLOTS / FILE_PAGE; page++) {
        for (size_t i = 0; handles->files[page] && i < FILE_PAGE; i++)
            if (handles->files[page][i].fd)
                close(handles->files[page][i].fd);
        free(handles->files[page]);
    }
    free(handles->free);
    pthread_mutex_destroy(&handles->mutex);
    free(handles);
}

struct backing_slot *handles_backing_slots(struct handles *handles)
{
    return handles->backing;
}

static uint64_t handle_number(const struct handles *handles, const struct handle *handle)
{
    return (uint64_t)handle->generation << 32 | (uint64_t)(handle - handles->slots);
}

static struct handle *find_by_request(struct handles *handles, uint64_t request)
{
    /* Only for requests sent again after a restart: a walk is cheap enough. */
    for (uint32_t i = 0; i < handles->fresh; i++)
        if (__atomic_load_n(&handles->slots[i].valid, __ATOMIC_ACQUIRE) &&
            __atomic_load_n(&handles->slots[i].request, __ATOMIC_RELAXED) == request)
            return &handles->slots[i];
    return NULL;
}

errint_t handles_new(struct handles *handles, uint64_t request, bool resent, uint64_t node,
                     uint32_t flags, uint32_t pid, struct handle **out, uint64_t *fh, bool *existed)
{
    struct handle *handle = NULL;
    {
        cleanup_lock pthread_mutex_t *held = mob_lock(&handles->mutex);
        if (resent)
            handle = find_by_request(handles, request);
        *existed = handle != NULL;
        if (!handle && handles->free_count)
            handle = &handles->slots[handles->free[--handles->free_count]];
        else if (!handle && handles->fresh < HANDLE_SLOTS)
            handle = &handles->slots[handles->fresh++];
        if (!handle)
            return -ENFILE;
        if (!*existed) {
            uint32_t next = handle->generation + 1; /* only written under the mutex */
            __atomic_store_n(&handle->generation, next ? next : 1, __ATOMIC_RELAXED);
        }
    }
    if (!*existed) {
        /* Relaxed: a look at a slot that is just being taken again finds it not valid, or
         * another's. */
        __atomic_store_n(&handle->request, request, __ATOMIC_RELAXED);
        handle->node = node;
        handle->file = 0;
        __atomic_store_n(&handle->poll_handle, 0, __ATOMIC_RELAXED);
        handle->backing_id = 0;
        handle->flags = flags;
        handle->pid = pid;
        __atomic_store_n(&handle->valid, 1, __ATOMIC_RELEASE);
    }
    *out = handle;
    *fh = handle_number(handles, handle);
    return 0;
}

struct handle *handles_get(struct handles *handles, uint64_t fh)
{
    uint32_t slot = (uint32_t)fh;
    if (slot >= HANDLE_SLOTS)
        return NULL;
    struct handle *handle = &handles->slots[slot];
    if (!__atomic_load_n(&handle->valid, __ATOMIC_ACQUIRE) ||
        __atomic_load_n(&handle->generation, __ATOMIC_RELAXED) != fh >> 32)
        return NULL;
    return handle;
}

/* Where a handle's file is kept. NULL: no page for it yet, nor one made. The mutex is held. */
static struct store_file *file_place(struct handles *handles, uint64_t fh, bool make)
{
    uint32_t slot = (uint32_t)fh;
    struct store_file **page = &handles->files[slot / FILE_PAGE];
    if (!*page && make)
        *page = calloc(FILE_PAGE, sizeof **page);
    return *page ? &(*page)[slot % FILE_PAGE] : NULL;
}

/* Not with the mutex: the last to close a file that was removed may wait for the disk. */
static void close_file(struct handles *handles, uint64_t fh)
{
    int fd = 0;
    {
        cleanup_lock pthread_mutex_t *held = mob_lock(&handles->mutex);
        struct store_file *place = file_place(handles, fh, false);
        if (place) {
            fd = place->fd;
            place->fd = 0;
        }
    }
    if (fd)
        close(fd);
}

void handles_free(struct handles *handles, uint64_t fh)
{
    struct handle *handle = handles_get(handles, fh);
    if (!handle)
        return;
    __atomic_store_n(&handle->valid, 0, __ATOMIC_RELEASE);
    close_file(handles, fh);
    cleanup_lock pthread_mutex_t *held = mob_lock(&handles->mutex);
    push_free(handles, (uint32_t)fh);
}

void handles_each(struct handles *handles,
                  void (*each)(void *argument, struct handle *handle, uint64_t fh), void *argument)
{
    for (uint32_t i = 0; i < handles->fresh; i++)
        if (__atomic_load_n(&handles->slots[i].valid, __ATOMIC_ACQUIRE))
            each(argument, &handles->slots[i], handle_number(handles, &handles->slots[i]));
}

errint_t handles_file(struct handles *handles, uint64_t fh, struct store_file *out)
{
    cleanup_lock pthread_mutex_t *held = mob_lock(&handles->mutex);
    if (!handles_get(handles, fh))
        return -EBADF;
    const struct store_file *kept = file_place(handles, fh, false);
    if (!kept || !kept->fd)
        return -ENOENT;
    *out = *kept;
    return 0;
}

errint_t handles_keep_file(struct handles *handles, uint64_t fh, struct store_file *file)
{
    cleanup_fd int spare = file->fd; /* closed after the mutex is free */
    cleanup_lock pthread_mutex_t *held = mob_lock(&handles->mutex);
    if (!handles_get(handles, fh))
        return -EBADF;
    struct store_file *place = file_place(handles, fh, true);
    if (!place)
        return -ENOMEM;
    if (!place->fd) {
        *place = *file;
        spare = -1;
    }
    *file = *place;
    return 0;
}

void handles_close_file(struct handles *handles, uint64_t fh)
{
    if (handles_get(handles, fh))
        close_file(handles, fh);
}
