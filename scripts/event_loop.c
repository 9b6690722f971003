/* A step under the schedule fifo as one plain event loop with a binary heap: what a C programmer would write in an
   afternoon. scripts/benchmark_simulator.py compiles it where there is a compiler, and prints the simulator's time over
   this one's. It gives the same step times to the last digit. It is allowed less work: memory is charged when a transfer
   is reserved, not when it starts, so peaks are an upper estimate; nothing is kept as a trace; no bound stops it. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct { double time_s; uint32_t order; int32_t what; } Event; /* what: an op, or -1 - a transfer */
typedef struct { int32_t tensor, destination; } Transfer;

typedef struct {
    int32_t num_ops, num_devices, num_tensors, num_directions;
    const int32_t *tensor_offsets, *consumer_offsets, *consumers, *input_offsets, *inputs;
    const int64_t *tensor_bytes, *home_bytes, *resident_bytes;
    const double *op_time_s, *latency_s, *bytes_per_s; /* op_time_s [devices, ops] */
    const int32_t *route_offsets, *route_directions;
} Step;

static inline int before(const Event *a, const Event *b) {
    return a->time_s < b->time_s || (a->time_s == b->time_s && a->order < b->order);
}

static inline void push(Event *heap, int32_t *count, Event event) {
    int32_t hole = (*count)++;
    while (hole > 0 && before(&event, &heap[(hole - 1) / 2])) {
        heap[hole] = heap[(hole - 1) / 2];
        hole = (hole - 1) / 2;
    }
    heap[hole] = event;
}

static inline Event pop(Event *heap, int32_t *count) {
    Event first = heap[0], last = heap[--*count];
    int32_t hole = 0;
    for (int32_t child = 1; child < *count; child = 2 * hole + 1) {
        if (child + 1 < *count && before(&heap[child + 1], &heap[child])) child++;
        if (!before(&heap[child], &last)) break;
        heap[hole] = heap[child];
        hole = child;
    }
    heap[hole] = last;
    return first;
}

/* Simulate `count` placements int32[count, ops] into step_s[count] and peaks[count, devices]; at most 64 devices.
   Returns how many transfers the last one had, or -1 where there is no memory. */
int32_t simulate(const Step *step, const int32_t *placements, int32_t count, double *step_s, int64_t *peaks) {
    const Step s = *step;
    const int32_t num_edges = s.consumer_offsets[s.num_tensors];
    int32_t *missing = malloc(sizeof *missing * s.num_ops), *next = malloc(sizeof *next * s.num_ops);
    int32_t *ready = malloc(sizeof *ready * s.num_ops), *home = malloc(sizeof *home * (s.num_tensors + 1));
    int32_t *uses = malloc(sizeof *uses * (size_t)s.num_tensors * s.num_devices);
    Event *heap = malloc(sizeof *heap * ((size_t)num_edges + s.num_ops));
    Transfer *transfers = malloc(sizeof *transfers * (num_edges + 1));
    double *free_s = malloc(sizeof *free_s * (s.num_directions + 1));
    int32_t sent = 0;
    int32_t head[64], tail[64];
    int64_t memory[64];
    if (!missing || !next || !ready || !home || !uses || !heap || !transfers || !free_s) return -1;
    for (int32_t row = 0; row < count; row++) {
        const int32_t *place = placements + (size_t)row * s.num_ops;
        int64_t *peak = peaks + (size_t)row * s.num_devices;
        int32_t num_events = 0, num_ready = 0;
        uint32_t order = 0;
        uint64_t idle = 0;
        double now = 0;
        sent = 0;
        memset(uses, 0, sizeof *uses * (size_t)s.num_tensors * s.num_devices);
        for (int32_t i = 0; i < s.num_directions; i++) free_s[i] = 0;
        for (int32_t d = 0; d < s.num_devices; d++) head[d] = tail[d] = -1, memory[d] = 0, idle |= 1ull << d;
        for (int32_t op = 0; op < s.num_ops; op++) {
            missing[op] = s.input_offsets[op + 1] - s.input_offsets[op];
            memory[place[op]] += s.resident_bytes[op];
            for (int32_t t = s.tensor_offsets[op]; t < s.tensor_offsets[op + 1]; t++) home[t] = place[op];
            if (!missing[op]) ready[num_ready++] = op;
        }
        for (int32_t d = 0; d < s.num_devices; d++) peak[d] = memory[d];
        for (;;) {
            for (int32_t i = 0; i < num_ready; i++) { /* behind those that became ready before, in op order */
                const int32_t op = ready[i], d = place[op];
                next[op] = -1;
                if (head[d] < 0) head[d] = op; else next[tail[d]] = op;
                tail[d] = op;
            }
            for (uint64_t left = idle; left; left &= left - 1) {
                const int32_t d = __builtin_ctzll(left), op = head[d];
                if (op < 0) continue;
                head[d] = next[op];
                idle &= ~(1ull << d);
                for (int32_t t = s.tensor_offsets[op]; t < s.tensor_offsets[op + 1]; t++) memory[d] += s.home_bytes[t];
                if (memory[d] > peak[d]) peak[d] = memory[d];
                push(heap, &num_events, (Event){now + s.op_time_s[(size_t)d * s.num_ops + op], order++, op});
            }
            if (!num_events) break;
            const Event event = pop(heap, &num_events);
            now = event.time_s;
            num_ready = 0;
            if (event.what >= 0) {
                const int32_t op = event.what, d = place[op];
                idle |= 1ull << d;
                for (int32_t t = s.tensor_offsets[op]; t < s.tensor_offsets[op + 1]; t++) {
                    int32_t *used = uses + (size_t)t * s.num_devices;
                    uint64_t away = 0;
                    for (int32_t e = s.consumer_offsets[t]; e < s.consumer_offsets[t + 1]; e++) {
                        const int32_t reader = s.consumers[e], target = place[reader];
                        used[target]++;
                        if (target != d) away |= 1ull << target;
                        else if (!--missing[reader]) ready[num_ready++] = reader;
                    }
                    for (; away; away &= away - 1) {
                        const int32_t target = __builtin_ctzll(away), route = d * s.num_devices + target;
                        double start_s = now;
                        for (int32_t i = s.route_offsets[route]; i < s.route_offsets[route + 1]; i++)
                            if (free_s[s.route_directions[i]] > start_s) start_s = free_s[s.route_directions[i]];
                        const double end_s = start_s + (s.latency_s[route] + s.tensor_bytes[t] / s.bytes_per_s[route]);
                        for (int32_t i = s.route_offsets[route]; i < s.route_offsets[route + 1]; i++)
                            free_s[s.route_directions[i]] = end_s;
                        used[d]++;
                        memory[target] += s.tensor_bytes[t];
                        if (memory[target] > peak[target]) peak[target] = memory[target];
                        transfers[sent] = (Transfer){t, target};
                        push(heap, &num_events, (Event){end_s, order++, -1 - sent++});
                    }
                    if (!used[d]) memory[d] -= s.home_bytes[t];
                }
                for (int32_t i = s.input_offsets[op]; i < s.input_offsets[op + 1]; i++) {
                    const int32_t t = s.inputs[i];
                    if (--uses[(size_t)t * s.num_devices + d]) continue;
                    memory[d] -= home[t] == d ? s.home_bytes[t] : s.tensor_bytes[t];
                }
            } else {
                const Transfer transfer = transfers[-1 - event.what];
                const int32_t source = home[transfer.tensor];
                if (!--uses[(size_t)transfer.tensor * s.num_devices + source]) memory[source] -= s.home_bytes[transfer.tensor];
                for (int32_t e = s.consumer_offsets[transfer.tensor]; e < s.consumer_offsets[transfer.tensor + 1]; e++) {
                    const int32_t reader = s.consumers[e];
                    if (place[reader] == transfer.destination && !--missing[reader]) ready[num_ready++] = reader;
                }
            }
            for (int32_t i = 1; i < num_ready; i++) /* a handful, nearly always sorted already */
                for (int32_t j = i; j > 0 && ready[j] < ready[j - 1]; j--) {
                    const int32_t swapped = ready[j];
                    ready[j] = ready[j - 1];
                    ready[j - 1] = swapped;
                }
        }
        step_s[row] = now;
    }
    free(missing), free(next), free(ready), free(home), free(uses), free(heap), free(transfers), free(free_s);
    return sent;
}
