/* A libcudart without a GPU, for tests: device memory is host memory, and all that is given to a stream waits in its
 * queue until somebody synchronizes, as late as real asynchronous work may run. Everything that is made is counted,
 * every call is written down, and any call can be told to fail. What the real library forbids is refused here too:
 * copies between what is not device and pinned memory, allocating inside a capture, times of events not passed. */

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OK = 0, INVALID_VALUE = 1, NO_MEMORY = 2, NO_DRIVER = 35, NO_DEVICE = 100, BAD_HANDLE = 400, NOT_READY = 600,
       ILLEGAL_ADDRESS = 700, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901 };
enum { DEVICE, PINNED, STREAM, EVENT, GRAPH, EXEC, KINDS };
enum { COPY, HOST, RECORD, LAUNCH };
static const char *const KIND_NAMES[KINDS] = {"device", "pinned", "stream", "event", "graph", "exec"};

typedef struct Object Object;
typedef struct { int what; void *to, *from; size_t size; void (*function)(void *); Object *object; } Op;
typedef struct { Op *ops; size_t count, room; } Queue;
struct Object {
    int kind, capturing, broken, passed;
    char *memory;
    size_t size;
    double at;
    Queue waiting, captured;
    Object *next;
};

static Object *objects;
static int last_error, sticky, fail_code, fail_after;
static char fail_symbol[64], calls[1 << 16];
static const size_t TOTAL = (size_t)1 << 30;
static size_t used;

static int number(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}

static int answer(int code) {
    if (code != OK) last_error = code;
    return code;
}

/* Note the call; what it has been told to fail with, or the error that a failed kernel left behind. */
static int enter(const char *symbol) {
    if (strlen(calls) + strlen(symbol) + 2 < sizeof calls) strcat(strcat(calls, symbol), " ");
    if (fail_code && !strcmp(symbol, fail_symbol) && fail_after-- == 0) {
        int code = fail_code;
        fail_code = 0;
        return answer(code);
    }
    return sticky ? answer(sticky) : OK;
}
#define ENTER(symbol) do { int failed = enter(symbol); if (failed) return failed; } while (0)
#define NEED(condition, code) do { if (!(condition)) return answer(code); } while (0)

static Object *find(void *handle, int kind) {
    for (Object *one = objects; one; one = one->next)
        if (one == handle && one->kind == kind) return one;
    return NULL;
}

static int inside(int kind, const void *address, size_t size) {
    const char *first = address;
    for (Object *one = objects; one; one = one->next)
        if (one->kind == kind && first >= one->memory && first + size <= one->memory + one->size) return 1;
    return 0;
}

static int capturing(void) {
    int any = 0;
    for (Object *one = objects; one; one = one->next)
        if (one->kind == STREAM && one->capturing) any = one->broken = 1;
    return any;
}

static Object *make(int kind) {
    Object *one = calloc(1, sizeof *one);
    one->kind = kind;
    one->next = objects;
    return objects = one;
}

static void drop(Object *gone) {
    for (Object **link = &objects; *link; link = &(*link)->next)
        if (*link == gone) {
            *link = gone->next;
            break;
        }
    free(gone->memory);
    free(gone->waiting.ops);
    free(gone->captured.ops);
    free(gone);
}

static void append(Queue *queue, Op op) {
    if (queue->count == queue->room) {
        queue->room = queue->room ? 2 * queue->room : 8;
        queue->ops = realloc(queue->ops, queue->room * sizeof op);
    }
    queue->ops[queue->count++] = op;
}

static double now_ms(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return 1e3 * (double)time.tv_sec + 1e-6 * (double)time.tv_nsec;
}

static void run(const Queue *queue) {
    for (size_t index = 0; index < queue->count && !sticky; index++) {
        Op op = queue->ops[index];
        if (op.what == COPY) {
            int lives = (inside(DEVICE, op.to, op.size) && inside(PINNED, op.from, op.size)) ||
                        (inside(PINNED, op.to, op.size) && inside(DEVICE, op.from, op.size));
            if (lives) memcpy(op.to, op.from, op.size);
            else sticky = ILLEGAL_ADDRESS;
        } else if (op.what == HOST) {
            op.function(op.from);
        } else if (op.what == RECORD) {
            op.object->at = now_ms();
            op.object->passed = 1;
        } else {
            run(&op.object->captured);
        }
    }
}

static int give(void *handle, Op op) {
    Object *stream = find(handle, STREAM);
    NEED(stream, BAD_HANDLE);
    append(stream->capturing ? &stream->captured : &stream->waiting, op);
    return OK;
}

static int drain(Object *stream) {
    Queue queue = stream->waiting;
    memset(&stream->waiting, 0, sizeof queue);
    run(&queue);
    free(queue.ops);
    return answer(sticky);
}

/* what tests ask */

void fake_reset(void) {
    while (objects) drop(objects);
    last_error = sticky = fail_code = 0;
    used = 0;
    calls[0] = 0;
}

void fake_fail(const char *symbol, int code, int after) {
    snprintf(fail_symbol, sizeof fail_symbol, "%s", symbol);
    fail_code = code;
    fail_after = after;
}

int fake_live(const char *kind) {
    int count = 0;
    for (Object *one = objects; one; one = one->next) count += !strcmp(KIND_NAMES[one->kind], kind);
    return count;
}

const char *fake_calls(void) { return calls; }
void fake_forget_calls(void) { calls[0] = 0; }
int fake_last_error(void) { return last_error; }

/* libcudart */

const char *cudaGetErrorName(int code) {
    switch (code) {
    case NO_MEMORY: return "cudaErrorMemoryAllocation";
    case NO_DRIVER: return "cudaErrorInsufficientDriver";
    case NO_DEVICE: return "cudaErrorNoDevice";
    case ILLEGAL_ADDRESS: return "cudaErrorIllegalAddress";
    case CAPTURE_UNSUPPORTED: return "cudaErrorStreamCaptureUnsupported";
    case CAPTURE_INVALIDATED: return "cudaErrorStreamCaptureInvalidated";
    default: return "cudaErrorOfTheFake";
    }
}

const char *cudaGetErrorString(int code) {
    switch (code) {
    case NO_MEMORY: return "out of memory";
    case NO_DRIVER: return "CUDA driver version is insufficient for CUDA runtime version";
    case NO_DEVICE: return "no CUDA-capable device is detected";
    case ILLEGAL_ADDRESS: return "an illegal memory access was encountered";
    default: return "as the test wants it";
    }
}

int cudaGetLastError(void) {
    int code = last_error;
    last_error = sticky;
    return code;
}

int cudaDriverGetVersion(int *version) {
    ENTER("cudaDriverGetVersion");
    *version = number("FAKE_CUDART_DRIVER", 12060);
    return OK;
}

int cudaRuntimeGetVersion(int *version) {
    ENTER("cudaRuntimeGetVersion");
    *version = number("FAKE_CUDART_RUNTIME", 12040);
    return OK;
}

int cudaGetDeviceCount(int *count) {
    ENTER("cudaGetDeviceCount");
    NEED(number("FAKE_CUDART_DRIVER", 12060) >= number("FAKE_CUDART_RUNTIME", 12040), NO_DRIVER);
    *count = number("FAKE_CUDART_DEVICES", 1);
    NEED(*count, NO_DEVICE);
    return OK;
}

int cudaSetDevice(int device) {
    ENTER("cudaSetDevice");
    NEED(device == 0, INVALID_VALUE);
    return OK;
}

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    ENTER("cudaDeviceGetAttribute");
    NEED(device == 0 && (attribute == 16 || attribute == 75 || attribute == 76), INVALID_VALUE);
    int capability = number("FAKE_CUDART_CAPABILITY", 87);
    *value = attribute == 16 ? number("FAKE_CUDART_MULTIPROCESSORS", 8)
           : attribute == 75 ? capability / 10 : capability % 10;
    return OK;
}

int cudaGetDeviceProperties(char *properties, int device) {
    ENTER("cudaGetDeviceProperties");
    NEED(device == 0, INVALID_VALUE);
    const char *name = getenv("FAKE_CUDART_NAME");
    memset(properties, 0xAB, 1032); /* the whole struct of CUDA 12, as the real one does */
    memset(properties, 0, 256);
    snprintf(properties, 256, "%s", name ? name : "Fake Orin");
    return OK;
}

int cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    ENTER("cudaMemGetInfo");
    *free_bytes = TOTAL - used;
    *total = TOTAL;
    return OK;
}

static int allocate(void **address, size_t size, int kind) {
    NEED(!capturing(), CAPTURE_UNSUPPORTED);
    NEED(size <= TOTAL - used, NO_MEMORY);
    Object *one = make(kind);
    one->size = size;
    one->memory = aligned_alloc(256, (size + 255) / 256 * 256);
    memset(one->memory, 0xCD, size); /* never zero by chance */
    if (kind == DEVICE) used += size;
    *address = one->memory;
    return OK;
}

static int release(void *address, int kind) {
    NEED(!capturing(), CAPTURE_UNSUPPORTED);
    for (Object *one = objects; one; one = one->next)
        if (one->kind == kind && one->memory == address) {
            if (kind == DEVICE) used -= one->size;
            drop(one);
            return OK;
        }
    return answer(INVALID_VALUE);
}

int cudaMalloc(void **address, size_t size) {
    ENTER("cudaMalloc");
    return allocate(address, size, DEVICE);
}

int cudaFree(void *address) {
    ENTER("cudaFree");
    return release(address, DEVICE);
}

int cudaHostAlloc(void **address, size_t size, unsigned flags) {
    ENTER("cudaHostAlloc");
    NEED(flags == 0, INVALID_VALUE);
    return allocate(address, size, PINNED);
}

int cudaFreeHost(void *address) {
    ENTER("cudaFreeHost");
    return release(address, PINNED);
}

int cudaMemcpyAsync(void *to, void *from, size_t size, int kind, void *stream) {
    ENTER("cudaMemcpyAsync");
    NEED(kind == 1 || kind == 2, INVALID_VALUE);
    NEED(inside(kind == 1 ? DEVICE : PINNED, to, size) && inside(kind == 1 ? PINNED : DEVICE, from, size),
         INVALID_VALUE);
    return give(stream, (Op){.what = COPY, .to = to, .from = from, .size = size});
}

int cudaStreamCreateWithFlags(void **stream, unsigned flags) {
    ENTER("cudaStreamCreateWithFlags");
    NEED(flags == 1, INVALID_VALUE);
    *stream = make(STREAM);
    return OK;
}

int cudaStreamSynchronize(void *handle) {
    ENTER("cudaStreamSynchronize");
    Object *stream = find(handle, STREAM);
    NEED(stream, BAD_HANDLE);
    NEED(!capturing(), CAPTURE_UNSUPPORTED);
    return drain(stream);
}

int cudaStreamDestroy(void *handle) {
    ENTER("cudaStreamDestroy");
    Object *stream = find(handle, STREAM);
    NEED(stream, BAD_HANDLE);
    drain(stream);
    drop(stream);
    return OK;
}

int cudaStreamIsCapturing(void *handle, int *status) {
    ENTER("cudaStreamIsCapturing");
    Object *stream = find(handle, STREAM);
    NEED(stream, BAD_HANDLE);
    *status = stream->capturing;
    return OK;
}

int cudaLaunchHostFunc(void *stream, void (*function)(void *), void *data) {
    ENTER("cudaLaunchHostFunc");
    return give(stream, (Op){.what = HOST, .from = data, .function = function});
}

int cudaEventCreateWithFlags(void **event, unsigned flags) {
    ENTER("cudaEventCreateWithFlags");
    NEED(flags == 0, INVALID_VALUE);
    *event = make(EVENT);
    return OK;
}

int cudaEventRecord(void *handle, void *stream) {
    ENTER("cudaEventRecord");
    Object *event = find(handle, EVENT);
    NEED(event, BAD_HANDLE);
    event->passed = 0;
    return give(stream, (Op){.what = RECORD, .object = event});
}

int cudaEventElapsedTime(float *ms, void *start, void *end) {
    ENTER("cudaEventElapsedTime");
    Object *first = find(start, EVENT), *second = find(end, EVENT);
    NEED(first && second, BAD_HANDLE);
    NEED(first->passed && second->passed, NOT_READY);
    *ms = (float)(second->at - first->at);
    return OK;
}

int cudaEventDestroy(void *handle) {
    ENTER("cudaEventDestroy");
    Object *event = find(handle, EVENT);
    NEED(event, BAD_HANDLE);
    drop(event);
    return OK;
}

int cudaStreamBeginCapture(void *handle, int mode) {
    ENTER("cudaStreamBeginCapture");
    Object *stream = find(handle, STREAM);
    NEED(stream && !stream->capturing && mode == 1, INVALID_VALUE);
    stream->capturing = 1;
    stream->broken = 0;
    return OK;
}

int cudaStreamEndCapture(void *handle, void **graph) {
    ENTER("cudaStreamEndCapture");
    Object *stream = find(handle, STREAM);
    NEED(stream && stream->capturing, INVALID_VALUE);
    Queue captured = stream->captured;
    memset(&stream->captured, 0, sizeof captured);
    stream->capturing = 0;
    if (stream->broken) {
        free(captured.ops);
        *graph = NULL;
        return answer(CAPTURE_INVALIDATED);
    }
    Object *made = make(GRAPH);
    made->captured = captured;
    *graph = made;
    return OK;
}

int cudaGraphInstantiateWithFlags(void **exec, void *handle, unsigned long long flags) {
    ENTER("cudaGraphInstantiateWithFlags");
    Object *graph = find(handle, GRAPH);
    NEED(graph, BAD_HANDLE);
    NEED(flags == 0, INVALID_VALUE);
    Object *made = make(EXEC);
    for (size_t index = 0; index < graph->captured.count; index++)
        append(&made->captured, graph->captured.ops[index]);
    *exec = made;
    return OK;
}

int cudaGraphLaunch(void *handle, void *stream) {
    ENTER("cudaGraphLaunch");
    Object *exec = find(handle, EXEC);
    NEED(exec, BAD_HANDLE);
    return give(stream, (Op){.what = LAUNCH, .object = exec});
}

int cudaGraphExecDestroy(void *handle) {
    ENTER("cudaGraphExecDestroy");
    Object *exec = find(handle, EXEC);
    NEED(exec, BAD_HANDLE);
    drop(exec);
    return OK;
}

int cudaGraphDestroy(void *handle) {
    ENTER("cudaGraphDestroy");
    Object *graph = find(handle, GRAPH);
    NEED(graph, BAD_HANDLE);
    drop(graph);
    return OK;
}
