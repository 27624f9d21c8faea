// A bit policy for taq in AssemblyScript.
//
// The rule: weights get 4 bits; activations get 6, and 8 in the last quarter of the timesteps, where the image gets
// its details. Inputs that come out of GELU are shifted. Change `plan` to have a rule of your own.
//
// ABI version 1: docs/abi/policy-v1.md in taq's repository. What the host and the module call is in taq.ts.

import { Value } from "./json";
import { readRequest, refuse, respond } from "./taq";

export { taq_policy_abi_v1 } from "./taq";

export function describe(): i32 {
  return respond(
    '{"format":"taq.policy_info.v1","name":"late-8-as","version":"0.1.0",' +
      '"summary":"Six bits for activations, eight in the last quarter of the timesteps."}',
  );
}

export function assign(requestLength: i32): i32 {
  const request = readRequest(requestLength);
  if (request.get("settings").items().length > 0) return refuse("settings: this policy has none");
  const layers = request.get("layers").items();
  const steps = request.get("timesteps").items().length;
  return respond(plan(layers, steps));
}

function plan(layers: Value[], steps: i32): string {
  const bits = new Array<i32>(steps);
  for (let step = 0; step < steps; step++) bits[step] = 4 * step >= 3 * steps ? 8 : 6;

  const answers = new Array<string>();
  for (let i = 0; i < layers.length; i++) {
    const id = layers[i].get("id").text; // with its quotes, as the host wrote it
    const shift = layers[i].get("post_gelu").text == "true";
    answers.push(`{"id":${id},"weight_bits":4,"activation_bits":[${bits.join(",")}],"shift":${shift}}`);
  }
  return `{"format":"taq.policy_plan.v1","layers":[${answers.join(",")}]}`;
}
