const std = @import("std");

pub fn build(b: *std.Build) void {
    const target = b.standardTargetOptions(.{});
    const optimize = b.option(std.builtin.OptimizeMode, "optimize", "Debug, ReleaseSafe, ReleaseFast") orelse .ReleaseFast;
    // The ABI as Zig: `@import("taq_plugin")`.
    const header = b.addTranslateC(.{
        .root_source_file = b.path("taq_plugin.h"),
        .target = target,
        .optimize = optimize,
    });
    const rounder = b.createModule(.{
        .root_source_file = b.path("rounder.zig"),
        .target = target,
        .optimize = optimize,
        .imports = &.{.{ .name = "taq_plugin", .module = header.createModule() }},
    });
    b.installArtifact(b.addLibrary(.{ .name = "my_rounder", .linkage = .dynamic, .root_module = rounder }));

    const tests = b.addRunArtifact(b.addTest(.{ .root_module = rounder }));
    b.step("test", "Run the rounder's tests").dependOn(&tests.step);
}
