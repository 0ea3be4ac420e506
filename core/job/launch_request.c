/* The body of a request to run: flat and checked. */
#include "core/job/bytes.h"
#include "core/job/launch_protocol.h"

#include <errno.h>

static uint32_t list_length(char *const *list)
{
    uint32_t count = 0;
    while (list[count])
        count++;
    return count;
}

errint_t launch_request_encode(const struct launch_request *request, uint8_t **body, size_t *bytes)
{
    struct bytes_writer writer = {0};
    bytes_put_u32(&writer, request->uid);
    bytes_put_u32(&writer, request->gid);
    bytes_put_u32(&writer, request->umask);
    bytes_put_u32(&writer, request->plain_paths);
    bytes_put_u32(&writer, request->group_count);
    bytes_put(&writer, request->groups, request->group_count * sizeof *request->groups);
    bytes_put_string(&writer, request->job);
    bytes_put_string(&writer, request->directory);
    bytes_put_string(&writer, request->stdin_path);
    bytes_put_u32(&writer, request->stdin_text != NULL);
    bytes_put_u64(&writer, request->stdin_text ? request->stdin_bytes : 0);
    if (request->stdin_text)
        bytes_put(&writer, request->stdin_text, request->stdin_bytes);
    char *const *const lists[] = {request->arguments, request->environment};
    for (int i = 0; i < 2; i++) {
        bytes_put_u32(&writer, list_length(lists[i]));
        for (char *const *text = lists[i]; *text; text++)
            bytes_put_string(&writer, *text);
    }
    if (writer.failed || writer.used > LAUNCH_BODY_LIMIT) {
        free(writer.data);
        return writer.failed ? -ENOMEM : -E2BIG;
    }
    *body = writer.data;
    *bytes = writer.used;
    return 0;
}

/* Every string takes at least a byte, so a count above what is left is a lie: nothing is allocated
 * for it. */
static char **get_list(struct bytes_reader *reader)
{
    uint32_t count = bytes_get_u32(reader);
    if (reader->failed || count > reader->left)
        return NULL;
    char **list = calloc((size_t)count + 1, sizeof *list);
    for (uint32_t i = 0; list && i < count; i++)
        list[i] = (char *)bytes_get_string(reader, LAUNCH_BODY_LIMIT);
    return list;
}

errint_t launch_request_decode(const uint8_t *body, size_t bytes, struct launch_request *request)
{
    struct bytes_reader reader = {.data = body, .left = bytes};
    *request = (struct launch_request){0};
    request->uid = bytes_get_u32(&reader);
    request->gid = bytes_get_u32(&reader);
    request->umask = bytes_get_u32(&reader);
    request->plain_paths = bytes_get_u32(&reader) == 1;
    request->group_count = bytes_get_u32(&reader);
    if (request->group_count > LAUNCH_GROUPS_LIMIT)
        return -EBADMSG;
    size_t group_bytes = request->group_count * sizeof *request->groups;
    const uint8_t *groups = bytes_get_raw(&reader, group_bytes);
    request->job = bytes_get_string(&reader, 64);
    request->directory = bytes_get_string(&reader, 4096);
    request->stdin_path = bytes_get_string(&reader, 4096);
    bool has_text = bytes_get_u32(&reader) == 1;
    request->stdin_bytes = bytes_get_u64(&reader);
    const uint8_t *text = bytes_get_raw(&reader, request->stdin_bytes);
    request->stdin_text = has_text ? (const char *)text : NULL;
    request->arguments = get_list(&reader);
    request->environment = get_list(&reader);
    uint32_t *copy = malloc(group_bytes ? group_bytes : 1); /* the body's are not aligned */
    if (copy && groups)
        memcpy(copy, groups, group_bytes);
    request->groups = copy;
    if (!reader.failed && reader.left == 0 && copy && request->arguments && request->environment &&
        request->arguments[0] && request->arguments[0][0] && request->directory[0] &&
        (request->umask & ~0777u) == 0)
        return 0;
    launch_request_free(request);
    return -EBADMSG;
}

void launch_request_free(struct launch_request *request)
{
    free((void *)request->groups);
    free((void *)request->arguments);
    free((void *)request->environment);
    request->groups = NULL;
    request->arguments = request->environment = NULL;
}
