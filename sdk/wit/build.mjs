// node build.mjs: late_8.js -> late_8_js.wasm, without WASI.
import { readFileSync, writeFileSync } from "node:fs";
import { componentize } from "@bytecodealliance/componentize-js";

const { component } = await componentize(readFileSync("late_8.js", "utf8"), {
  witPath: "policy.wit",
  worldName: "policy",
  disableFeatures: ["random", "stdio", "clocks", "http", "fetch-event"],
});
writeFileSync("late_8_js.wasm", component);
