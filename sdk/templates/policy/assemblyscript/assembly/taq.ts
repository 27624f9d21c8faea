// ABI version 1: what the host offers, and what every policy exports besides `describe` and `assign`.

import { Value } from "./json";

@external("taq", "read_request")
declare function read_request(to: usize): void;
@external("taq", "write_response")
declare function write_response(from: usize, length: i32): void;
@external("taq", "log")
declare function write_log(level: i32, from: usize, length: i32): void;

/** Says which ABI the module speaks; never called. */
export function taq_policy_abi_v1(): void {}

export function readRequest(length: i32): Value {
  const start = heap.alloc(length);
  read_request(start);
  return new Value(start, start + length);
}

/** Hands a plan or a description to the host. */
export function respond(json: string): i32 {
  const bytes = String.UTF8.encode(json);
  write_response(changetype<usize>(bytes), bytes.byteLength);
  return 0;
}

/** Hands the host the reason why there is no plan: plain text without quotes or backslashes. */
export function refuse(reason: string): i32 {
  respond(`{"error":"${reason}"}`);
  return 1;
}

/** A line in the host's log: 1 error, 2 warning, 3 information, 4 debugging. */
export function log(level: i32, text: string): void {
  const bytes = String.UTF8.encode(text);
  write_log(level, changetype<usize>(bytes), bytes.byteLength);
}

/** AssemblyScript calls this where something went wrong, as asconfig.json says. Else the module would import `env`. */
export function abort(message: string | null, file: string | null, line: u32, column: u32): void {
  log(1, `${message ? message : "abort"} (${file ? file : ""}:${line}:${column})`);
  unreachable();
}
