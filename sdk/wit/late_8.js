import { write } from "taq:policy/log@1.0.0";

export const bitPolicy = {
  describe() {
    return JSON.stringify({
      format: "taq.policy_info.v1", name: "late-8-js", version: "1.0.0",
      summary: "Six bits for activations, eight in the last quarter of the timesteps.",
    });
  },
  assign(text) {
    const request = JSON.parse(text);
    for (const key of Object.keys(request.settings ?? {})) {
      throw `settings: this policy has none, not even ${key}`;
    }
    const steps = request.timesteps.length;
    const late = Math.ceil(steps * 0.75);
    const activation_bits = request.timesteps.map((_, i) => (i < late ? 6 : 8));
    write(3, `${request.layers.length} layers`);
    return JSON.stringify({
      format: "taq.policy_plan.v1",
      layers: request.layers.map((layer) => ({
        id: layer.id, weight_bits: 4, activation_bits, shift: layer.post_gelu,
      })),
    });
  },
};
