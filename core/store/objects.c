/* Objects: looking them up, listing them, reading them. */
#include <fcntl.h>
#include <openssl/evp.h>
#include <string.h>
#include <sys/stat.h>

#include "core/store/store_internal.h"

void object_to_info(const struct object *object, struct object_info *out)
{
    *out = (struct object_info){
        .id = object->id,
        .number = object->number,
        .size = object->size,
        .mtime_ns = object->mtime_ns,
        .file = object->file,
        .staged = object->staged,
        .links = object->links,
        .opens = object->opens,
        .uid = object->uid,
        .gid = object->gid,
        .mode = S_IFREG | object->mode,
        .state = (enum object_state)object->state,
        .tier = (enum object_tier)object->tier,
        .failure = object->state == OBJECT_FAILED ? object->failure->code : 0,
    };
}

errint_t store_find(struct store *store, const struct mob_id *id, struct object_info *out)
{
    struct table_shard *shard;
    const struct object *object = table_lock_id(&store->table, id, &shard);
    if (!object)
        return -ENOENT;
    object_to_info(object, out);
    table_unlock(shard);
    return 0;
}

errint_t store_info(struct store *store, uint64_t number, struct object_info *out)
{
    struct table_shard *shard;
    const struct object *object = table_lock_number(&store->table, number, &shard);
    if (!object)
        return -ENOENT;
    object_to_info(object, out);
    table_unlock(shard);
    return 0;
}

/* --- listing --- */

struct listing {
    struct object_info *out;
    uint64_t *cursors;
    size_t count, limit;
};

static bool list_one(void *argument, const struct object *object, uint64_t next)
{
    struct listing *listing = argument;
    if (object->state != OBJECT_READY)
        return true;
    object_to_info(object, &listing->out[listing->count]);
    if (listing->cursors)
        listing->cursors[listing->count] = next;
    return ++listing->count < listing->limit;
}

size_t store_list(struct store *store, uint64_t *cursor, struct object_info *out, size_t count)
{
    struct listing listing = {.out = out, .limit = count};
    if (count)
        table_walk(&store->table, cursor, list_one, &listing);
    return listing.count;
}

size_t store_list_cursors(struct store *store, uint64_t cursor, struct object_info *out,
                          uint64_t *cursors, size_t count)
{
    struct listing listing = {.out = out, .cursors = cursors, .limit = count};
    if (count)
        table_walk(&store->table, &cursor, list_one, &listing);
    return listing.count;
}

/* --- content --- */

struct content {
    struct mob_id id;
    uint64_t size, file;
    unsigned dir; /* of its copy on disk */
    bool embedded, encrypted;
};

static errint_t content_of(struct store *store, uint64_t number, struct content *out)
{
    struct table_shard *shard;
    const struct object *object = table_lock_number(&store->table, number, &shard);
    if (!object)
        return -ENOENT;
    errint_t error = 0;
    if (object->state == OBJECT_PENDING)
        error = -EAGAIN;
    else if (object->state == OBJECT_FAILED)
        error = object->failure->code;
    *out = (struct content){.id = object->id,
                            .size = object->size,
                            .file = object->file,
                            .dir = object->disk,
                            .embedded = object->flags & OBJECT_EMBEDDED,
                            .encrypted = object->flags & OBJECT_ENCRYPTED};
    table_unlock(shard);
    return error;
}

/* The content, as it is kept, in the transaction's memory, checked as a whole. -EIO: it is damaged,
 * or away. */
static errint_t inline_content(struct store *store, MDB_txn *txn, uint64_t number,
                               const struct content *content, const void **out)
{
    struct object_record record;
    const void *value;
    size_t bytes;
    errint_t error = meta_get_number(
        &store->meta, txn, content->embedded ? META_OBJECTS : META_INLINE, number, &value, &bytes);
    if (error)
        return error == -ENOENT ? -EIO : error;
    if (content->embedded) {
        if (bytes < sizeof record)
            return -EIO;
        memcpy(&record, value, sizeof record);
        value = (const char *)value + sizeof record;
        bytes -= sizeof record;
        if (record.content_sum != object_content_sum(value, bytes))
            return -EIO;
    }
    *out = value;
    return bytes == cipher_value_bytes(content->size, content->encrypted) ? 0 : -EIO;
}

static errint_t copy_part(struct store *store, uint64_t number, const struct content *content,
                          const void *value, void *buffer, size_t bytes, uint64_t offset)
{
    if (!content->encrypted) {
        memcpy(buffer, (const char *)value + offset, bytes);
        return 0;
    }
    cleanup_free char *plain = malloc(content->size + 1);
    if (!plain)
        return -ENOMEM;
    errint_t error = store->key ? cipher_decrypt_value(store->key, META_INLINE, number, value,
                                                       content->size + CIPHER_VALUE_BYTES, plain)
                                : -EIO;
    if (!error)
        memcpy(buffer, plain + offset, bytes);
    return error == -EBADMSG ? -EIO : error;
}

static void note_inline_damage(struct store *store, uint64_t number, const struct content *content)
{
    struct object_info info;
    char *sentence;
    if (asprintf(&sentence, "its content in %s/meta does not have its checksum", store->state_dir) <
        0)
        return;
    damage_note(store, number, &content->id, sentence);
    free(sentence);
    if (store_info(store, number, &info))
        fetch_forget(store, number); /* freed meanwhile */
}

static ssize_t read_inline(struct store *store, uint64_t number, const struct content *content,
                           void *buffer, size_t bytes, uint64_t offset)
{
    struct meta_reader *reader;
    if (offset >= content->size)
        return 0;
    errint_t error = meta_read_begin(&store->meta, &reader);
    if (error)
        return error;
    const void *value;
    error = inline_content(store, reader->txn, number, content, &value);
    if (!error) {
        if (bytes > content->size - offset)
            bytes = content->size - offset;
        error = copy_part(store, number, content, value, buffer, bytes, offset);
    }
    meta_read_end(reader);
    if (error == -EIO)
        note_inline_damage(store, number, content);
    return error ? error : (ssize_t)bytes;
}

ssize_t store_read_inline(struct store *store, uint64_t number, void *buffer, size_t bytes,
                          uint64_t offset)
{
    struct content content;
    errint_t error = content_of(store, number, &content);
    if (error)
        return error == -ENOENT ? -ENOENT : -EINVAL;
    if (content.file)
        return -EINVAL;
    return read_inline(store, number, &content, buffer, bytes, offset);
}

/* What is read is not to be noted on the disk: the note might have to wait for it. */
static void want_no_atime(int fd)
{
    (void)fcntl(fd, F_SETFL, O_NOATIME); /* not allowed for others' files */
}

static errint_t opened(const struct content *content, int fd, bool on_disk, struct store_file *out)
{
    *out = (struct store_file){.fd = fd};
    if (fd < 0)
        return fd;
    if (on_disk) {
        out->form = content->encrypted ? STORE_ENCRYPTED : STORE_ON_DISK;
        want_no_atime(fd);
    }
    return 0;
}

/* 1: it is not in memory. */
static errint_t open_in_memory(struct store *store, uint64_t number, struct content *content,
                               struct store_file *out)
{
    errint_t error = content_of(store, number, content);
    if (!error && !content->file)
        error = -EINVAL;
    if (error)
        return error;
    int fd = data_open(store, content->file, O_RDONLY);
    return fd == -ENOENT ? 1 : opened(content, fd, false, out);
}

errint_t store_open_file(struct store *store, uint64_t number, struct store_file *out)
{
    struct content content;
    errint_t error = open_in_memory(store, number, &content, out);
    if (error != 1)
        return error;
    int fd = disk_find_file(&store->disk, content.file, O_RDONLY, NULL);
    if (fd >= 0 || !content.encrypted)
        return opened(&content, fd, true, out);
    fetch_note_damage(store, number, fd, 0); /* nobody has looked at it before */
    return -EIO;
}

errint_t store_open_file_now(struct store *store, uint64_t number, struct store_file *out)
{
    struct content content;
    errint_t error = open_in_memory(store, number, &content, out);
    if (error != 1)
        return error;
    int fd = disk_open_file_now(&store->disk, content.dir, content.file, O_RDONLY);
    /* What isn't there, who may wait looks for elsewhere, and says what is wrong. */
    return opened(&content, fd == -ENOENT ? -EAGAIN : fd, true, out);
}

/* Where the last read of a descriptor has ended. */
static atomic_uint_fast64_t *read_end(struct store *store, int fd)
{
    return &store->read_ends[(unsigned)fd % STORE_READ_ENDS];
}

/* The disk is to be busy while a chunk is decrypted, and while the reader is busy with it: who
 * reads on where the last read of the descriptor has ended, or nearly, has the next blocks asked
 * for. */
static bool is_ahead_due(uint64_t last, uint64_t size, uint64_t offset, size_t bytes)
{
    enum { NEARLY = CIPHER_BLOCK_BYTES };
    uint64_t end = offset + bytes;
    bool goes_on = offset <= last + NEARLY && last <= offset + NEARLY;
    return goes_on && end / CIPHER_BLOCK_BYTES != offset / CIPHER_BLOCK_BYTES && end < size;
}

/* To ask for them may be to wait for room in the disk's queue. */
static void read_ahead(struct store *store, int fd, uint64_t size, uint64_t offset, size_t bytes)
{
    enum { AHEAD_BLOCKS = 8 };
    uint64_t end = offset + bytes, block = end / CIPHER_BLOCK_BYTES;
    uint64_t last = atomic_exchange_explicit(read_end(store, fd), end, memory_order_relaxed);
    if (!is_ahead_due(last, size, offset, bytes))
        return;
    uint64_t ahead = offset ? AHEAD_BLOCKS - 1 : 0; /* those before were asked for */
    (void)posix_fadvise(fd, (off_t)cipher_block_offset(block + ahead),
                        (off_t)(AHEAD_BLOCKS - ahead) * CIPHER_STRIDE_BYTES, POSIX_FADV_WILLNEED);
}

static ssize_t read_encrypted(struct store *store, uint64_t number, const struct cipher_file *file,
                              void *buffer, size_t bytes, uint64_t offset)
{
    uint64_t bad_block = 0;
    ssize_t got = cipher_pread(store->key, file, buffer, bytes, offset, &bad_block);
    if (got >= 0 || got == -ENOMEM || got == -EINTR || got == -EAGAIN)
        return got;
    fetch_note_damage(store, number, (errint_t)got, bad_block);
    return -EIO;
}

ssize_t store_read_file(struct store *store, uint64_t number, const struct store_file *file,
                        void *buffer, size_t bytes, uint64_t offset)
{
    struct content content;
    if (file->form != STORE_ENCRYPTED)
        return mob_pread_full(file->fd, buffer, bytes, (off_t)offset);
    errint_t error = content_of(store, number, &content);
    if (error || !store->key)
        return error ? error : -EIO;
    struct cipher_file encrypted = {.fd = file->fd, .number = content.file, .size = content.size};
    read_ahead(store, file->fd, content.size, offset, bytes);
    return read_encrypted(store, number, &encrypted, buffer, bytes, offset);
}

ssize_t store_read_file_now(struct store *store, uint64_t number, const struct store_file *file,
                            void *buffer, size_t bytes, uint64_t offset)
{
    struct content content;
    if (file->form == STORE_IN_MEMORY)
        return mob_pread_full(file->fd, buffer, bytes, (off_t)offset);
    errint_t error = content_of(store, number, &content);
    if (error)
        return error;
    if (file->form == STORE_ON_DISK)
        return mob_pread_cached(file->fd, content.size, buffer, bytes, offset);
    if (!store->key)
        return -EIO;
    atomic_uint_fast64_t *last = read_end(store, file->fd);
    if (is_ahead_due(atomic_load_explicit(last, memory_order_relaxed), content.size, offset, bytes))
        return -EAGAIN;
    struct cipher_file encrypted = {
        .fd = file->fd, .now = true, .number = content.file, .size = content.size};
    ssize_t got = read_encrypted(store, number, &encrypted, buffer, bytes, offset);
    if (got >= 0)
        atomic_store_explicit(last, offset + bytes, memory_order_relaxed);
    return got;
}

static errint_t read_content(struct store *store, uint64_t number, const struct content *content,
                             char *buffer)
{
    ssize_t got;
    if (content->file) {
        struct store_file file;
        errint_t error = store_open_file(store, number, &file);
        if (error)
            return error;
        got = store_read_file(store, number, &file, buffer, content->size, 0);
        close(file.fd);
    } else {
        got = read_inline(store, number, content, buffer, content->size, 0);
    }
    if (got < 0)
        return (errint_t)got;
    return (uint64_t)got == content->size ? 0 : -EIO;
}

errint_t store_read_all(struct store *store, const struct mob_id *id, size_t limit, char **out,
                        size_t *bytes)
{
    struct object_info info;
    struct content content;
    errint_t error = store_find(store, id, &info);
    if (!error)
        error = store_opened(store, info.number);
    if (error)
        return error;
    char *buffer = NULL;
    error = content_of(store, info.number, &content);
    if (!error && content.size > limit)
        error = -EFBIG;
    if (!error)
        error = store_verify(store, info.number);
    if (!error && !(buffer = malloc(content.size + 1)))
        error = -ENOMEM;
    if (!error)
        error = read_content(store, info.number, &content, buffer);
    store_open_dropped(store, info.number);
    if (error) {
        free(buffer);
        return error;
    }
    buffer[content.size] = '\0';
    *out = buffer;
    *bytes = content.size;
    return 0;
}

errint_t store_failure(struct store *store, uint64_t number, char **sentence)
{
    struct table_shard *shard;
    const struct object *object = table_lock_number(&store->table, number, &shard);
    if (!object)
        return -ENOENT;
    errint_t error = object->state == OBJECT_FAILED ? 0 : -ENOENT;
    if (!error && !(*sentence = strdup(object->failure->sentence)))
        error = -ENOMEM;
    table_unlock(shard);
    return error == -ENOENT ? damage_sentence(store, number, sentence) : error;
}

/* --- SHA-256 --- */

static errint_t digest_file(struct store *store, uint64_t number, EVP_MD_CTX *context)
{
    enum { STEP = 1 << 20 };
    cleanup_free char *buffer = malloc(STEP);
    struct store_file file;
    errint_t error = buffer ? store_open_file(store, number, &file) : -ENOMEM;
    if (error)
        return error;
    ssize_t got = STEP;
    for (uint64_t offset = 0; !error && got == STEP; offset += STEP) {
        got = store_read_file(store, number, &file, buffer, STEP, offset);
        if (got < 0)
            error = (errint_t)got;
        else if (!EVP_DigestUpdate(context, buffer, (size_t)got))
            error = -EIO;
    }
    close(file.fd);
    return error;
}

static errint_t digest(struct store *store, uint64_t number, const struct content *content,
                       uint8_t sum[32])
{
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    if (!context)
        return -ENOMEM;
    errint_t error = EVP_DigestInit_ex(context, EVP_sha256(), NULL) ? 0 : -EIO;
    if (!error && content->file) {
        error = digest_file(store, number, context);
    } else if (!error) {
        cleanup_free char *buffer = malloc(content->size + 1);
        error = buffer ? read_content(store, number, content, buffer) : -ENOMEM;
        if (!error && !EVP_DigestUpdate(context, buffer, content->size))
            error = -EIO;
    }
    if (!error && !EVP_DigestFinal_ex(context, sum, NULL))
        error = -EIO;
    EVP_MD_CTX_free(context);
    return error;
}

static errint_t kept_sum(struct store *store, uint64_t number, uint8_t sum[32])
{
    struct meta_reader *reader;
    const void *value;
    size_t bytes;
    errint_t error = meta_read_begin(&store->meta, &reader);
    if (error)
        return error;
    error = meta_get_number(&store->meta, reader->txn, META_SUMS, number, &value, &bytes);
    if (!error && bytes == 32)
        memcpy(sum, value, 32);
    else if (!error && store->key && bytes == 32 + CIPHER_VALUE_BYTES)
        error = cipher_decrypt_value(store->key, META_SUMS, number, value, bytes, sum);
    else if (!error)
        error = -EIO;
    if (error == -EIO || error == -EBADMSG)
        error = -ENOENT; /* a damaged one is computed anew */
    meta_read_end(reader);
    return error;
}

/* That the sum can't be kept (no room) is no reason not to tell it. The object can't go meanwhile:
 * the caller has it open. */
static void keep_sum(struct store *store, uint64_t number, const uint8_t sum[32])
{
    MDB_txn *txn;
    uint8_t kept[32 + CIPHER_VALUE_BYTES];
    size_t bytes = store->key ? sizeof kept : 32;
    if (!store->key)
        memcpy(kept, sum, 32);
    else if (cipher_encrypt_value(store->key, META_SUMS, number, sum, 32, kept))
        return;
    store_write_lock(store);
    errint_t error = meta_begin(&store->meta, sizeof kept, &txn);
    if (!error) {
        error = meta_put_number(&store->meta, txn, META_SUMS, number, kept, bytes);
        error = meta_end(txn, error);
    }
    store_write_unlock(store);
    struct table_shard *shard;
    struct object *object = error ? NULL : table_lock_number(&store->table, number, &shard);
    if (object) {
        object->flags |= OBJECT_HAS_SUM;
        table_unlock(shard);
    }
}

errint_t store_sha256(struct store *store, uint64_t number, char out[65])
{
    uint8_t sum[32];
    struct content content;
    errint_t error = store_opened(store, number);
    if (error)
        return error;
    error = content_of(store, number, &content);
    if (!error)
        error = kept_sum(store, number, sum);
    if (error == -ENOENT) {
        error = store_verify(store, number);
        if (!error)
            error = digest(store, number, &content, sum);
        if (!error)
            keep_sum(store, number, sum);
    }
    store_open_dropped(store, number);
    for (int i = 0; i < 32 && !error; i++)
        snprintf(out + (size_t)2 * (size_t)i, 3, "%02x", sum[i]);
    return error;
}
