// A bit policy for taq in C, without a C library.
//
// The rule: weights get 4 bits; activations get 6, and 8 in the last quarter of the timesteps, where the image gets
// its details. Inputs that come out of GELU are shifted. Change `write_layer` to have a rule of your own.
//
// ABI version 1: docs/abi/policy-v1.md in taq's repository.

typedef unsigned char byte;
typedef __SIZE_TYPE__ size;

// ---- What the host offers, and what it expects ----

#define IMPORT(name) __attribute__((import_module("taq"), import_name(#name)))
#define EXPORT(name) __attribute__((export_name(#name)))

IMPORT(read_request) void read_request(byte *to);
IMPORT(write_response) void write_response(const byte *from, size length);
// There is also `log(int level, const byte *from, size length)`: 1 error, 2 warning, 3 information, 4 debugging.

EXPORT(taq_policy_abi_v1) void taq_policy_abi_v1(void) {}

// ---- Memory: the request, then the response behind it. Every call gets a fresh module, so nothing is freed. ----

extern byte __heap_base; // from the linker: the first free byte

static const byte *request, *request_end;
static byte *response, *response_end;

// Makes sure that memory reaches up to `end`.
static void reserve(const byte *end) {
    size pages = ((size)end + 65535) >> 16, now = __builtin_wasm_memory_size(0);
    if (pages > now && __builtin_wasm_memory_grow(0, pages - now) == (size)-1) __builtin_trap();
}

static void put_bytes(const byte *from, const byte *end) {
    reserve(response_end + (end - from));
    while (from < end) *response_end++ = *from++;
}

static void put(const char *text) {
    const byte *end = (const byte *)text;
    while (*end) end++;
    put_bytes((const byte *)text, end);
}

// ---- Just enough JSON: what the host writes is valid, so this only finds its way in it. ----

static const byte *skip_space(const byte *at) {
    while (at < request_end && (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t')) at++;
    return at;
}

// From the start of a value to behind it.
static const byte *skip_value(const byte *at) {
    int depth = 0;
    while (at < request_end) {
        byte c = *at++;
        if (c == '"') {
            while (at < request_end && *at != '"') at += *at == '\\' ? 2 : 1;
            at++;
        } else if (c == '[' || c == '{') {
            depth++;
        } else if (c == ']' || c == '}') {
            depth--;
        } else if (depth == 0) { // a number, true, false or null
            while (at < request_end && *at > ' ' && *at != ',' && *at != ']' && *at != '}') at++;
        }
        if (depth == 0) break;
    }
    return at < request_end ? at : request_end;
}

// The first item of an array or object at `at`, or the one behind the item that ends at `at`; 0 after the last.
static const byte *next_item(const byte *at) {
    at = skip_space(at);
    if (at < request_end && (*at == '[' || *at == '{' || *at == ',')) at = skip_space(at + 1);
    return at >= request_end || *at == ']' || *at == '}' ? 0 : at;
}

// The value of `key` in the object at `object`; 0 if it has none.
static const byte *find(const byte *object, const char *key) {
    for (const byte *at = next_item(object); at;) {
        const byte *name = at + 1, *colon = skip_space(skip_value(at)), *value = skip_space(colon + 1);
        const char *wanted = key;
        while (*wanted && name < colon && *name == (byte)*wanted) name++, wanted++;
        if (!*wanted && *name == '"') return value;
        at = next_item(skip_value(value));
    }
    return 0;
}

static int count(const byte *array) {
    int n = 0;
    for (const byte *at = next_item(array); at; at = next_item(skip_value(at))) n++;
    return n;
}

// ---- The policy ----

EXPORT(describe) int describe(void) {
    response = response_end = &__heap_base;
    put("{\"format\":\"taq.policy_info.v1\",\"name\":\"late-8-c\",\"version\":\"0.1.0\","
        "\"summary\":\"Six bits for activations, eight in the last quarter of the timesteps.\"}");
    write_response(response, (size)(response_end - response));
    return 0;
}

static void write_layer(const byte *layer, int steps) {
    const byte *id = find(layer, "id"), *post_gelu = find(layer, "post_gelu");
    put("{\"id\":");
    put_bytes(id, skip_value(id)); // with its quotes, as the host wrote it
    put(",\"weight_bits\":4,\"activation_bits\":[");
    for (int step = 0; step < steps; step++) {
        if (step > 0) put(",");
        put(4 * step >= 3 * steps ? "8" : "6");
    }
    put("],\"shift\":");
    put(post_gelu && *post_gelu == 't' ? "true}" : "false}");
}

static int refuse(const char *reason) {
    response_end = response;
    put("{\"error\":\"");
    put(reason);
    put("\"}");
    write_response(response, (size)(response_end - response));
    return 1;
}

EXPORT(assign) int assign(int request_length) {
    reserve(&__heap_base + request_length);
    read_request(&__heap_base);
    request = &__heap_base;
    request_end = response = response_end = &__heap_base + request_length;

    const byte *layers = find(request, "layers"), *timesteps = find(request, "timesteps");
    const byte *settings = find(request, "settings");
    if (!layers || !timesteps) return refuse("the request has no layers or no timesteps");
    if (settings && next_item(settings)) return refuse("settings: this policy has none");

    int steps = count(timesteps);
    put("{\"format\":\"taq.policy_plan.v1\",\"layers\":[");
    for (const byte *layer = next_item(layers); layer; layer = next_item(skip_value(layer))) {
        if (response_end[-1] != '[') put(",");
        write_layer(layer, steps);
    }
    put("]}");
    write_response(response, (size)(response_end - response));
    return 0;
}
