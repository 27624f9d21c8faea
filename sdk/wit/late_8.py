import json

from wit_world import exports
from wit_world.imports import log
from componentize_py_types import Err


class BitPolicy(exports.BitPolicy):
    def describe(self) -> str:
        return json.dumps({
            "format": "taq.policy_info.v1", "name": "late-8-python", "version": "1.0.0",
            "summary": "Six bits for activations, eight in the last quarter of the timesteps.",
        })

    def assign(self, request: str) -> str:
        request = json.loads(request)
        if request.get("settings"):
            raise Err("settings: this policy has none")
        steps = len(request["timesteps"])
        late = -(-steps * 3 // 4)
        bits = [6 if i < late else 8 for i in range(steps)]
        log.write(3, f"{len(request['layers'])} layers")
        return json.dumps({
            "format": "taq.policy_plan.v1",
            "layers": [
                {"id": layer["id"], "weight_bits": 4, "activation_bits": bits, "shift": layer["post_gelu"]}
                for layer in request["layers"]
            ],
        }, separators=(",", ":"))
