//! A rounder for taq as a native library, in Zig: coordinate descent on the error of each layer's output.
//!
//! Where a layer's inputs are the rows of X, the error of one output is (ŵ − w)ᵀ G (ŵ − w), with G = XᵀX. From the nearest
//! integers, one weight after the other goes to the integer where this error is smallest while all others stay, until
//! none moves: QuantEase (Behdin et al., arXiv 2309.01885). Change `descend` to have a method of your own.
//!
//! ABI version 1: taq_plugin.h, and docs/abi.md in taq's repository.

const std = @import("std");
const taq = @import("taq_plugin");

const allocator = std.heap.page_allocator;

/// How often every weight has its turn, at most.
const passes = 50;

/// Settings, as in `rounder = { name = "coordinate-descent", damping = 1 }`. Unknown ones are refused.
const Settings = struct {
    /// What is added to the diagonal of G, in parts of its mean. Without it weights would go far to make up for each other
    /// in calibration's inputs, and miss in others: in what guidance subtracts, above all.
    damping: f32 = 1,
};

/// Says why a call failed: a text that stays where it is, so that there is nothing to release.
fn fail(err: [*c]taq.TaqBuf, status: i32, text: []const u8) i32 {
    if (err != null) err.* = .{ .ptr = @constCast(text.ptr), .len = text.len, .release = null, .private_data = null };
    return status;
}

fn create(text: taq.TaqStr, instance: [*c]?*anyopaque, err: [*c]taq.TaqBuf) callconv(.c) i32 {
    const json = if (text.len == 0) "" else text.ptr[0..text.len];
    const parsed = std.json.parseFromSlice(Settings, allocator, json, .{}) catch
        return fail(err, taq.TAQ_INVALID, "settings: expected {} or {\"damping\": 1}");
    defer parsed.deinit();
    if (!(parsed.value.damping >= 0 and std.math.isFinite(parsed.value.damping)))
        return fail(err, taq.TAQ_INVALID, "damping: expected a number from 0 on");
    const settings = allocator.create(Settings) catch return fail(err, taq.TAQ_FAILED, "out of memory");
    settings.* = parsed.value;
    instance.* = settings;
    return taq.TAQ_OK;
}

fn destroy(instance: ?*anyopaque) callconv(.c) void {
    const settings: *Settings = @ptrCast(@alignCast(instance orelse return));
    allocator.destroy(settings);
}

/// The numbers of a tensor.
fn numbers(comptime T: type, tensor: taq.TaqTensor, length: usize) []const T {
    const data: [*]const T = @ptrCast(@alignCast(tensor.data orelse return &.{}));
    return data[0..length];
}

/// The room of a tensor.
fn room(comptime T: type, tensor: taq.TaqTensorMut, length: usize) []T {
    const data: [*]T = @ptrCast(@alignCast(tensor.data orelse return &.{}));
    return data[0..length];
}

/// One layer: its weight, its grid, its integers.
const Layer = struct {
    weight: []const f32,
    q: []i8,
    scale: []f32,
    zero: []f32,
    group_len: usize,
    low: f32,
    high: f32,

    /// A layer on the grid that the host gives to start with, rounded to nearest.
    fn init(given: *const taq.TaqLayer) Layer {
        const grid = given.grid;
        const info: *const taq.TaqLayerInfo = given.info;
        const size: usize = @intCast(info.in_features * info.out_features);
        const groups: usize = @intCast(grid.groups);
        const layer: Layer = .{
            .weight = numbers(f32, given.weight, size),
            .q = room(i8, given.weight_int, size),
            .scale = room(f32, given.scale, groups),
            .zero = room(f32, given.zero_point, groups),
            .group_len = @intCast(grid.group_len),
            .low = @floatFromInt(grid.qmin),
            .high = @floatFromInt(grid.qmax),
        };
        @memcpy(layer.scale, numbers(f32, given.start_scale, groups));
        @memcpy(layer.zero, numbers(f32, given.start_zero_point, groups));
        for (layer.q, layer.weight, 0..) |*q, w, at| q.* = layer.nearest(at, w);
        return layer;
    }

    /// The integer nearest to a weight.
    fn nearest(layer: Layer, at: usize, weight: f32) i8 {
        const group = at / layer.group_len;
        const q = weight / layer.scale[group] + layer.zero[group];
        return @intFromFloat(@round(std.math.clamp(q, layer.low, layer.high)));
    }

    /// The weight that an integer stands for.
    fn value(layer: Layer, at: usize) f32 {
        const group = at / layer.group_len;
        return (@as(f32, @floatFromInt(layer.q[at])) - layer.zero[group]) * layer.scale[group];
    }

    /// Moves the integers of one output, from `first` on, to where no single one can make the error smaller. `slope` is
    /// room for half the error's slope, G (ŵ − w), which is kept up to date.
    fn descend(layer: Layer, first: usize, gram: []const f32, slope: []f32) void {
        const width = slope.len;
        @memset(slope, 0);
        for (0..width) |j| add(slope, gram[j * width ..][0..width], layer.value(first + j) - layer.weight[first + j]);
        for (0..passes) |_| {
            var moved = false;
            for (0..width) |j| {
                const at = first + j;
                const curvature = gram[j * width + j];
                if (!(curvature > 0)) continue; // no input ever
                // The error is a parabola in this weight: the best integer is the one nearest to its bottom.
                const now = layer.value(at);
                const best = layer.nearest(at, now - slope[j] / curvature);
                if (best == layer.q[at]) continue;
                layer.q[at] = best;
                add(slope, gram[j * width ..][0..width], layer.value(at) - now);
                moved = true;
            }
            if (!moved) break;
        }
    }
};

/// `to += by * from`.
fn add(to: []f32, from: []const f32, by: f32) void {
    for (to, from) |*a, b| a.* += by * b;
}

fn roundLayer(instance: ?*anyopaque, given: [*c]const taq.TaqRoundLayerArgs, err: [*c]taq.TaqBuf) callconv(.c) i32 {
    const settings: *const Settings = @ptrCast(@alignCast(instance.?));
    const args: *const taq.TaqRoundLayerArgs = given;
    if (args.size < @sizeOf(taq.TaqRoundLayerArgs)) return fail(err, taq.TAQ_INVALID, "the arguments are those of an older ABI");
    const host: *const taq.TaqHostApi = args.host;
    const info: *const taq.TaqLayerInfo = args.layer.*.info;
    const rows: usize = @intCast(args.inputs.shape[0]);
    const width: usize = @intCast(info.in_features);
    const outputs: usize = @intCast(info.out_features);
    const layer: Layer = .init(args.layer);

    const memory = allocator.alloc(f32, width * width + width) catch return fail(err, taq.TAQ_FAILED, "out of memory");
    defer allocator.free(memory);
    @memset(memory, 0);
    const gram = memory[0 .. width * width];
    const inputs = numbers(f32, args.inputs, rows * width);
    for (0..rows) |row| {
        if (row % 64 == 0 and host.cancelled.?(host.ctx) != 0) return taq.TAQ_CANCELLED;
        const x = inputs[row * width ..][0..width];
        for (x, 0..) |by, j| add(gram[j * width ..][0..width], x, by);
    }
    var mean: f32 = 0;
    for (0..width) |j| mean += gram[j * width + j] / @as(f32, @floatFromInt(width));
    if (!std.math.isFinite(mean)) return fail(err, taq.TAQ_INVALID, "the layer's inputs are not finite, or too large");
    for (0..width) |j| gram[j * width + j] += settings.damping * mean;

    for (0..outputs) |output| {
        if (host.cancelled.?(host.ctx) != 0) return taq.TAQ_CANCELLED; // Ctrl-C
        layer.descend(output * width, gram, memory[width * width ..]);
        host.progress.?(host.ctx, output + 1, outputs);
    }
    return taq.TAQ_OK;
}

// What the library offers.

const table: taq.TaqRounderTable = .{
    .size = @sizeOf(taq.TaqRounderTable),
    .reserved = 0,
    .create = &create,
    .round_layer = &roundLayer,
    .round_block = null,
    .destroy = &destroy,
};

const describe =
    \\{"format": "taq.plugin_info.v1",
    \\ "summary": "Moves one weight after the other to the integer where the layer's output errs least (QuantEase).",
    \\ "settings_schema": {"type": "object", "additionalProperties": false, "properties": {"damping": {
    \\   "description": "What is added to the diagonal of G, in parts of its mean.",
    \\   "type": "number", "minimum": 0, "default": 1}}}}
;

fn str(text: []const u8) taq.TaqStr {
    return .{ .ptr = text.ptr, .len = text.len };
}

const items = [_]taq.TaqItem{.{
    .kind = taq.TAQ_ROUNDER,
    .reserved = 0,
    .name = str("coordinate-descent"),
    .describe = str(describe),
    .table = &table,
}};

const decl: taq.TaqDecl = .{
    .size = @sizeOf(taq.TaqDecl),
    .reserved = 0,
    .name = str("my-rounder"),
    .version = str("0.1.0"),
    .items = &items,
    .n_items = items.len,
};

export fn taq_plugin_entry_v1(_: [*c]const taq.TaqHostApi, _: [*c]taq.TaqBuf) [*c]const taq.TaqDecl {
    return &decl;
}

/// Text with zeros behind it.
fn padded(comptime length: usize, comptime text: []const u8) [length]u8 {
    return (text ++ .{0} ** (length - text.len)).*;
}

export const TAQ_PLUGIN_STAMP: taq.TaqStamp = .{
    .magic = "TAQPLUGN".*,
    .size = @sizeOf(taq.TaqStamp),
    .abi_major = taq.TAQ_ABI_MAJOR,
    .abi_minor = taq.TAQ_ABI_MINOR,
    .flags = 0,
    .reserved = 0,
    .compiler = padded(64, "zig " ++ @import("builtin").zig_version_string),
    .sdk = padded(32, "taq_plugin.h 1.0"),
    .target = padded(64, @tagName(@import("builtin").cpu.arch) ++ "-" ++ @tagName(@import("builtin").os.tag)),
};

// Tests.

const Small = struct {
    const outputs = 6;
    const width = 16;
    const rows = 96;

    weight: [outputs * width]f32,
    inputs: [rows * width]f32,
    q: [outputs * width]i8 = undefined,
    scale: [outputs]f32 = @splat(0.3),
    zero: [outputs]f32 = @splat(0),

    /// Inputs that go together: there nearest is not best.
    fn init() Small {
        var random = std.Random.DefaultPrng.init(1);
        const r = random.random();
        var small: Small = .{ .weight = undefined, .inputs = undefined };
        for (&small.weight) |*w| w.* = 2 * r.float(f32) - 1;
        for (0..rows) |row| {
            const common = [2]f32{ 2 * r.float(f32) - 1, 2 * r.float(f32) - 1 };
            for (0..width) |j| small.inputs[row * width + j] = common[j % 2] + 0.2 * (2 * r.float(f32) - 1);
        }
        return small;
    }

    fn layer(small: *Small) Layer {
        return .{ .weight = &small.weight, .q = &small.q, .scale = &small.scale, .zero = &small.zero, .group_len = width, .low = -4, .high = 3 };
    }

    /// What is made small, without G: the squares of x (ŵ − w) over the rows.
    fn err(small: *Small) f64 {
        var sum: f64 = 0;
        const l = small.layer();
        for (0..outputs) |output| {
            for (0..rows) |row| {
                var y: f64 = 0;
                for (0..width) |j| {
                    const at = output * width + j;
                    y += @as(f64, small.inputs[row * width + j]) * (l.value(at) - small.weight[at]);
                }
                sum += y * y;
            }
        }
        return sum;
    }
};

test "better than nearest, and no single integer can be better" {
    var small = Small.init();
    const layer = small.layer();
    for (layer.q, layer.weight, 0..) |*q, w, at| q.* = layer.nearest(at, w);
    const of_nearest = small.err();
    var gram: [Small.width * Small.width]f32 = @splat(0);
    for (0..Small.rows) |row| {
        const x = small.inputs[row * Small.width ..][0..Small.width];
        for (x, 0..) |by, j| add(gram[j * Small.width ..][0..Small.width], x, by);
    }
    var slope: [Small.width]f32 = undefined;
    for (0..Small.outputs) |output| layer.descend(output * Small.width, &gram, &slope);
    const least = small.err();
    try std.testing.expect(least < 0.5 * of_nearest);
    for (layer.q) |*q| {
        const kept = q.*;
        for ([2]i8{ -1, 1 }) |by| {
            q.* = kept + by;
            if (q.* >= -4 and q.* <= 3) try std.testing.expect(small.err() > least * (1 - 1e-5));
        }
        q.* = kept;
    }
}

test "settings are checked" {
    var instance: ?*anyopaque = null;
    var err = std.mem.zeroes(taq.TaqBuf);
    for ([_][]const u8{ "", "[1]", "{", "{\"damping\": -1}", "{\"dumping\": 1}", "{} x" }) |wrong| {
        try std.testing.expectEqual(taq.TAQ_INVALID, create(str(wrong), &instance, &err));
        try std.testing.expect(err.len > 0);
    }
    try std.testing.expectEqual(taq.TAQ_OK, create(str("{ \"damping\": 5 }"), &instance, &err));
    destroy(instance);
}
